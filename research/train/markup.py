"""Text inside a page: escaped, and with everything in it made visible."""

import html
from typing import Any

# Control characters show as their pictures (U+2400 and on); newlines and tabs stay.
VISIBLE = {c: 0x2400 + c for c in range(32) if chr(c) not in "\n\t"} | {127: 0x2421}

NAME = 32  # characters of a name where there is little room


def escaped(text: Any) -> str:
    """`text` for a page or for a quoted attribute: never markup, no control characters, and nothing that UTF-8 cannot write."""
    return html.escape(str(text).translate(VISIBLE).encode(errors="replace").decode())


def shortened(text: Any) -> str:
    """`text` for a place that has no room for a long one: at most 32 characters, of a longer one its ends."""
    text = str(text)
    return text if len(text) <= NAME else f"{text[: NAME // 2]}…{text[1 - NAME // 2 :]}"


def note(*parts: str) -> str:
    """A paragraph in soft ink of the parts that are not empty, a sentence each; nothing where all are empty."""
    told = [part for part in parts if part]
    return f'<p class="none">{escaped(" ".join(f"{part[0].upper()}{part[1:]}." for part in told))}</p>' if told else ""


def left_out(shown: int, total: int, what: str) -> str:
    """`60 of 100 pictures left out`; nothing where all are shown."""
    return f"{total - shown:,} of {total:,} {what} left out" if shown < total else ""

"""Games move by move, and levels made of characters."""

import itertools
import re
from collections.abc import Mapping, Sequence

from research.core.errors import UserError
from research.train.exhibits.pictures import same_number
from research.train.markup import escaped, left_out, note

BOARDS = 400  # of a game: more than most games of Go have
LEVELS = 60
COLOUR = re.compile(r"#[0-9a-fA-F]{3}([0-9a-fA-F]{3})?|[a-z]+")
COLOURS = {"#": "#6b7078", "@": "#2f6fde", "$": "#d9730d", "!": "#c83349", "*": "#1a8a5a"}


def board_game(frames: Sequence[str], captions: Sequence[str] | None = None, *, as_html: bool = False) -> str:
    """Returns HTML of a game's boards, one at a time with buttons and arrow keys for the one before and after; all of them where no script runs.

    Boards are texts, shown in letters of one width, or with `as_html` fragments of a page that are taken as they are. `captions` name the moves. The
    first 400 boards are there. Raises UserError for unequal numbers.
    """
    if captions is not None:
        same_number("boards", frames, captions=captions)
    shown = frames[:BOARDS]
    items = []
    for i, frame in enumerate(shown):
        caption = f'<p dir="auto">{escaped(captions[i])}</p>' if captions is not None else ""
        board = frame if as_html else f"<pre>{escaped(frame)}</pre>"
        items.append(f'<li aria-label="board {i + 1} of {len(shown)}">{board}{caption}</li>')
    return f'<ol class="moves">{"".join(items)}</ol>' + note(left_out(len(shown), len(frames), "boards"))


def levels(
    texts: Sequence[str], captions: Sequence[str] | None = None, colours: Mapping[str, str] | None = None
) -> str:
    """Returns HTML of levels, a character for each field and a line for each row, in square fields. `colours` maps characters to the colours of
    their fields, `#rgb`, `#rrggbb` or a name; without it walls `#`, players `@`, boxes `$`, dangers `!` and goals met `*` have one.

    The first 60 are shown. Raises UserError for unequal numbers and for what is no character or no colour.
    """
    palette = COLOURS if colours is None else dict(colours)
    for character, colour in palette.items():
        if len(character) != 1 or not COLOUR.fullmatch(colour):
            raise UserError(
                f"the colour of {character!r} is {colour!r}; expected one character, and #rgb, #rrggbb or a name"
            )
    if captions is not None:
        same_number("levels", texts, captions=captions)
    figures = []
    for i, text in enumerate(texts[:LEVELS]):
        caption = f'<figcaption dir="auto">{escaped(captions[i])}</figcaption>' if captions is not None else ""
        figures.append(f'<figure class="tile"><pre class="level">{_fields(text, palette)}</pre>{caption}</figure>')
    return f'<div class="tiles large">{"".join(figures)}</div>' + note(left_out(len(figures), len(texts), "levels"))


def _fields(text: str, palette: Mapping[str, str]) -> str:
    """The rows of a level; characters of one colour that lie side by side are one element, and keep their letters."""
    rows = []
    for row in text.strip("\n").split("\n"):
        runs = []
        for colour, run in itertools.groupby(row, key=palette.get):
            letters = escaped("".join(run))
            runs.append(f'<span style="background:{colour}">{letters}</span>' if colour else letters)
        rows.append("".join(runs))
    return "\n".join(rows)

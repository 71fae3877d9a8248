"""A source whose texts are cleaned as they are read (`cleaning.py`), and the counts of that as numbers that shards add up.

A text is judged by itself, and each that is kept is a document that ends with the separator, the last one too: whether others follow is known
only once all of them are cleaned. A file that is read in parts (`tables/text.py`) is judged and kept part by part.
"""

import difflib
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from research.core.errors import UserError
from research.data.cleaning import PRESETS, Cleaned, Config, Counts, clean, require_kept, tally
from research.data.sources import Row, Source

_VERSION = "1"  # part of every fingerprint: raise it when the same config would give another text
_NUMBERS = ("records", "kept", "characters_in", "characters_out")


@dataclass(frozen=True, eq=False)
class CleanedSource(Source):
    """A source of which a tokeniser sees the texts that are kept. `rows` gives the texts as they are, for `cleaned_rows`."""

    config: Config = PRESETS["plain"]

    def documents(self, split: str) -> Iterator[str]:
        """Returns the cleaned texts of `split` that are kept, as `Source.documents`. Raises UserError where none is left to train on."""
        counts = Counts()
        for text in super().documents(split):
            result = clean(text, self.config)
            counts += tally([(text, result)])
            if result.text is not None:
                yield result.text
        if split == "train":
            require_kept(counts, f"the part to train on of {self.name}")

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the content, the rule that splits it, and how it is cleaned."""
        return hashlib.sha256(f"{_VERSION} {super().fingerprint} {self.config!r}".encode()).hexdigest()


def cleaned_source(source: Source, preset: str) -> CleanedSource:
    """Returns `source` cleaned by the preset of that name. Raises UserError, with the nearest name, where there is none."""
    if preset not in PRESETS:
        near = difflib.get_close_matches(preset, PRESETS, 1, 0.3)
        hint = f"; did you mean {near[0]}?" if near else "."
        raise UserError(f"there is no cleaning preset {preset!r}{hint} There are {', '.join(PRESETS)}.")
    return CleanedSource(source.name, source.tables, source.text_field, config=PRESETS[preset])


def cleaned_rows(rows: Iterable[Row], config: Config, see: Callable[[str, Cleaned], None]) -> Iterator[Row]:
    """Returns the cleaned rows that are kept. `see` is called with every text and what came of it."""
    for row in rows:
        result = clean(row.text, config)
        see(row.text, result)
        if result.text is not None:
            yield row._replace(text=result.text, begins=True, ends=True)


def to_numbers(counts: Counts) -> dict[str, int]:
    """Returns counts as numbers by name, such as `dropped words >= 50`; sums of them are the numbers of sums of counts."""
    return {
        **{name: getattr(counts, name) for name in _NUMBERS},
        **{f"dropped {rule}": count for rule, count in counts.dropped.items()},
        **{f"changed {step}": count for step, count in counts.changed.items()},
    }


def from_numbers(numbers: Mapping[str, int]) -> Counts | None:
    """Returns the counts that `to_numbers` gave; None of numbers that hold none."""
    if "records" not in numbers:
        return None
    named = {
        kind: {name.removeprefix(f"{kind} "): n for name, n in numbers.items() if name.startswith(f"{kind} ")}
        for kind in ("dropped", "changed")
    }
    records, kept, characters_in, characters_out = (numbers[name] for name in _NUMBERS)
    return Counts(records, kept, characters_in, characters_out, named["dropped"], named["changed"])

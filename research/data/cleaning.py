"""Text cleaning as one pure function: a text and a config in; the cleaned text, or the rule that dropped it, and counts out.

Steps, in order: line endings, control characters, Unicode normalisation, personal data, rules for lines, language, rules for documents.
Cleaning what was kept changes nothing: `clean(clean(text).text)` gives the same text. That fixes the order: control characters go before
normalisation, because a letter and its accent may compose once what stood between them is gone, and every rule judges the text that is kept.

    config = PRESETS["gopher"]
    counts = tally((text, clean(text, config)) for text in texts)

What C4 does and the preset `c4` does not: its list of bad words (no list of words is shipped here), citation markers, langdetect (see
`research.data.language`), and the removal of repeated spans of three sentences, which needs more than one document.

Results are the same on every machine and in every process. Python's Unicode tables decide what a letter is and how it is normalised; for
characters that a newer Unicode adds, versions of Python may differ.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from research.core.errors import UserError
from research.data.language import FUNCTION_WORDS, language
from research.data.personal import KINDS, mask
from research.data.quality import THRESHOLDS, Document, Rule, first_broken

NORMALISATIONS = ("none", "NFC", "NFKC")

_LINE_ENDING = re.compile("\r\n?|[\v\f\x1c-\x1e\x85\u2028\u2029]")
# Control characters except \n and \t, soft hyphens, zero-width spaces and byte order marks, marks and embeddings of direction, halves of
# surrogate pairs, and code points that are no characters. U+200C and U+200D stay: Persian, Hindi and emoji are spelt with them.
_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ufdd0-\ufdef"
    "\ud800-\udfff\ufffe\uffff\U000e0001\U000e0020-\U000e007f]"
)
_BLANK_LINES = re.compile(r"\n(?:[^\S\n]*\n){2,}")


@dataclass(frozen=True)
class Config:
    """What cleaning does. The defaults repair and mask, and drop only empty texts.

    `normalisation` is one of `NORMALISATIONS`; `personal` the kinds of personal data that are masked (`research.data.personal.KINDS`);
    `local_ips` whether private addresses are, too; `languages` the codes that are kept (none: all) with at least `min_confidence`; `rules`
    the rules for lines and documents, in the order in which they are asked.
    """

    normalisation: str = "NFC"
    personal: tuple[str, ...] = KINDS
    local_ips: bool = False
    languages: tuple[str, ...] = ()
    min_confidence: float = 0.5
    rules: tuple[Rule, ...] = ()

    def __post_init__(self) -> None:
        if self.normalisation not in NORMALISATIONS:
            raise UserError(f"normalisation is {self.normalisation!r}; it must be one of {', '.join(NORMALISATIONS)}.")
        if unknown := [kind for kind in self.personal if kind not in KINDS]:
            raise UserError(
                f"personal names {unknown}, which are no kinds of personal data. Known: {', '.join(KINDS)}."
            )
        if unknown := [code for code in self.languages if code not in _LANGUAGES]:
            raise UserError(f"languages names {unknown}, which are never told. Known codes: {', '.join(_LANGUAGES)}.")
        if not 0 <= self.min_confidence <= 1:
            raise UserError(f"min_confidence is {self.min_confidence}; it must be between 0 and 1.")


_LANGUAGES = (*FUNCTION_WORDS, "zh", "ja", "ko", "ru", "ar", "el", "hi", "th", "he")

PRESETS: Mapping[str, Config] = {
    "plain": Config(),
    "gopher": Config(rules=THRESHOLDS["gopher_quality"] + THRESHOLDS["gopher_repetition"]),
    "c4": Config(rules=THRESHOLDS["c4"], languages=("en",)),
    "fineweb": Config(
        rules=tuple(
            rule
            for name in ("gopher_repetition", "gopher_quality", "fineweb_c4", "fineweb")
            for rule in THRESHOLDS[name]
        ),
        languages=("en",),
    ),
}
"""Ready configs by name. C4 and FineWeb keep English, each by a classifier of its own; here `language` decides at its usual confidence."""


@dataclass(frozen=True)
class Cleaned:
    """The cleaned text, or None and the name of the rule that dropped it (its own words, as in "words >= 50"; "empty"; "language").

    `changes` says how often each step changed something: line endings replaced, control characters removed, `normalised` (1 where
    normalisation changed the text), finds masked by kind, and lines removed by rule. Steps that changed nothing are not named.
    """

    text: str | None
    dropped_by: str | None
    changes: Mapping[str, int]


def clean(text: str, config: Config = PRESETS["plain"]) -> Cleaned:
    """Returns `text` cleaned as `config` says, with what was changed. The text that is kept is never blank."""
    changes: dict[str, int] = {}
    text, changes["line_endings"] = _LINE_ENDING.subn("\n", text)
    text, changes["control_characters"] = _CONTROL.subn("", text)
    text, changes["normalised"] = _normalised(text, config.normalisation)
    text, masked = mask(text, config.personal, config.local_ips)
    text, removed = _filter_lines(text, [rule for rule in config.rules if rule.of == "line"])
    changes |= {f"masked {kind}": count for kind, count in masked.items()}
    changes |= {f"line {rule}": count for rule, count in removed.items()}
    dropped_by = _verdict(text, config)
    changes = {name: count for name, count in changes.items() if count}
    return Cleaned(text if dropped_by is None else None, dropped_by, changes)


def _normalised(text: str, form: str) -> tuple[str, int]:
    if form == "none":
        return text, 0
    new = unicodedata.normalize(form, text)  # pyright: ignore[reportArgumentType]
    return new, int(new != text)


def _filter_lines(text: str, rules: list[Rule]) -> tuple[str, dict[str, int]]:
    """The lines that pass `rules`, without white space at their ends, and how many each rule removed. Paragraphs stay apart."""
    if not rules:
        return text, {}
    removed: Counter[str] = Counter()
    kept = []
    for line in map(str.strip, text.split("\n")):
        broken = first_broken(rules, Document(line)) if line else None
        if broken is None:
            kept.append(line)
        else:
            removed[str(broken)] += 1
    return _BLANK_LINES.sub("\n\n", "\n".join(kept)).strip(), dict(removed)


def _verdict(text: str, config: Config) -> str | None:
    if not text.strip():
        return "empty"
    if config.languages:
        code, confidence = language(text)
        if code not in config.languages or confidence < config.min_confidence:
            return "language"
    broken = first_broken((rule for rule in config.rules if rule.of == "document"), Document(text))
    return None if broken is None else str(broken)


@dataclass(frozen=True)
class Counts:
    """What cleaning did to many records. `+` adds the counts of two parts, in any grouping; `changed` counts dropped records too."""

    records: int = 0
    kept: int = 0
    characters_in: int = 0
    characters_out: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)
    changed: Mapping[str, int] = field(default_factory=dict)

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(
            self.records + other.records,
            self.kept + other.kept,
            self.characters_in + other.characters_in,
            self.characters_out + other.characters_out,
            _sum(self.dropped, other.dropped),
            _sum(self.changed, other.changed),
        )

    def to_json(self) -> dict[str, Any]:
        """Returns the counts as objects of JSON, names sorted."""
        return asdict(replace(self, dropped=_sum(self.dropped), changed=_sum(self.changed)))


def _sum(*counts: Mapping[str, int]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for part in counts:
        total.update(part)
    return dict(sorted(total.items()))


def tally(results: Iterable[tuple[str, Cleaned]]) -> Counts:
    """Returns the counts over (text, what `clean` made of it)."""
    records = kept = characters_in = characters_out = 0
    dropped: Counter[str] = Counter()
    changed: Counter[str] = Counter()
    for text, cleaned in results:
        records += 1
        characters_in += len(text)
        changed.update(cleaned.changes)
        if cleaned.text is None:
            dropped[str(cleaned.dropped_by)] += 1
        else:
            kept += 1
            characters_out += len(cleaned.text)
    return Counts(records, kept, characters_in, characters_out, _sum(dropped), _sum(changed))


def require_kept(counts: Counts, source: str) -> Counts:
    """Returns `counts`. Raises UserError where no record of `source` is left, naming the rules and how many records each dropped."""
    if counts.kept:
        return counts
    if counts.records == 0:
        raise UserError(f"{source} has no records to clean. Give a source that holds text.")
    ranked = sorted(counts.dropped.items(), key=lambda item: (-item[1], item[0]))
    rules = ", ".join(f"{name!r} dropped {count}" for name, count in ranked)
    raise UserError(
        f"zero records of {source} are left after cleaning: of {counts.records}, {rules}. "
        "Check that the preset suits the language and kind of text, or leave out the rules that drop the most."
    )


def threshold_table() -> str:
    """Returns every published threshold as a table in Markdown: set of rules, what is judged, what is kept, source."""
    rows = [f"| {name} | {rule.of} | {rule} | {rule.source} |" for name, rules in THRESHOLDS.items() for rule in rules]
    return "\n".join(["| rules | of a | kept where | source |", "| --- | --- | --- | --- |", *rows])

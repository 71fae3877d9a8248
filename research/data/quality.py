"""Statistics of a document and rules over them: what Gopher, C4 and FineWeb keep, with every threshold in one table, `THRESHOLDS`.

Words. Scripts with spaces: a word is a run of characters between white space, its punctuation included. Han: every ideograph is a word, with
the punctuation behind it; so Chinese and Japanese need no segmenter, their texts have a few more words than a dictionary would find, and
n-grams of words are n-grams of ideographs. A run of Kana, Thai, Lao, Khmer or Burmese is one word. Rules that only make sense where
spaces part words (`_NEEDS_SPACES`: mean word length, English stop words) are passed over where most letters are of such scripts.

Duplicates. A line, paragraph or n-gram is a duplicate where an equal one began before it: of two equal lines, one is a duplicate. Fractions
of characters are fractions of the characters in words (n-grams) or in lines that are not blank; white space between does not count.
The papers leave both open; other implementations divide by the length of the whole text and differ by a few per cent.
"""

import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from research.core.errors import UserError
from research.data.language import SCRIPTS, letters_by_script

STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")  # Rae et al. 2021, appendix A.1.1
# Raffel et al. 2020, section 2.2
POLICY_PHRASES = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
BULLETS = ("•", "‣", "◦", "▪", "●", "○", "·", "-", "*", "–")  # the papers give no list; this one is ours
TERMINAL = tuple(".!?\"”’'」』。！？．؟۔।॥։።៕")
"""Marks that end a sentence: those of C4 (period, exclamation mark, question mark, end quotation mark) and their like in other scripts."""

_HAN = SCRIPTS["Han"]
_WORD = re.compile(rf"[{_HAN}][^\w\s]*|[^\s{_HAN}]+")
_SENTENCE_END = re.compile(r"[.!?؟۔।][\"”’')\]]*(?=\s|$)|[。！？．]", re.MULTILINE)
_ELLIPSIS = re.compile(r"\.\.\.+|…+")
_UNSPACED = re.compile(f"[{_HAN}{SCRIPTS['Kana']}{SCRIPTS['Thai']}\u0e80-\u0eff\u1000-\u109f\u1780-\u17ff]")
_SHORT_LINE = 30  # characters; Penedo et al. 2024, section 3.6


@dataclass(frozen=True)
class Document:
    """A text (or one line of it) and what the statistics share, computed when first asked for."""

    text: str

    @cached_property
    def words(self) -> list[str]:
        return _WORD.findall(self.text)

    @cached_property
    def lines(self) -> list[str]:
        """Lines that are not blank, without white space at their ends."""
        return [line.strip() for line in self.text.split("\n") if line.strip()]

    @cached_property
    def paragraphs(self) -> list[str]:
        return [part.strip() for part in re.split(r"\n\s*\n", self.text) if part.strip()]

    @cached_property
    def spaced(self) -> bool:
        """Whether at most half of the letters are of scripts that put no spaces between words."""
        unspaced = len(_UNSPACED.findall(self.text))
        others = letters_by_script(_UNSPACED.sub("", self.text))
        return 2 * unspaced <= unspaced + sum(others.values())

    @cached_property
    def repetition(self) -> dict[str, float]:
        """Characters in the most frequent n-gram (n = 2, 3, 4) and in duplicate n-grams (n = 5 to 10), as fractions; see `ngram_fractions`."""
        return ngram_fractions(self.words)


def ngram_fractions(words: Sequence[str]) -> dict[str, float]:
    """Returns `top_2gram` to `top_4gram` and `duplicate_5gram` to `duplicate_10gram`: fractions of the words' characters.

    Top: the n-gram that occurs most often, if more than once (of several, the one with most characters). Duplicate: every n-gram that
    began before. A character inside overlapping n-grams counts once. Source: Rae et al. 2021, appendix A.1.1.
    """
    lengths = np.array([len(word) for word in words], np.int64)
    ids = singles = _identify(words)
    fractions = {}
    for n in range(2, 11):
        ids = _extend(ids, singles, n)
        starts = _top_starts(ids, lengths, n) if n <= 4 else _duplicate_starts(ids)
        fractions[f"{'top' if n <= 4 else 'duplicate'}_{n}gram"] = _covered(starts, lengths, n)
    return fractions


def _identify(words: Sequence[str]) -> np.ndarray:
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(word, len(numbers)) for word in words], np.int64)


def _extend(ids: np.ndarray, words: np.ndarray, n: int) -> np.ndarray:
    """From the numbers of all (n-1)-grams and of all words to those of all n-grams: equal numbers, equal n-grams."""
    pairs = ids[:-1] * (words.max(initial=0) + 1) + words[n - 1 :]
    return np.unique(pairs, return_inverse=True)[1].reshape(-1)


def _top_starts(ids: np.ndarray, lengths: np.ndarray, n: int) -> np.ndarray:
    counts = np.bincount(ids)
    most = counts.max(initial=0)
    if most < 2:
        return np.zeros(0, np.int64)
    ends = np.concatenate([[0], np.cumsum(lengths)])
    sizes = np.where(counts[ids] == most, ends[n:] - ends[:-n], -1)
    return np.flatnonzero(ids == ids[np.argmax(sizes)])


def _duplicate_starts(ids: np.ndarray) -> np.ndarray:
    duplicate = np.ones(len(ids), bool)
    duplicate[np.unique(ids, return_index=True)[1]] = False
    return np.flatnonzero(duplicate)


def _covered(starts: np.ndarray, lengths: np.ndarray, n: int) -> float:
    covered = np.zeros(len(lengths), bool)
    for offset in range(n):
        covered[starts + offset] = True
    return float(lengths[covered].sum() / max(lengths.sum(), 1))


def _fraction(holds: Iterable[bool], of: Sequence[str]) -> float:
    return sum(holds) / len(of) if of else 0.0


def _duplicates(parts: Sequence[str]) -> float:
    return 1 - len(set(parts)) / len(parts) if parts else 0.0


def _duplicate_characters(parts: Sequence[str]) -> float:
    total = sum(map(len, parts))
    return 1 - sum(map(len, set(parts))) / total if total else 0.0


def _per_word(document: Document, symbols: int) -> float:
    return symbols / len(document.words) if document.words else 0.0


def _stop_words(document: Document) -> int:
    words = {word.lower().strip(".,;:!?\"'()[]“”‘’") for word in document.words}
    return sum(word in words for word in STOP_WORDS)


def _sentences(document: Document) -> int:
    """Ends of sentences, and one more for each line that has words behind its last."""
    return sum(sum(bool(part.strip()) for part in _SENTENCE_END.split(line)) for line in document.lines)


STATISTICS: Mapping[str, Callable[[Document], float]] = {
    "words": lambda d: len(d.words),
    "mean_word_length": lambda d: sum(map(len, d.words)) / max(len(d.words), 1),
    "hash_ratio": lambda d: _per_word(d, d.text.count("#")),
    "ellipsis_ratio": lambda d: _per_word(d, len(_ELLIPSIS.findall(d.text))),
    "bullet_lines": lambda d: _fraction((line.startswith(BULLETS) for line in d.lines), d.lines),
    "ellipsis_lines": lambda d: _fraction((line.endswith(("...", "…")) for line in d.lines), d.lines),
    "alphabetic_words": lambda d: _fraction((any(map(str.isalpha, word)) for word in d.words), d.words),
    "stop_words": _stop_words,
    "duplicate_lines": lambda d: _duplicates(d.lines),
    "duplicate_paragraphs": lambda d: _duplicates(d.paragraphs),
    "duplicate_line_characters": lambda d: _duplicate_characters(d.lines),
    "duplicate_paragraph_characters": lambda d: _duplicate_characters(d.paragraphs),
    **{f"top_{n}gram": lambda d, n=n: d.repetition[f"top_{n}gram"] for n in (2, 3, 4)},
    **{f"duplicate_{n}gram": lambda d, n=n: d.repetition[f"duplicate_{n}gram"] for n in range(5, 11)},
    "terminal_lines": lambda d: _fraction((line.endswith(TERMINAL) for line in d.lines), d.lines),
    "short_lines": lambda d: _fraction((len(line) < _SHORT_LINE for line in d.lines), d.lines),
    "sentences": _sentences,
    "javascript": lambda d: "javascript" in d.text.lower(),
    "policy": lambda d: any(phrase in d.text.lower() for phrase in POLICY_PHRASES),
    "lorem_ipsum": lambda d: "lorem ipsum" in d.text.lower(),
    "curly_brackets": lambda d: "{" in d.text,
}
"""What a rule may ask of a document, by name: counts, fractions in [0, 1], and 0 or 1 for what is there or not."""

_NEEDS_SPACES = {"mean_word_length", "stop_words"}
_BOUNDS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}


@dataclass(frozen=True)
class Rule:
    """Keep what has `statistic` `bound` `value`, as in words >= 50. `of` is what the rule judges: a whole document or each of its lines."""

    statistic: str
    bound: str
    value: float
    source: str
    of: str = "document"

    def __post_init__(self) -> None:
        for name, value, known in (
            ("statistic", self.statistic, STATISTICS),
            ("bound", self.bound, _BOUNDS),
            ("of", self.of, ("document", "line")),
        ):
            if value not in known:
                raise UserError(f"a rule's {name} is {value!r}; it must be one of {', '.join(known)}.")

    def __str__(self) -> str:
        return f"{self.statistic} {self.bound} {self.value:g}"


def keeps(rule: Rule, document: Document) -> bool:
    """Returns whether the document passes the rule. A rule that needs spaces between words passes where most letters have none."""
    if rule.statistic in _NEEDS_SPACES and not document.spaced:
        return True
    return bool(_BOUNDS[rule.bound](STATISTICS[rule.statistic](document), rule.value))


def first_broken(rules: Iterable[Rule], document: Document) -> Rule | None:
    """Returns the first of `rules` that the document breaks, or None where it passes all of them."""
    return next((rule for rule in rules if not keeps(rule, document)), None)


def measure(text: str) -> dict[str, float]:
    """Returns every statistic of `STATISTICS` of a text, by name."""
    document = Document(text)
    return {name: float(statistic(document)) for name, statistic in STATISTICS.items()}


_GOPHER_QUALITY = "Rae et al. 2021, arXiv 2112.11446, appendix A.1.1, quality filtering"
_GOPHER_TABLE = "Rae et al. 2021, arXiv 2112.11446, table A1"
_C4 = "Raffel et al. 2020, arXiv 1910.10683 (final version) and JMLR 21, section 2.2"
_FINEWEB = "Penedo et al. 2024, arXiv 2406.17557, section 3.6 and table 2"
_FINEWEB_C4 = (
    "Penedo et al. 2024, section 3.5 (C4 without terminal punctuation); values of datatrove, examples/fineweb.py"
)


def _c4(source: str, words: int, sentences: int) -> tuple[Rule, ...]:
    return (
        Rule("words", ">=", words, source, of="line"),
        Rule("javascript", "<=", 0, source, of="line"),
        Rule("policy", "<=", 0, source, of="line"),
        Rule("lorem_ipsum", "<=", 0, source),
        Rule("curly_brackets", "<=", 0, source),
        Rule("sentences", ">=", sentences, source),
    )


THRESHOLDS: Mapping[str, tuple[Rule, ...]] = {
    "gopher_quality": (
        Rule("words", ">=", 50, _GOPHER_QUALITY),
        Rule("words", "<=", 100_000, _GOPHER_QUALITY),
        Rule("mean_word_length", ">=", 3, _GOPHER_QUALITY),
        Rule("mean_word_length", "<=", 10, _GOPHER_QUALITY),
        Rule("hash_ratio", "<=", 0.1, _GOPHER_QUALITY),
        Rule("ellipsis_ratio", "<=", 0.1, _GOPHER_QUALITY),
        Rule("bullet_lines", "<=", 0.9, _GOPHER_QUALITY),
        Rule("ellipsis_lines", "<=", 0.3, _GOPHER_QUALITY),
        Rule("alphabetic_words", ">=", 0.8, _GOPHER_QUALITY),
        Rule("stop_words", ">=", 2, _GOPHER_QUALITY),
    ),
    "gopher_repetition": (
        Rule("duplicate_lines", "<=", 0.3, _GOPHER_TABLE),
        Rule("duplicate_paragraphs", "<=", 0.3, _GOPHER_TABLE),
        Rule("duplicate_line_characters", "<=", 0.2, _GOPHER_TABLE),
        Rule("duplicate_paragraph_characters", "<=", 0.2, _GOPHER_TABLE),
        Rule("top_2gram", "<=", 0.2, _GOPHER_TABLE),
        Rule("top_3gram", "<=", 0.18, _GOPHER_TABLE),
        Rule("top_4gram", "<=", 0.16, _GOPHER_TABLE),
        Rule("duplicate_5gram", "<=", 0.15, _GOPHER_TABLE),
        Rule("duplicate_6gram", "<=", 0.14, _GOPHER_TABLE),
        Rule("duplicate_7gram", "<=", 0.13, _GOPHER_TABLE),
        Rule("duplicate_8gram", "<=", 0.12, _GOPHER_TABLE),
        Rule("duplicate_9gram", "<=", 0.11, _GOPHER_TABLE),
        Rule("duplicate_10gram", "<=", 0.1, _GOPHER_TABLE),
    ),
    # The first arXiv version of the paper says 3 words and 5 sentences, and some implementations follow it. The final version and the
    # program that made C4 (tensorflow_datasets, text/c4_utils.py) say 5 words and 3 sentences.
    "c4": (Rule("terminal_lines", ">=", 1, _C4, of="line"), *_c4(_C4, words=5, sentences=3)),
    "fineweb_c4": _c4(_FINEWEB_C4, words=3, sentences=5),
    # For duplicate_line_characters the paper's section 3.6 says 0.1. Its table 2 and the program that made FineWeb (datatrove) say 0.01.
    "fineweb": (
        Rule("terminal_lines", ">=", 0.12, _FINEWEB),
        Rule("duplicate_line_characters", "<=", 0.01, _FINEWEB),
        Rule("short_lines", "<=", 0.67, _FINEWEB),
    ),
}
"""The published thresholds: what is kept, by set of rules. C4's list of bad words is not among them: no list of words is shipped here."""

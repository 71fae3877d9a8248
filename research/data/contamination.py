"""Training documents that hold parts of a benchmark: shared n-grams of words, by item and by document.

A document is contaminated by a benchmark item where the two share a run of n words, by default 13, without case and
punctuation (Brown et al. 2020, arXiv 2005.14165, appendix C; words as in `research/data/ngrams.py`, a Chinese character is a
word). That appendix also tells what to look at before documents are dropped: long documents, such as books, are often hit by
a single quoted line, and n-grams found in more than 10 documents were mostly phrases that the model should learn. `overlap`
and the counts by item show both.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from research.core.errors import UserError
from research.data.ngrams import ngram_hashes, words


@dataclass(frozen=True, eq=False)
class Benchmark:
    """An index of the n-grams of benchmark items. `items`: the words of each. `hashes`: uint64, [g], ascending, one for
    every place of an n-gram, which begins at word `starts` of item `owners` (both int64, [g])."""

    n: int
    items: tuple[tuple[str, ...], ...]
    hashes: np.ndarray
    owners: np.ndarray
    starts: np.ndarray


@dataclass(frozen=True)
class Match:
    """A document that shares n-grams with a benchmark item: the first of them in the document, the word of the document
    where it begins (from 0), and the share of the item's words that lie in a shared n-gram."""

    document: int
    item: int
    ngram: str
    position: int
    overlap: float


@dataclass(frozen=True)
class Report:
    """What was found in `documents` documents: matches in the order of documents, then of items."""

    documents: int
    matches: tuple[Match, ...]


def index_benchmark(texts: Iterable[str], n: int = 13) -> Benchmark:
    """Returns the index of the n-grams of benchmark items. Leave out what all items share, such as a prompt around them.

    An item of fewer than n words has no n-gram and is never found; `counts` tells how many. Brown et al. chose n for each
    benchmark as the 5th percentile of the lengths of its items in words, at least 8 and at most 13.
    Memory: 24 bytes an n-gram, and the words. Raises UserError for an n below 1 and where no item has n words.
    """
    if n < 1:
        raise UserError(f"n-grams of {n} words, expected at least 1")
    items = tuple(tuple(words(text)) for text in texts)
    parts = [ngram_hashes(item, n) for item in items]
    sizes = [len(part) for part in parts]
    if not sum(sizes):
        raise UserError(f"none of the {len(items)} benchmark items has {n} words; give a smaller n")
    hashes = np.concatenate(parts)
    order = np.argsort(hashes, kind="stable")
    owners = np.repeat(np.arange(len(items)), sizes)
    starts = np.concatenate([np.arange(size) for size in sizes])
    return Benchmark(n, items, hashes[order], owners[order], starts[order])


def find(benchmark: Benchmark, document: int, text: str) -> tuple[Match, ...]:
    """Returns how `text`, the training document of that number, overlaps benchmark items, in their order; empty where it
    is clean. Hashes only propose: the words themselves are compared, so that no collision finds anything."""
    n, tokens = benchmark.n, words(text)
    hashes = ngram_hashes(tokens, n)
    first = np.searchsorted(benchmark.hashes, hashes)
    hits = np.flatnonzero(benchmark.hashes[np.minimum(first, benchmark.hashes.size - 1)] == hashes)
    last = np.searchsorted(benchmark.hashes, hashes[hits], "right")
    positions: dict[int, int] = {}
    covered: dict[int, np.ndarray] = {}
    for position, low, high in zip(hits.tolist(), first[hits].tolist(), last.tolist(), strict=True):
        ngram = tuple(tokens[position : position + n])
        for item, start in zip(benchmark.owners[low:high].tolist(), benchmark.starts[low:high].tolist(), strict=True):
            if benchmark.items[item][start : start + n] == ngram:
                positions.setdefault(item, position)
                covered.setdefault(item, np.zeros(len(benchmark.items[item]), bool))[start : start + n] = True
    return tuple(
        Match(document, item, " ".join(tokens[at : at + n]), at, float(covered[item].mean()))
        for item, at in sorted(positions.items())
    )


def scan(benchmark: Benchmark, documents: Iterable[tuple[int, str]]) -> Report:
    """Returns the report of training documents, given as (number, text) and read once."""
    seen, matches = 0, []
    for number, text in documents:
        seen += 1
        matches += find(benchmark, number, text)
    return merge([Report(seen, tuple(matches))])


def merge(reports: Iterable[Report]) -> Report:
    """Returns one report of several on different documents and the same benchmark; their order does not matter."""
    reports = list(reports)
    matches = [match for report in reports for match in report.matches]
    matches.sort(key=lambda match: (match.document, match.item))
    return Report(sum(report.documents for report in reports), tuple(matches))


def contaminated(report: Report) -> np.ndarray:
    """Returns the numbers of the documents with a match, ascending: int64, [d]."""
    return np.unique(np.array([match.document for match in report.matches], np.int64))


def counts(benchmark: Benchmark, report: Report) -> dict:
    """Returns the counts of a report, ready for JSON: documents read and contaminated, items, items too short for an n-gram,
    items found, and for each item found (in order) its number, the documents that hold a part of it, and the largest share
    of its words that one of them covers."""
    by_item: dict[int, list[float]] = {}
    for match in report.matches:
        by_item.setdefault(match.item, []).append(match.overlap)
    return {
        "documents": report.documents,
        "contaminated": len(contaminated(report)),
        "items": len(benchmark.items),
        "too_short": sum(len(item) < benchmark.n for item in benchmark.items),
        "found": len(by_item),
        "by_item": [
            {"item": item, "documents": len(overlaps), "overlap": max(overlaps)}
            for item, overlaps in sorted(by_item.items())
        ],
    }

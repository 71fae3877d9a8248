"""Exact and near duplicates of a stream of texts: which records to keep, and which kept record each dropped one repeats.

Exact duplicates have the same BLAKE2b-128 digest. Near duplicates are found by MinHash (Broder 1997, "On the resemblance and
containment of documents"): the share of equal places in two signatures estimates the Jaccard similarity of the two sets of
n-grams. Signatures are cut into b bands of r places; two records are candidates where a whole band is equal, which happens
to a pair of similarity s with probability 1 - (1 - s^r)^b. Candidates, or those of them whose true similarity reaches a
threshold, are edges of a graph, and the first record of each connected component is kept (NearDup of Lee et al. 2022,
arXiv 2107.06499, section 4.2). The defaults, 5-grams of words and 14 bands of 8, are those of FineWeb (Penedo et al. 2024,
arXiv 2406.17557, section 3.4), which aims at pairs that are at least 75% similar and does not verify.

A corpus can be hashed in parts: `digests` and `signatures` of the parts, concatenated in the order of the records, are those
of the whole. Nothing here depends on the process, the machine or the hash seed.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Literal

import numpy as np

from research.core.errors import UserError
from research.data.ngrams import ngram_hashes, words

_SEED = 1  # of the permutations of MinHash
_EMPTY = np.uint32(0xFFFFFFFF)  # what datasketch holds in every place of the signature of an empty set
_LEAST_RECALL = 0.5  # a threshold that fewer of its pairs would reach than miss is refused


@dataclass(frozen=True, eq=False)
class Kept:
    """What deduplication keeps of n records. `kept`: bool, [n]. `repeats`: int64, [n], the kept record that each record
    repeats, which is itself where it is kept, and always the first of its cluster."""

    kept: np.ndarray
    repeats: np.ndarray


@dataclass(frozen=True)
class Counts:
    """Counts of one deduplication. `clusters` are those of two records or more; `largest` is the size of the largest."""

    records: int
    kept: int
    dropped: int
    clusters: int
    largest: int


@dataclass(frozen=True)
class Bands:
    """How near duplicates are looked for: n-grams of `ngram` words, `bands` bands of `rows` places of the signature."""

    ngram: int = 5
    bands: int = 14
    rows: int = 8

    def __post_init__(self):
        for name, value in dataclasses.asdict(self).items():
            if not isinstance(value, int) or value < 1:
                raise UserError(f"{name} of the bands is {value!r}, expected a whole number of at least 1")


def exact(texts: Iterable[str], form: Literal["none", "folded"] = "none") -> Kept:
    """Returns which of `texts` to keep where equal ones (after `form`, see `digests`) are one: the first stays.

    Reads the texts once. Memory: 16 bytes a record, and about 50 more while they are sorted. Different texts would be
    taken for equal with probability below 2^-60 for 10^10 records.

    Raises UserError for an unknown form and for a record that is not text.
    """
    return equal_rows(digests(texts, form))


def digests(texts: Iterable[str], form: Literal["none", "folded"] = "none") -> np.ndarray:
    """Returns the BLAKE2b-128 digests of `texts` in UTF-8: uint64, [n, 2].

    `form` "none" hashes a text as it is; "folded" folds case and makes every run of whitespace one space, none at the ends.
    Raises UserError for an unknown form and for a record that is not text.
    """
    if form not in ("none", "folded"):
        raise UserError(f"unknown form {form!r} of texts to compare; expected 'none' or 'folded'")
    buffer = bytearray()
    for text in _checked(texts):
        if form == "folded":
            text = " ".join(text.casefold().split())
        buffer += blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
    return np.frombuffer(buffer, "<u8").reshape(-1, 2)


def equal_rows(rows: np.ndarray) -> Kept:
    """Returns which of the rows of `digests`, [n, 2], to keep where equal rows are one: the first stays."""
    repeats = np.arange(len(rows))
    for group in _groups(rows):
        repeats[group[1:]] = group[0]
    return _kept(repeats)


def near(texts: Iterable[str], bands: Bands = Bands(), threshold: float | None = None) -> Kept:
    """Returns which of `texts` to keep where near duplicates are one: the first record of each connected component of pairs
    that share a band and, where `threshold` is given, whose n-grams have a Jaccard similarity of at least that.

    A text of fewer words than `ngram` is one n-gram; a text without a word repeats nothing and is kept. Two records of one
    component need not be similar themselves: a third may link them (as in FineWeb, section 3.4).

    Reads the texts once, and once more where `threshold` is given. Memory: the signature, 4 x bands x rows bytes a record,
    and about 330 more while records are grouped (780 in all by default); with a threshold also 8 bytes for every different
    n-gram of the records that share a band with another. Time with a threshold is quadratic in records that share a band
    without being similar, and in exact duplicates beside such a record: drop those first.

    Raises UserError where datasketch is missing, for a record that is not text, for a threshold that the bands cannot reach
    (they would find fewer than half of the pairs just at it), and for an iterator with a threshold, as it reads only once;
    ValueError where `texts` gives another number of records the second time.
    """
    if threshold is None:
        return cluster(signatures(texts, bands), bands)
    _check_threshold(threshold, bands)
    if iter(texts) is texts:
        raise UserError(
            "a threshold reads the texts twice, and an iterator gives them once; give a list, or an object whose "
            "__iter__ starts again, or no threshold"
        )
    table = signatures(texts, bands)
    return cluster(table, bands, _similar(texts, table, bands, threshold))


def signatures(texts: Iterable[str], bands: Bands = Bands()) -> np.ndarray:
    """Returns the MinHash signatures of `texts`: uint32, [n, bands x rows]; all ones where a text has no word.

    Raises UserError where datasketch is missing and for a record that is not text.
    """
    try:
        from datasketch import MinHash  # an extra, and a second to import
    except ImportError as error:
        raise UserError("near duplicates need the package datasketch: pip install 'purestep[dedup]'.") from error
    places = bands.bands * bands.rows
    sketch = MinHash(places, seed=_SEED, hashfunc=int, scheme="affine32")
    buffer = bytearray()
    for text in _checked(texts):
        sketch.clear()
        sketch.update_batch((_shingles(text, bands.ngram) & _EMPTY).tolist())
        buffer += sketch.digest().astype("<u4").tobytes()
    return np.frombuffer(buffer, "<u4").reshape(-1, places)


def cluster(table: np.ndarray, bands: Bands = Bands(), similar: Callable[[int, int], bool] | None = None) -> Kept:
    """Returns which records to keep of those whose `signatures` are `table`, [n, bands x rows].

    Two records are linked where a band is equal and, where `similar` is given, it says so of their indices; the first of
    each connected component is kept.
    """
    parents = list(range(len(table)))
    for members in _buckets(table, bands):
        _link(members.tolist(), parents, similar or (lambda first, second: True))
    return _kept(np.array([_root(parents, index) for index in range(len(parents))], np.int64))


def candidate_probability(similarity: Any, bands: int, rows: int) -> np.ndarray:
    """Returns the probability 1 - (1 - s^rows)^bands that two records of Jaccard similarity s share a band, elementwise
    (Leskovec, Rajaraman and Ullman, "Mining of Massive Datasets", section 3.4.2)."""
    return 1 - (1 - np.asarray(similarity, np.float64) ** rows) ** bands


def jaccard(first: str, second: str, n: int = 5) -> float:
    """Returns the Jaccard similarity of the sets of n-grams of words of two texts; 0 where neither has a word."""
    return _jaccard(np.unique(_shingles(first, n)), np.unique(_shingles(second, n)))


def counts(result: Kept) -> Counts:
    """Returns the counts of a result; `dataclasses.asdict` of them is JSON."""
    sizes = np.bincount(result.repeats)
    kept = int(result.kept.sum())
    return Counts(
        records=len(result.kept),
        kept=kept,
        dropped=len(result.kept) - kept,
        clusters=int((sizes > 1).sum()),
        largest=int(sizes.max(initial=0)),
    )


def merge_counts(parts: Iterable[Counts]) -> Counts:
    """Returns the counts of several parts that were deduplicated each by itself."""
    parts = list(parts)
    summed = {name: sum(getattr(part, name) for part in parts) for name in ("records", "kept", "dropped", "clusters")}
    return Counts(**summed, largest=max((part.largest for part in parts), default=0))


def _checked(texts: Iterable[str]) -> Iterator[str]:
    if isinstance(texts, str):
        raise UserError("the texts are one string, expected a list or another iterable of strings")
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise UserError(f"record {index} is {type(text).__name__}, expected text (str)")
        yield text


def _check_threshold(threshold: float, bands: Bands) -> None:
    if not 0 < threshold <= 1:
        raise UserError(f"the threshold is {threshold!r}, expected a Jaccard similarity above 0 and at most 1")
    found = float(candidate_probability(threshold, bands.bands, bands.rows))
    if found < _LEAST_RECALL:
        least = (1 - (1 - _LEAST_RECALL) ** (1 / bands.bands)) ** (1 / bands.rows)
        raise UserError(
            f"{bands.bands} bands of {bands.rows} rows find only {found:.1%} of the pairs of similarity {threshold}; "
            f"give a threshold of at least {least:.3f}, more bands or fewer rows"
        )


def _shingles(text: str, n: int) -> np.ndarray:
    tokens = words(text)
    return ngram_hashes(tokens, max(min(n, len(tokens)), 1))


def _jaccard(first: np.ndarray, second: np.ndarray) -> float:
    shared = np.intersect1d(first, second, assume_unique=True).size
    return shared / max(first.size + second.size - shared, 1)


def _similar(texts: Iterable[str], table: np.ndarray, bands: Bands, threshold: float) -> Callable[[int, int], bool]:
    """Whether two candidates have a Jaccard similarity of at least `threshold`, of hashes read from `texts` here."""
    wanted = np.zeros(len(table), bool)
    for members in _buckets(table, bands):
        wanted[members] = True
    shingles = {
        index: np.unique(_shingles(text, bands.ngram))
        for index, (text, is_wanted) in enumerate(zip(_checked(texts), wanted, strict=True))
        if is_wanted
    }
    return lambda first, second: _jaccard(shingles[first], shingles[second]) >= threshold


def _buckets(table: np.ndarray, bands: Bands) -> Iterator[np.ndarray]:
    """The indices, ascending, of two or more records that share a band, for every such band."""
    present = np.flatnonzero(table.min(axis=1) != _EMPTY)
    for band in range(bands.bands):
        for group in _groups(table[present, band * bands.rows : (band + 1) * bands.rows]):
            yield present[group]


def _groups(rows: np.ndarray) -> Iterator[np.ndarray]:
    """The indices, ascending, of two or more equal rows."""
    order = np.lexsort(rows.T)  # stable
    ordered = rows[order]
    new = np.ones(len(rows), bool)
    new[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    bounds = np.append(np.flatnonzero(new), len(rows))
    for place in np.flatnonzero(np.diff(bounds) > 1):
        yield order[bounds[place] : bounds[place + 1]]


def _link(members: list[int], parents: list[int], similar: Callable[[int, int], bool]) -> None:
    """Unites the clusters of those members of a bucket that are similar. Members of one cluster are not compared."""
    clusters: list[list[int]] = []
    for member in members:
        joined, others = [member], []
        for cluster in clusters:
            known = _root(parents, cluster[0]) == _root(parents, member)
            if known or any(similar(other, member) for other in cluster):
                _unite(parents, cluster[0], member)
                cluster.extend(joined)
                joined = cluster
            else:
                others.append(cluster)
        clusters = [*others, joined]


def _root(parents: list[int], index: int) -> int:
    while parents[index] != index:
        parents[index] = parents[parents[index]]
        index = parents[index]
    return index


def _unite(parents: list[int], first: int, second: int) -> None:
    """Makes one cluster of two; the smaller of their roots, the first record of both, is its root."""
    low, high = sorted((_root(parents, first), _root(parents, second)))
    parents[high] = low


def _kept(repeats: np.ndarray) -> Kept:
    return Kept(repeats == np.arange(len(repeats)), repeats)

"""Blank filling as GLM-130B learns it (arXiv 2210.02414, section 2.2; GLM, arXiv 2103.10360, section 2.1), as batches for the loss of tasks/lm.py.

A row is part A, a text with blanks, then part B, what the blanks held. Here the text is "a b c d e f g" with "c" and "e f" hidden:

    tokens     a  b  [M] d  [M] g   [S] e  f   [S] c        [M] a mask, [S] the start, [E] the end of a blank (model/blanks.py)
    targets    -  -  -   -  -   -   e   f  [E] c   [E]      weight 0 in part A and behind part B, 1 in part B
    positions  0  1  2   3  4   5   4   4  4   2   2        those of the mask; after a long blank's mask they run on
    prefix     6: every token sees part A, part B is seen from the left alone

Of the rows, 30% have short blanks: lengths drawn from Poisson(3), 0 left out, until they make 15% of the text; the last is cut to fit. Their places
are uniform among all in which no two touch, their order in part B is random. The others have one long blank at the end whose length is
uniform. A row takes as much of its window as fits, so that all rows are full: a long blank ends where its row does, and a model learns to end there.

What is hidden is a function of (seed, number of the row in the run), and of the number of the row alone in evaluation.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator

import numpy as np

from research.core.config import check_choices, require
from research.core.errors import UserError
from research.data.loader import Batch, ByIndex, ByStep
from research.model.blanks import BlankIds

SHORTEST_ROW = 3  # one token of text, its mask and the start of its blank


@dataclasses.dataclass(frozen=True)
class InfillConfig:
    """What is hidden. The defaults are GLM-130B's."""

    short: float = 0.3  # share of the rows that have short blanks; the others have one long blank at their end
    hidden: float = 0.15  # share of a row's text that its short blanks hide
    mean_length: float = 3.0  # of the Poisson distribution of short blanks' lengths, in tokens

    def __post_init__(self):
        check_choices(self, "task.infill")
        require(0 <= self.short <= 1, "task.infill.short", self.short, "a share from 0 to 1")
        require(0 < self.hidden <= 0.5, "task.infill.hidden", self.hidden, "a share in (0, 0.5]: blanks must not touch")
        require(0 < self.mean_length <= 1000, "task.infill.mean_length", self.mean_length, "a number in (0, 1000]")


@dataclasses.dataclass(frozen=True, eq=False)
class Blanked:
    """Batches with blanks of batches of text, training's or evaluation's, with as many rows of as many tokens.

    Calling it with a step gives `tokens`, `targets` and `positions` int32 [B, T], `weights` float32 [B, T] and `prefix` int32 [B].
    Raises UserError for rows of fewer than 3 tokens.
    """

    text: ByStep | ByIndex
    ids: BlankIds
    config: InfillConfig = InfillConfig()
    seed: int = 0

    def __post_init__(self):
        if self.text.context < SHORTEST_ROW:
            raise UserError(
                f"rows of {self.text.context} tokens have no room for a blank; make sequence_length at least {SHORTEST_ROW}"
            )

    @property
    def batch_size(self) -> int:
        return self.text.batch_size

    def rows(self, process_index: int, process_count: int) -> "Blanked":
        """The same batches, of which this process makes only its rows."""
        return dataclasses.replace(self, text=self.text.rows(process_index, process_count))

    def __len__(self) -> int:
        assert isinstance(self.text, ByIndex), "training has no end of its own"
        return len(self.text)

    def __iter__(self) -> Iterator[Batch]:
        return (self(index) for index in range(len(self)))

    def __call__(self, step: int) -> Batch:
        batch = self.text(step)
        texts = np.concatenate([batch["tokens"][:, :1], batch["targets"]], axis=1)
        known = (batch["weights"] > 0).sum(axis=1)
        part, parts = self.text.part
        first = step * self.batch_size + part * self.batch_size // parts
        rows = [text[: n + 1] if n else text[:0] for text, n in zip(texts, known, strict=True)]
        made = [
            blanked_row(row, self.text.context, self.ids, self.config, (self.seed, first + i))
            for i, row in enumerate(rows)
        ]
        return {name: np.stack([row[name] for row in made]) for name in made[0]}


def blanked_row(text: np.ndarray, T: int, ids: BlankIds, config: InfillConfig, entropy: tuple[int, ...]) -> Batch:
    """The row of T tokens made of the beginning of `text` [n], as drawn from `entropy`: the arrays of a batch, without B.

    No text gives a row of weight 0.
    """
    draw = np.random.default_rng(entropy)
    if len(text) == 0:
        return _padded(text, text, text, text, T)
    if draw.random() < config.short:
        n, lengths = short_lengths(len(text), T, config, draw)
        slots = draw.choice(n - lengths.sum() + 1, len(lengths), replace=False)
        return lay_out(text[:n], slots, lengths, ids, T)
    n = min(T - 2, len(text))
    hidden = draw.integers(1, n + 1)
    return lay_out(text[:n], np.array([n - hidden]), np.array([hidden]), ids, T, long=True)


def short_lengths(n: int, T: int, config: InfillConfig, draw: np.random.Generator) -> tuple[int, np.ndarray]:
    """`(tokens of text, lengths of blanks)` for a row of T tokens from a text of n: the share of that text, up to rounding, in blanks
    that leave it room, each of which takes its mask and its start besides its tokens."""
    drawn = iter(1 + np.searchsorted(_cumulated(config.mean_length), draw.random(T)))
    lengths: list[int] = []

    def text_beside(blanks: int) -> int:
        return min(n, T - 2 * blanks)

    def lacking() -> int:
        """How much one more blank should hide."""
        return max(1, round(config.hidden * text_beside(len(lengths) + 1))) - sum(lengths)

    while (left := lacking()) > 0:
        lengths.append(min(int(next(drawn)), left))
    return text_beside(len(lengths)), np.array(lengths)


@functools.cache
def _cumulated(mean: float) -> np.ndarray:
    """The distribution function of Poisson's distribution without 0, at 1, 2, 3, ..."""
    k = np.arange(1, math.ceil(mean + 12 * math.sqrt(mean) + 12))
    logs = k * math.log(mean) - np.array([math.lgamma(i + 1) for i in k])
    return np.cumsum(np.exp(logs - logs.max())) / np.exp(logs - logs.max()).sum()


def lay_out(
    text: np.ndarray, slots: np.ndarray, lengths: np.ndarray, ids: BlankIds, T: int, long: bool = False
) -> Batch:
    """A row of T tokens. Blank k hides `lengths[k]` tokens of `text` behind `slots[k]` that stay; slots differ. Part B has them in the
    order given. `long`: the one blank is a long one."""
    order = np.argsort(slots)
    starts, masks = np.empty_like(slots), np.empty_like(slots)
    starts[order] = slots[order] + np.cumsum(lengths[order]) - lengths[order]
    masks[order] = slots[order] + np.arange(len(slots))
    sizes = lengths + 1
    within = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    source = np.repeat(starts, sizes) + within  # of each target, in the text
    first, last = within == 0, within == np.repeat(lengths, sizes)
    stays = np.ones(len(text), bool)
    stays[source[~last]] = False
    part_a = np.insert(text[stays], slots[order], ids.long_mask if long else ids.mask)
    part_b = np.where(first, ids.start, text[source - 1])
    targets = np.where(last, ids.end, text[np.where(last, 0, source)])
    return _padded(part_a, part_b, targets, np.repeat(masks, sizes) + (within + 1 if long else 0), T)


def _padded(part_a: np.ndarray, part_b: np.ndarray, targets: np.ndarray, positions: np.ndarray, T: int) -> Batch:
    """The row of T tokens of both parts, zeros of weight 0 behind them."""
    prefix, end = len(part_a), len(part_a) + len(part_b)
    row = {name: np.zeros(T, np.int32) for name in ("tokens", "targets", "positions")}
    row["tokens"][:end] = np.concatenate([part_a, part_b])
    row["targets"][prefix:end] = targets
    row["positions"][:end] = np.concatenate([np.arange(prefix), positions])
    weights = np.zeros(T, np.float32)
    weights[prefix:end] = 1
    return {**row, "weights": weights, "prefix": np.array(prefix, np.int32)}

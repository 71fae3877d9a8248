"""The batches of a corpus: windows or packed documents, of one source or of a mixture, to train on and to evaluate with."""

from dataclasses import replace
from typing import Literal

from research.core.errors import UserError
from research.data.loader import Batches, ByIndex, ByStep, EvalBatches
from research.data.mixed import MixedBatches, MixedCorpus
from research.data.packed import PackedBatches, PackedEvalBatches
from research.data.tokens import Corpus

Rows = Literal["windows", "packed"]


def training(
    corpus: Corpus, rows: Rows, batch_size: int, context: int, seed: int, damaged: str = "fatal", room: int = 0
) -> ByStep:
    """Returns the training batches of a corpus, whole. In a mixture every source is shuffled by the same seed. Packed rows leave `room` for
    each document. Raises UserError where the corpus is too short."""

    def of(part: Corpus) -> ByStep:
        if rows == "packed":
            return PackedBatches(part.train, batch_size, context, seed, damaged=damaged, room=room)
        return Batches(part.train, batch_size, context, seed, damaged=damaged)

    if not isinstance(corpus, MixedCorpus):
        return of(corpus)
    made = []
    for name, part in zip(corpus.names, corpus.parts, strict=True):
        try:
            made.append(of(part))
        except UserError as error:
            raise UserError(f"in the mixture's source {name}, {error}") from error
    return MixedBatches(made, corpus.stages_of_records(context), batch_size)


def held_out(corpus: Corpus, rows: Rows, tokens: int, context: int, shards: int, limit: int | None = None,
             damaged: str = "fatal") -> ByIndex:  # fmt: skip
    """Returns the held-out batches of a corpus, whole, of about so many tokens in rows that split over `shards` devices; with a `limit` at most
    so many. Raises UserError where the corpus is too short."""
    every = (PackedEvalBatches if rows == "packed" else EvalBatches)(corpus.eval, 1, context, damaged=damaged)
    size = min(max(1, tokens // context), every.count)
    return replace(every, batch_size=-(-size // shards) * shards, limit_batches=limit)

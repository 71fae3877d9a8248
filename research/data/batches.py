"""The batches of a corpus: windows or packed documents, of one source or of a mixture, or examples; to train on and to evaluate with."""

from dataclasses import replace
from typing import Literal

from research.core.errors import UserError
from research.data.examples import ExampleBatches, ExampleRows, Examples
from research.data.fim import FilledIn, sentinels_of
from research.data.loader import Batches, ByIndex, ByStep, EvalBatches
from research.data.mixed import MixedBatches, MixedCorpus
from research.data.packed import PackedBatches, PackedEvalBatches
from research.data.tokens import Corpus

Rows = Literal["windows", "packed"]


def training(
    corpus: Corpus | Examples,
    rows: Rows,
    batch_size: int,
    context: int,
    seed: int,
    damaged: str = "fatal",
    fim_rate: float | None = None,
) -> ByStep | FilledIn:
    """Returns the training batches of a corpus, whole. In a mixture every source is shuffled by the same seed. A share `fim_rate` of the documents is
    rearranged to fill in the middle. Raises UserError where the corpus is too short, and where its tokeniser has not the tokens that this takes."""
    if isinstance(corpus, Examples):
        return ExampleBatches(corpus.train, batch_size, context, seed)
    if fim_rate is None:
        return _plain(corpus, rows, batch_size, context, seed, damaged, 0)
    sentinels = sentinels_of(corpus.tokenizer)
    text = _plain(corpus, rows, batch_size, context, seed, damaged, sentinels.count)
    return FilledIn(text, sentinels, fim_rate, seed, corpus.tokenizer.eot)


def _plain(corpus: Corpus, rows: Rows, batch_size: int, context: int, seed: int, damaged: str, room: int) -> ByStep:
    """Batches of text as it is; packed rows leave `room` for each document."""

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


def held_out(corpus: Corpus | Examples, rows: Rows, tokens: int, context: int, shards: int, limit: int | None = None,
             damaged: str = "fatal") -> ByIndex:  # fmt: skip
    """Returns the held-out batches of a corpus, whole, of about so many tokens in rows that split over `shards` devices; with a `limit` at most
    so many. Raises UserError where the corpus is too short."""
    if isinstance(corpus, Examples):
        every: ByIndex = ExampleRows(corpus.eval, 1, context)
    else:
        every = (PackedEvalBatches if rows == "packed" else EvalBatches)(corpus.eval, 1, context, damaged=damaged)
    size = min(max(1, tokens // context), every.count)
    return replace(every, batch_size=-(-size // shards) * shards, limit_batches=limit)

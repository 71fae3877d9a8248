"""Metrics of texts against references: BLEU and chrF of translations by sacrebleu, error rates of transcripts by jiwer.

Both libraries come with `pip install 'purestep[tasks]'`.
"""

import importlib
from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np

from research.core.errors import UserError
from research.tasks.metrics import checks
from research.tasks.metrics.estimate import Estimate, Resampling, bootstrap_sums, ratio

Tokeniser = Literal["13a", "intl", "zh", "char", "none"]


def bleu(
    hypotheses: Sequence[str],
    references: Sequence[str | Sequence[str]],
    tokenise: Tokeniser = "13a",
    how: Resampling = Resampling(),
) -> Estimate:
    """Corpus BLEU in points, 0 to 100 (Papineni et al. 2002), as sacrebleu computes it for detokenised texts: mixed case, orders 1 to 4, exponential
    smoothing (Post 2018).

    A sentence has one reference or several. `tokenise` is sacrebleu's: `13a` for most languages, `zh` for Chinese, whose characters
    stand for words. Its name belongs to the number. The bootstrap draws sentences. Raises UserError for an unknown one.
    """
    if tokenise not in get_args(Tokeniser):
        raise UserError(f"BLEU tokenised by {tokenise!r}; expected one of {', '.join(get_args(Tokeniser))}")
    metric = _library("sacrebleu.metrics", "BLEU").BLEU(tokenize=tokenise, force=True)
    return _by_sentences(metric, hypotheses, references, how)


def chrf(
    hypotheses: Sequence[str],
    references: Sequence[str | Sequence[str]],
    word_order: int = 0,
    how: Resampling = Resampling(),
) -> Estimate:
    """Corpus chrF2 in points, 0 to 100 (Popović 2015), as sacrebleu computes it: characters of orders 1 to 6, whitespace left out, recall counting
    twice. `word_order` 2 makes it chrF++ (Popović 2017). The bootstrap draws sentences."""
    if word_order < 0:
        raise UserError(f"words of orders up to {word_order}: expected 0 for chrF, 2 for chrF++")
    metric = _library("sacrebleu.metrics", "chrF").CHRF(word_order=word_order)
    return _by_sentences(metric, hypotheses, references, how)


def _by_sentences(
    metric: Any, hypotheses: Sequence[str], references: Sequence[str | Sequence[str]], how: Resampling
) -> Estimate:
    """The score of the sentences' statistics, which add up: sacrebleu computes them once, and a resample is a sum of them."""
    _check(hypotheses, references)
    several = [[r] if isinstance(r, str) else list(r) for r in references]
    for i, given in enumerate(several):
        if not given:
            raise UserError(f"sentence {i} has no reference; give one or more")
    streams = [
        [given[j] if j < len(given) else None for given in several] for j in range(max(map(len, several)))
    ]  # fmt: skip
    # how sacrebleu's own significance tests see a metric: statistics of sentences, and the score of their sum
    rows = np.array(metric._extract_corpus_statistics(list(hypotheses), streams))

    def score(total):
        return min(100.0, metric._compute_score_from_stats(total.tolist()).score)  # a perfect one may round to above

    return bootstrap_sums(rows, score, how, whole=100.0)


def word_error_rate(hypotheses: Sequence[str], references: Sequence[str], how: Resampling = Resampling()) -> Estimate:
    """WER: words to substitute, delete and insert on the shortest way from the references to the hypotheses, over the words of the
    references, as a share; above 1 where much is inserted.

    Words stand between spaces; case and punctuation count, so normalise both sides alike first. The bootstrap draws utterances.
    Raises UserError where no reference has a word.
    """
    return error_rate_of_sums(*_errors(hypotheses, references, "wer_default"), how)


def character_error_rate(
    hypotheses: Sequence[str], references: Sequence[str], how: Resampling = Resampling()
) -> Estimate:
    """CER: as `word_error_rate`, with characters for words, spaces within a text included. The measure for Chinese."""
    return error_rate_of_sums(*_errors(hypotheses, references, "cer_default"), how)


def error_rate_of_sums(errors: Any, lengths: Any, how: Resampling = Resampling()) -> Estimate:
    """An error rate from each utterance's errors (n,) and length of its reference (n,), which shards may give in any order."""
    errors, lengths = checks.floats(errors, "errors", finite=True), checks.floats(lengths, "lengths", finite=True)
    checks.same_length(errors, lengths, "counts of errors", "lengths")
    if (errors < 0).any() or (lengths < 0).any() or not lengths.any():
        raise UserError(
            "an error rate of negative counts, or of references without any length; expected a text that says something"
        )
    return ratio(errors, lengths, how, whole=1.0)


def _errors(hypotheses: Sequence[str], references: Sequence[str], split: str) -> tuple[np.ndarray, np.ndarray]:
    """Each utterance's errors (n,) and length of its reference (n,), split as jiwer does by default."""
    jiwer = _library("jiwer", "an error rate")
    _check(hypotheses, references)
    rule = getattr(jiwer, split)
    sides = [[rule([text])[0] for text in texts] for texts in (hypotheses, references)]
    pairs = list(zip(*sides, strict=True))
    found = [_distance(jiwer, one, other) for one, other in pairs]
    return np.array(found), np.array([len(other) for _, other in pairs])


def _distance(jiwer: Any, hypothesis: list[str], reference: list[str]) -> int:
    """Edits between two lists of words or characters. jiwer 3 refuses an empty reference, of which all is inserted."""
    if not reference:
        return len(hypothesis)
    as_it_is = lambda lists: lists  # noqa: E731
    found = jiwer.process_words([reference], [hypothesis], as_it_is, as_it_is)
    return found.substitutions + found.deletions + found.insertions


def _check(hypotheses: Sequence[str], references: Sequence[Any]) -> None:
    """Raises UserError for one text where several are expected, and for texts without a partner."""
    for what, texts in (("hypotheses", hypotheses), ("references", references)):
        if isinstance(texts, str):
            raise UserError(f"{what} are one text, {texts[:40]!r}; expected a list of texts")
    checks.same_length(hypotheses, references, "hypotheses", "references")
    if not len(hypotheses):
        raise UserError("no texts to score; expected at least two")


def _library(name: str, what: str) -> Any:
    """An imported module. Raises UserError where it is not installed."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise UserError(f"{what} needs {error.name}, which is not installed: pip install 'purestep[tasks]'") from error

"""BLEU and chrF are sacrebleu's, error rates jiwer's, with the intervals of their sentences."""

import builtins
import sys

import jiwer
import numpy as np
import pytest
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st

from research.core.errors import UserError
from research.tasks import metrics
from research.tasks.metrics import Resampling, wilson

QUICK = Resampling(resamples=60)
REFERENCES = [
    "The cat sat on the mat, and the dog lay by the door.",
    "It was raining when we left the house this morning.",
    "He reads a book every evening before he goes to bed.",
    "Prices rose by 3.5% in the second quarter of the year.",
    "Nobody knows what the weather will be like tomorrow.",
]
HYPOTHESES = [
    "The cat sat on a mat and the dog lay at the door.",
    "It rained when we left the house in the morning.",
    "He reads one book every evening before he goes to bed.",
    "Prices rose by 3.5% in the second quarter of the year.",
    "No one knows how the weather is tomorrow.",
]
CHINESE = ["今天天气很好，我们去公园散步。", "他每天晚上睡觉前看一本书。", "价格在第二季度上涨了3.5%。"]
CHINESE_HYPOTHESES = ["今天天气不错，我们去公园走走。", "他每晚睡前看一本书。", "第二季度价格上涨了3.5%。"]


@pytest.mark.parametrize("tokenise", ["13a", "intl", "zh", "char", "none"])
def test_bleu_is_sacrebleus(tokenise):
    for ours, theirs in ((HYPOTHESES, REFERENCES), (CHINESE_HYPOTHESES, CHINESE)):
        found = metrics.bleu(ours, theirs, tokenise, QUICK)
        assert found.value == pytest.approx(sacrebleu.corpus_bleu(ours, [theirs], tokenize=tokenise).score, rel=1e-12)
        assert 0 <= found.low <= found.value <= found.high <= 100 and found.count == len(ours)


def test_chinese_needs_its_tokenisation():
    """Without spaces a sentence is one word, and nothing matches."""
    by_words, by_characters = (metrics.bleu(CHINESE_HYPOTHESES, CHINESE, t, QUICK).value for t in ("13a", "zh"))
    assert by_words < 5 < 30 < by_characters


@pytest.mark.parametrize("word_order", [0, 2])
def test_chrf_is_sacrebleus(word_order):
    found = metrics.chrf(HYPOTHESES, REFERENCES, word_order, QUICK)
    assert found.value == pytest.approx(sacrebleu.corpus_chrf(HYPOTHESES, [REFERENCES], word_order=word_order).score)
    assert found.low < found.value < found.high


def test_sentences_may_have_several_references():
    several = [[REFERENCES[0], HYPOTHESES[0]], REFERENCES[1], *([r] for r in REFERENCES[2:])]
    streams = [REFERENCES, [HYPOTHESES[0], None, None, None, None]]
    for found, expected in (
        (metrics.bleu(HYPOTHESES, several, how=QUICK), sacrebleu.corpus_bleu(HYPOTHESES, streams)),
        (metrics.chrf(HYPOTHESES, several, how=QUICK), sacrebleu.corpus_chrf(HYPOTHESES, streams)),
    ):
        assert found.value == pytest.approx(expected.score)
    assert metrics.bleu(HYPOTHESES, several, how=QUICK).value > metrics.bleu(HYPOTHESES, REFERENCES, how=QUICK).value


def test_intervals_of_bleu_are_those_of_sacrebleus_own_bootstrap():
    """On 60 sentences of which every third is another's translation, its mean and half-width of 95% of resamples."""
    ours, theirs = HYPOTHESES * 12, [REFERENCES[(i + (i % 3 == 0)) % 5] for i in range(60)]
    found = metrics.bleu(ours, theirs, how=Resampling(resamples=2000))
    score = sacrebleu.metrics.BLEU().corpus_score(ours, [theirs], n_bootstrap=2000)
    low, high = score._mean - score._ci, score._mean + score._ci
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.15 * score._ci)


words = st.lists(st.sampled_from(["a", "bb", "c", "dd", "e"]), min_size=0, max_size=7).map(" ".join)


@given(st.lists(st.tuples(words, words.filter(bool)), min_size=2, max_size=6), st.data())
@settings(max_examples=30)
def test_error_rates_are_jiwers_in_any_order(pairs, data):
    ours, theirs = ([pair[side] for pair in pairs] for side in (0, 1))
    for rate, expected in (
        (metrics.word_error_rate, jiwer.process_words(theirs, ours).wer),
        (metrics.character_error_rate, jiwer.process_characters(theirs, ours).cer),
    ):
        found = rate(ours, theirs, QUICK)
        assert found.value == pytest.approx(expected) and 0 <= found.low <= found.value <= found.high
        order = data.draw(st.permutations(range(len(pairs))))
        assert rate([ours[i] for i in order], [theirs[i] for i in order], QUICK) == found
        assert metrics.bleu(ours, theirs, how=QUICK).value <= 100


def test_error_rates_in_closed_form():
    found = metrics.word_error_rate(["a b c", "x y", ""], ["a x c", "y", "b b"])
    assert found.value == pytest.approx((1 + 1 + 2) / 6) and found.count == 3
    assert metrics.word_error_rate(["a b c d"] * 2, ["a"] * 2).value == 3
    assert metrics.character_error_rate(["今天天汽", "我们"], ["今天天气", "我们"]).value == pytest.approx(1 / 6)
    silence = metrics.word_error_rate(["a", "b c"], ["a", ""])  # what is said over silence is inserted
    assert silence.value == 2 and metrics.character_error_rate(["a", " "], ["a", ""]).value == 0


def test_sums_of_shards_are_the_whole():
    errors, lengths = np.array([3, 0, 1, 2]), np.array([5, 4, 9, 3])
    found = metrics.error_rate_of_sums(errors, lengths)
    assert found.value == pytest.approx(6 / 21) and found == metrics.error_rate_of_sums(errors[::-1], lengths[::-1])


def test_perfect_and_worst_texts():
    texts = REFERENCES * 4
    for found, best in (
        (metrics.bleu(texts, texts), 100),
        (metrics.chrf(texts, texts), 100),
        (metrics.word_error_rate(texts, texts), 0),
        (metrics.character_error_rate(texts, texts), 0),
    ):
        assert found.value == pytest.approx(best)
        far = found.low if best else found.high
        assert far == pytest.approx(best + (1 if not best else -100) * wilson(0, 20).high, rel=1e-6)
    nothing = metrics.bleu([""] * 20, texts)
    assert nothing.value == 0 == nothing.low and nothing.high == pytest.approx(100 * wilson(0, 20).high)
    assert metrics.chrf(["ωωω"] * 20, texts).value == 0
    assert metrics.word_error_rate([""] * 20, texts).value == 1


def test_intervals_of_error_rates_hold_the_truth():
    """Words that are wrong with a chance of their speaker's own, 10% in the mean."""
    found = []
    for seed in range(300):
        generator = np.random.default_rng([seed, 3])
        lengths = generator.integers(5, 30, 50)
        errors = generator.binomial(lengths, generator.beta(2, 18, 50))
        found.append(metrics.error_rate_of_sums(errors, lengths, Resampling(resamples=300, seed=seed)))
    share = np.mean([e.low <= 0.1 <= e.high for e in found])
    assert abs(share - 0.95) <= 3 * (0.95 * 0.05 / 300) ** 0.5, share


def test_texts_that_cannot_be_scored_are_refused():
    for call, said in (
        (lambda: metrics.bleu(["a"], ["a", "b"]), "1 hypotheses for 2 references"),
        (lambda: metrics.bleu(["a", "b"], ["a", []]), "sentence 1 has no reference"),
        (lambda: metrics.bleu(["a", "b"], ["a", "b"], "flores"), "expected one of 13a"),
        (lambda: metrics.chrf(["a", "b"], ["a", "b"], -1), "chrF"),
        (lambda: metrics.bleu("a text", ["a", "b"]), "hypotheses are one text, 'a text'"),
        (lambda: metrics.word_error_rate(["a", "b"], "ab"), "references are one text"),
        (lambda: metrics.word_error_rate([], []), "no texts"),
        (lambda: metrics.word_error_rate(["a", "b"], ["", " "]), "without any length"),
        (lambda: metrics.word_error_rate(["a"], ["a"]), "fewer than 2"),
        (lambda: metrics.error_rate_of_sums([-1, 2], [3, 3]), "negative"),
    ):
        with pytest.raises(UserError, match=said):
            call()


@pytest.mark.parametrize(
    ("package", "call"), [("sacrebleu", metrics.bleu), ("sacrebleu", metrics.chrf), ("jiwer", metrics.word_error_rate)]
)
def test_what_is_not_installed_is_named(monkeypatch, package, call):
    load = builtins.__import__

    def lacking(name, *args, **kwargs):
        if name.split(".")[0] == package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return load(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", lacking)
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=rf"needs {package}.* not installed: pip install 'purestep\[tasks\]'"):
        call(["a", "b"], ["a", "b"])

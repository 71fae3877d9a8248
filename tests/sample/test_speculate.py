"""Speculative decoding: the target's tokens when greedy, its distribution when sampling, whatever proposes."""

import dataclasses
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from research.core import params as P
from research.core import rng
from research.model import cache as kv
from research.model import transformer
from research.model.config import ModelConfig
from research.sample import decode as D
from research.sample import filters as F
from research.sample import speculate as S
from research.sample.options import Sampling

BASE = ModelConfig(vocab_size=19, context=24, width=16, layers=2, heads=4, mlp_width=24, tied=False)
PROMPTS = [[3, 7, 1, 2, 3, 7], [5], [*range(16)]]  # the last as long as what prompts are padded to
LENGTH, WANTED, C = 16, 32, 3
GREEDY = Sampling(temperature=0, draft_tokens=C)

forward = jax.jit(transformer.forward, static_argnames="config")


@dataclasses.dataclass(frozen=True)
class Net:
    """A model as it is evaluated whole, and as decoding reads it."""

    params: P.Tree
    config: ModelConfig
    ready: D.Model

    @classmethod
    def of(cls, params: P.Tree, config: ModelConfig) -> "Net":
        return cls(params, config, D.prepare(params, config))


def batch(prompts: list[list[int]], length: int = LENGTH) -> D.Prompts:
    ids = np.array([rng.name_to_int(str(prompt)) for prompt in prompts], np.uint32)
    tokens = np.array([prompt + [0] * (length - len(prompt)) for prompt in prompts], np.int32)
    return D.Prompts(tokens, np.array([len(p) for p in prompts], np.int32), ids, np.zeros(len(prompts), np.int32))


def run(net: Net, prompts, wanted, sampling=GREEDY, draft: Net | None = None, **changes):
    """`(all tokens of every row, the pieces of each round)`, asking as the engine does: what each row still takes, after each round."""
    sampling = dataclasses.replace(sampling, **changes)
    out = [[] for _ in range(len(prompts) * sampling.num)]
    wanted = [wanted] * len(out) if isinstance(wanted, int) else wanted

    def left():
        return [most - len(row) for most, row in zip(wanted, out, strict=True)]

    rounds = []
    for pieces in S.rounds(net.ready, draft and draft.ready, batch(prompts), sampling, left, net.config.V):
        rounds.append(pieces)
        for row, piece in zip(out, pieces, strict=True):
            row += piece.tokens
    return out, rounds


def table(rounds, of) -> np.ndarray:
    """A number of every piece, (rounds, rows)."""
    return np.array([[of(piece) for piece in pieces] for pieces in rounds])


def brought(rounds) -> list[list[int]]:
    return table(rounds, lambda piece: len(piece.tokens)).tolist()


def accepted(rounds) -> np.ndarray:
    return table(rounds, lambda piece: piece.accepted)


def rate(rounds) -> float:
    return accepted(rounds).sum() / table(rounds, lambda piece: piece.proposed).sum()


def plain_greedy(net: Net, prompts, count: int) -> list[list[int]]:
    """The argmax of the whole-sequence forward, token after token."""
    length = min(LENGTH + count, net.config.context) if net.config.positions == "learned" else LENGTH + count
    rows = [list(prompt) for prompt in prompts]
    for _ in range(count):
        padded = jnp.array([(row + [0] * length)[:length] for row in rows])
        best = np.asarray(jnp.argmax(forward(net.params, padded, net.config), axis=-1))
        for b, row in enumerate(rows):
            if len(row) <= length:
                row.append(int(best[b, len(row) - 1]))
    return [row[len(prompt) :] for row, prompt in zip(rows, prompts, strict=True)]


def near(net: Net, amount: float) -> Net:
    """The model with noise on its parameters: a draft that is right now and then."""
    draw = np.random.default_rng(5)
    noisy = jax.tree.map(lambda x: x + amount * draw.normal(size=x.shape).astype(x.dtype), net.params)
    return Net.of(noisy, net.config)


ARCHITECTURES = {
    "rotary, grouped-query, window inside the ring": {"kv_heads": 2, "patterns": ("sliding", "full"), "window": 5},
    "alibi, strided, and a window longer than the text": {
        "positions": "alibi",
        "patterns": ("strided", "sliding"),
        "window": 50,
        "stride": 3,
        "residual": "parallel",
    },
    "learned": {"positions": "learned", "context": LENGTH + WANTED, "norm": "layer"},
}


@pytest.fixture(scope="module", params=ARCHITECTURES)
def target(request, tiny) -> Net:
    config = dataclasses.replace(BASE, **ARCHITECTURES[request.param])
    return Net.of(tiny.params(config), config)


@pytest.mark.parametrize("proposer", ["draft", "look-up"])
def test_greedy_is_the_plain_greedy_token_for_token(target, proposer):
    options = {"draft": near(target, 0.03)} if proposer == "draft" else {"lookup": 3}
    expected = plain_greedy(target, PROMPTS, WANTED)
    tokens, rounds = run(target, PROMPTS, WANTED, num=2, **options)
    assert tokens == [row for row in expected for _ in range(2)]
    assert len({t for row in expected for t in row}) >= 6, "too few different tokens to mean anything"
    assert 0.1 < rate(rounds) < 0.98 and accepted(rounds).sum() > WANTED, "both outcomes should occur, and often"
    assert len(rounds) < WANTED and max(map(max, brought(rounds[1:]))) == C + 1


@pytest.fixture(scope="module")
def net(tiny) -> Net:
    config = dataclasses.replace(BASE, **ARCHITECTURES["rotary, grouped-query, window inside the ring"])
    return Net.of(tiny.params(config), config)


DRAWN = Sampling(temperature=0.8, top_k=12, min_p=0.01, draft_tokens=C)


def test_a_draft_that_is_the_target_is_always_accepted(net):
    for sampling in (GREEDY, DRAWN):
        tokens, rounds = run(net, PROMPTS, 1 + 5 * (C + 1), sampling, draft=net)
        assert brought(rounds) == [[C + 2] * 3] + [[C + 1] * 3] * 4  # what was proposed, and a token more each time
        assert rate(rounds) == 1 and accepted(rounds).sum(0).tolist() == [5 * C] * 3
        assert {len(row) for row in tokens} == {1 + 5 * (C + 1)}


@pytest.mark.parametrize("proposer", ["draft", "look-up"])
def test_a_row_depends_on_itself_alone(net, proposer):
    """Not on the other rows, nor on how many tokens follow, nor on rows that end before it."""
    options = {"draft": near(net, 0.1)} if proposer == "draft" else {"lookup": 3}
    together, _ = run(net, PROMPTS, WANTED, DRAWN, seed=3, num=2, **options)
    assert len({tuple(row) for row in together}) == 6
    wanted = [2, 32, 0, 1, 7, 20]
    shorter, rounds = run(net, PROMPTS, wanted, DRAWN, seed=3, num=2, **options)
    assert shorter == [row[:n] for row, n in zip(together, wanted, strict=True)]
    assert np.sum(brought(rounds), 0).tolist() == wanted
    alone, _ = run(net, PROMPTS[1:2], WANTED, DRAWN, seed=3, num=2, **options)
    assert alone == together[2:4]


def test_a_row_that_ends_early_gets_nothing_more(net):
    """A stop string ends a row between two rounds: `left` says 0 from then on."""
    left, rounds = [20, 20], []
    for pieces in S.rounds(net.ready, net.ready, batch(PROMPTS[:2]), GREEDY, left.copy, 19):
        rounds.append(pieces)
        left[:] = [0, left[1] - len(pieces[1].tokens)]
    assert brought(rounds) == [[5, 5], [0, 4], [0, 4], [0, 4], [0, 3]]
    assert [t for pieces in rounds for t in pieces[1].tokens] == plain_greedy(net, PROMPTS[1:2], 20)[0]


def test_later_calls_compile_nothing(net):
    run(net, PROMPTS, 20, DRAWN, lookup=2)
    programs = S.start._cache_size(), S.advance._cache_size()
    run(net, PROMPTS[::-1], [30, 3, 9], DRAWN, temperature=2.0, top_k=3, min_p=0.2, seed=9, lookup=2)
    assert (S.start._cache_size(), S.advance._cache_size()) == programs


@pytest.mark.parametrize("draft_context", [48, 20, 10])
def test_learned_positions_end_the_proposals_not_the_row(tiny, draft_context):
    """The target's context is filled to the end. A draft with fewer positions stops early, or never starts (a prompt of 16)."""
    config = dataclasses.replace(BASE, positions="learned", context=23)
    net = Net.of(tiny.params(config), config)
    table = jnp.resize(net.params["embed"]["positions"], (draft_context, config.width))
    params = {**net.params, "embed": {**net.params["embed"], "positions": table}}
    draft = Net.of(params, dataclasses.replace(config, context=draft_context))
    room = [24 - len(prompt) for prompt in PROMPTS]
    tokens, rounds = run(net, PROMPTS, room, draft=draft)
    assert tokens == plain_greedy(net, PROMPTS, 23)
    assert rate(rounds) == 1 and accepted(rounds)[:, 2].sum() == {48: 5, 20: 3, 10: 0}[draft_context]
    assert brought(rounds)[-1] == [0, 1, 0] or draft_context == 48


# The chance that a right sampler fails: p-values are uniform, so 1e-3 for a seed drawn at random, and none for the seed that stands
# here once it has passed. The wrong rules below come out under 1e-9.
RIGHT, WRONG = 1e-3, 1e-9
SMALL = {"vocab_size": 4, "context": 16, "width": 16, "layers": 1, "heads": 2, "mlp_width": 24}
ROWS = 8192
CHI_PROMPT = [1, 2, 0, 1, 3, 1, 2]


@pytest.fixture(scope="module")
def pair(tiny) -> tuple[Net, Net]:
    config, other = ModelConfig(**SMALL), ModelConfig(**{**SMALL, "width": 8, "positions": "alibi"})
    return Net.of(tiny.params(config), config), Net.of(tiny.params(other, seed=4), other)


def exact(net: Net, filters: F.Filters, count: int) -> np.ndarray:
    """The probability of every continuation of `count` tokens, from the whole-sequence forward."""
    V = net.config.V
    whole = jnp.array([CHI_PROMPT + list(tail) for tail in product(range(V), repeat=count)])
    logits = forward(net.params, whole, net.config)[:, len(CHI_PROMPT) - 1 : -1]
    p = jnp.stack([jax.nn.softmax(F.filtered(logits[:, i], filters)) for i in range(count)], axis=1)
    tails = whole[:, len(CHI_PROMPT) :, None]
    return np.asarray(jnp.prod(jnp.take_along_axis(p, tails, axis=2)[..., 0], axis=1), np.float64)


def p_value(net: Net, sampling: Sampling, **options) -> tuple[float, float]:
    """`(p, the rate of acceptance)` of a chi-square test of the first four tokens: one drawn plainly, two of a round's
    proposals, and the one after them.

    Continuations that are expected less than 5 times count as one, and one of probability 0 must not occur.
    """
    tokens, rounds = run(net, [CHI_PROMPT], 4, sampling, seed=11, num=ROWS, draft_tokens=2, **options)
    V, expected = net.config.V, ROWS * exact(net, sampling.filters(), 4)
    seen = np.bincount(np.array(tokens) @ V ** np.arange(3, -1, -1), minlength=V**4)
    if seen[expected == 0].any():
        return 0.0, rate(rounds)
    rare = expected < 5
    seen, expected = (np.append(x[~rare], x[rare].sum()) for x in (seen, expected))
    assert len(expected) > 50, "too few cells to mean anything"
    statistic = float(((seen - expected) ** 2 / expected).sum())
    return float(jax.scipy.stats.chi2.sf(statistic, len(expected) - 1)), rate(rounds)


CASES = {
    "a draft": (Sampling(), "draft"),
    "a draft, filtered": (Sampling(temperature=1.3, top_k=3, top_p=0.97, min_p=0.02), "draft"),
    "look-up": (Sampling(), "look-up"),
}


def proposer(pair, kind: str) -> dict:
    return {"draft": pair[1]} if kind == "draft" else {"lookup": 2}


@pytest.mark.parametrize("name", CASES)
def test_sampling_has_the_distribution_of_the_target(pair, name):
    sampling, kind = CASES[name]
    p, accepted = p_value(pair[0], sampling, **proposer(pair, kind))
    assert p > RIGHT
    assert 0.2 < accepted < 0.9, "both outcomes should occur, and often"


WRONG_RULES = {
    "what replaces a rejected token is drawn from p": ("residual", lambda p_BV, q_BV: p_BV),
    "every possible token is accepted": ("_uniform", lambda keys_B, index_BC: jnp.zeros(index_BC.shape)),
}


@pytest.mark.parametrize("name", WRONG_RULES)
def test_the_chi_square_test_sees_a_wrong_rule(pair, name, monkeypatch):
    function, wrong = WRONG_RULES[name]
    sampling, kind = CASES["a draft"]
    with monkeypatch.context() as patch:
        patch.setattr(S, function, wrong)
        S.advance.clear_cache()
        found, _ = p_value(pair[0], sampling, **proposer(pair, kind))
    S.advance.clear_cache()
    assert found < WRONG


def proposal(tokens, counts, q) -> S.Proposal:
    return S.Proposal(jnp.array(tokens), jnp.array(counts), jnp.array(q, jnp.float32))


def test_the_judge_keeps_replaces_and_adds():
    one_hot = np.eye(4, dtype=np.float32)
    p = one_hot[[[0, 1, 2], [0, 1, 2], [3, 1, 2], [0, 1, 2]]]  # the target's own choices, T = 3
    proposed = [[0, 1], [0, 3], [0, 1], [0, 1]]
    tokens, new = S.judge(jnp.array(p), proposal(proposed, [2, 2, 2, 1], one_hot[proposed]), None, jnp.zeros(4, int))
    assert new.tolist() == [3, 2, 1, 2]
    assert [row[:n] for row, n in zip(tokens.tolist(), new.tolist(), strict=True)] == [[0, 1, 2], [0, 1], [3], [0, 1]]


def test_what_replaces_a_rejected_token_is_what_p_has_more():
    p, q = jnp.array([[0.5, 0.3, 0.2]]), jnp.array([[0.2, 0.7, 0.1]])
    np.testing.assert_allclose(S.residual(p, q), [[0.3, 0, 0.1]], atol=1e-7)
    np.testing.assert_array_equal(S.residual(p, p), p)  # rounding could reject a token where the two are equal


def looked_up(text: list[int], most: int, count: int) -> list[int]:
    """The look-up in plain Python."""
    for n in range(min(most, len(text) - 1), 0, -1):
        for end in range(len(text) - 1, n - 1, -1):
            if text[end - n : end] == text[-n:]:
                return [text[end + i % (len(text) - end)] for i in range(count)]
    return []


look_up = jax.jit(S.look_up, static_argnames=("most", "draft_tokens", "vocab"))


@given(texts=st.lists(st.lists(st.integers(0, 2), min_size=2, max_size=11), min_size=3, max_size=3))
def test_look_up_finds_the_longest_end_at_its_last_place(texts):
    known = np.array([len(text) for text in texts])
    tokens = jnp.array([text + [1] * (12 - len(text)) for text in texts])
    state = S.State(kv.Cache((), jnp.array(known - 1)), None, tokens, jnp.ones(3, int), None)
    found = look_up(state, jnp.full(3, 4), most=3, draft_tokens=4, vocab=3)
    rows = [row[:n] for row, n in zip(found.tokens_BC.tolist(), found.counts_B.tolist(), strict=True)]
    assert rows == [looked_up(text, 3, 4) for text in texts]
    np.testing.assert_array_equal(found.q_BCV, np.eye(3)[np.asarray(found.tokens_BC)])


TOTAL = 18
SHAPES = {
    "a ring": {"window": 4},
    "a window that leaves no room for a chunk beside it": {"window": TOTAL - 1},
}


@pytest.fixture(scope="module", params=SHAPES)
def taken(request, tiny):
    """A model with every pattern, two sequences, their logits without a cache, and a step with one."""
    patterns = {"patterns": ("sliding", "full", "strided"), "layers": 3, "stride": 3, "kv_heads": 2}
    config = tiny.config(**{**patterns, "context": TOTAL, **SHAPES[request.param]})
    params, tokens = tiny.params(config), np.asarray(tiny.tokens(config, 2, TOTAL))
    step = jax.jit(lambda inputs, cache: transformer.apply(params, inputs, config, cache=cache))
    return config, tokens, np.asarray(forward(params, jnp.asarray(tokens), config)), step


take_back = jax.jit(S.take_back)


@settings(max_examples=25)
@given(data=st.data())
def test_decoding_with_tokens_taken_back_equals_the_whole(data, taken):
    """Chunks of right tokens and then wrong ones, of which all that are wrong and some that are right are taken back."""
    config, tokens, expected, step = taken
    cache, done = kv.init(config, 2, TOTAL, jnp.float32, draft=C), np.zeros(2, int)
    while (done < TOTAL).any():
        width = data.draw(st.sampled_from([1, C + 1]))
        given_B, right_B, kept_B = np.array([data.draw(counts(min(width, TOTAL - n))) for n in done]).T
        chunk = np.full((2, width), 12)
        for b in range(2):
            chunk[b, : right_B[b]] = tokens[b, done[b] : done[b] + right_B[b]]
        out = step({"tokens": jnp.asarray(chunk), "lengths": jnp.asarray(given_B)}, cache)
        for b, n in enumerate(right_B):
            np.testing.assert_allclose(out.outputs[b, :n], expected[b, done[b] : done[b] + n], rtol=1e-4, atol=1e-4)
        done = done + kept_B
        cache = take_back(out.cache, jnp.asarray(done))
        np.testing.assert_array_equal(cache.lengths_B, done)


@st.composite
def counts(draw, most: int) -> tuple[int, int, int]:
    """How many tokens are given, how many of them are right, and how many are kept; at least one where one is left."""
    least = min(most, 1)
    n = draw(st.integers(least, most))
    right = draw(st.integers(least, n))
    return n, right, draw(st.integers(least, right))

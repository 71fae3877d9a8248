"""Options of decoding against transformers' own: its logits processors on the same logits, its `generate` on the same weights."""

import cases
import jax
import numpy as np
import pytest

from research import hf, sample
from research.sample import filters as F

torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")

OPTIONS = {
    "repetition_penalty": (1.4, lambda v: transformers.RepetitionPenaltyLogitsProcessor(v)),
    "temperature": (0.6, lambda v: transformers.TemperatureLogitsWarper(v)),
    "top_k": (20, lambda v: transformers.TopKLogitsWarper(v)),
    "top_p": (0.85, lambda v: transformers.TopPLogitsWarper(v)),
    "min_p": (0.05, lambda v: transformers.MinPLogitsWarper(v)),
}  # in the order in which `generate` applies them
filtered = jax.jit(F.filtered)


@pytest.mark.parametrize("names", [*([name] for name in OPTIONS), list(OPTIONS)], ids=lambda names: " and ".join(names))
def test_filters_leave_what_the_processors_of_transformers_leave(names):
    draw = np.random.default_rng(0)
    logits = (4 * draw.normal(size=(16, 67))).astype(np.float32)
    ids = draw.integers(0, 67, (16, 9))
    theirs = torch.tensor(logits)
    for name in names:
        value, make = OPTIONS[name]
        theirs = make(value)(torch.tensor(ids), theirs)
    theirs = torch.log_softmax(theirs, -1).numpy()
    seen = np.zeros(logits.shape, bool)
    np.put_along_axis(seen, ids, True, axis=1)
    z = filtered(logits, F.make(**{name: OPTIONS[name][0] for name in names}), F.Past(seen))
    ours = np.asarray(jax.nn.log_softmax(z))
    np.testing.assert_array_equal(np.isfinite(ours), np.isfinite(theirs))
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
    kept = np.isfinite(theirs).sum(axis=1)
    assert kept.max() == 67 if set(names) <= {"repetition_penalty", "temperature"} else 1 < kept.max() < 40


def test_penalised_and_searched_sequences_are_those_of_transformers(folder):
    path = folder("llama")
    peer = transformers.AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager").float().eval()
    peer.generation_config.eos_token_id = None
    model = hf.load(path)
    prompts = cases.tokens(model.config.V)

    def theirs(**options) -> list[list[int]]:
        ids = torch.tensor(prompts.astype(np.int64))
        common = {"attention_mask": torch.ones_like(ids), "do_sample": False, "pad_token_id": 0}
        return peer.generate(ids, **common, **options)[:, cases.T :].tolist()

    def ours(**options) -> list[list[int]]:
        how = sample.Sampling(max_tokens=16, **options)
        return [list(one.tokens) for one in sample.continuations(model, [row.tolist() for row in prompts], how)]

    plain = [row[:16] for row in cases.expected()["llama"]["greedy"]]
    penalised = ours(temperature=0, repetition_penalty=1.5)
    assert penalised != plain and penalised == theirs(max_new_tokens=16, repetition_penalty=1.5)
    beams = ours(beams=3, num=2)
    assert beams[::2] != plain and beams == theirs(max_new_tokens=16, num_beams=3, num_return_sequences=2)

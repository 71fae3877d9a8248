"""A member among others is the run alone: every optimiser and schedule, whatever its numbers."""

import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.core import hypers as H
from research.model import transformer
from research.tasks import lm
from research.train import step as S
from research.train.optim import OptimizerConfig, ScheduleConfig

STEPS, MEMBERS = 50, 3
# Every optimiser, every schedule.
KINDS = [
    ("sgd", "constant"), ("adam", "cosine"), ("adamw", "linear"), ("lion", "wsd"), ("adafactor", "inverse-sqrt"), ("muon", "cosine"),
    ("schedule-free-adamw", "constant"),
]  # fmt: skip


def numbers(low: float, high: float):
    return st.floats(np.log(low), np.log(high)).map(lambda x: float(np.exp(x)))


MEMBER = st.fixed_dictionaries({
    "learning_rate": numbers(1e-4, 2e-2), "warmup_steps": st.integers(0, 60), "horizon": st.integers(1, 80), "floor": st.floats(0, 1),
    "cooldown": st.floats(0.01, 1), "weight_decay": st.floats(0, 0.5), "momentum": st.floats(0, 0.98), "beta1": st.floats(0.1, 0.98),
    "beta2": st.floats(0.8, 0.999), "eps": numbers(1e-9, 1e-3), "adam_ratio": numbers(0.1, 10), "clip_norm": numbers(0.01, 10),
    "dropout": st.floats(0, 0.5), "label_smoothing": st.floats(0, 0.3), "z_loss": st.floats(0, 0.1), "init_scale": numbers(0.3, 3),
    "seed": st.integers(0, 2**32 - 1),
})  # fmt: skip
OFF = {"ema_decay": 0.0, "balance_loss": 0.0, "router_z_loss": 0.0}


@functools.cache
def compiled(model, kind: str, schedule: str):
    """`(alone, together)`: losses of 50 steps of a member, and of all at once, in float64."""
    config = OptimizerConfig(kind, schedule=ScheduleConfig(schedule))
    specs = transformer.specs(model)
    task = lm.LMConfig(label_smoothing=0.1, z_loss=0.1)
    step = S.make_step(lm.make_loss(model, task), specs, config, dropout=True)

    def run(hypers, batches):
        state = S.init_state(specs, config, hypers, jnp.float64)
        return jax.lax.scan(lambda state, batch: step(state, batch, hypers), state, batches)[1]["loss"]

    return jax.jit(run), jax.jit(jax.vmap(run, (0, None)))


@pytest.mark.parametrize(("kind", "schedule"), KINDS)
def test_losses_of_members_together_are_those_of_each_alone(tiny, kind, schedule):
    """To 1e-6 relative after 50 steps in float64."""
    model = tiny.config(context=6, width=8, layers=1, heads=2, dropout=0.1)
    draw = np.random.default_rng(0)

    @hypothesis.settings(max_examples=5)
    @given(st.lists(MEMBER, min_size=MEMBERS, max_size=MEMBERS))
    def check(drawn):
        with jax.enable_x64(True):
            ids = draw.integers(0, model.V, (STEPS, 2, 7)).astype(np.int32)
            batches = {"tokens": ids[..., :-1], "targets": ids[..., 1:], "weights": np.ones((STEPS, 2, 6))}
            members = [H.make(**one, **OFF) for one in drawn]
            alone, together = compiled(model, kind, schedule)
            found = together(jax.tree.map(lambda *x: jnp.stack(x), *members), batches)
            for losses, member in zip(found, members, strict=True):
                np.testing.assert_allclose(losses, alone(member, batches), rtol=1e-6)

    check()

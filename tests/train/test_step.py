"""The step as a pure function: accumulated, vmapped, sharded and poisoned, it does what one plain step would."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.core import params as P
from research.model import transformer
from research.tasks import lm
from research.train import config as C
from research.train import optim, schedules
from research.train import step as S
from research.train.optim import OptimizerConfig, ScheduleConfig

VOCABULARY, CONTEXT = 13, 8
ADAMW = OptimizerConfig(learning_rate=1e-2, schedule=ScheduleConfig(warmup_steps=2))
METRICS = {"loss", "weight", "grad_norm", "learning_rate", "update_ratio", "skipped", "skipped_in_a_row", "bad_leaf"}


@pytest.fixture(scope="module")
def model(tiny):
    return tiny.config(context=CONTEXT, dropout=0.1, heads=2)


@pytest.fixture(scope="module")
def specs(model):
    return transformer.specs(model)


def hypers_of(model, **optimizer):
    return C.hypers(C.Config(model=model, optimizer=dataclasses.replace(ADAMW, **optimizer), steps=50))


def batch_of(rows=8, seed=0, dtype=np.float32):
    draw = np.random.default_rng(seed)
    ids = draw.integers(0, VOCABULARY, (rows, CONTEXT + 1)).astype(np.int32)
    weights = draw.uniform(0, 1, (rows, CONTEXT)) * draw.choice([0.0, 0.1, 5.0], (rows, 1))  # rows count very unequally
    weights[0] = 1.0
    return {
        "tokens": jnp.asarray(ids[:, :-1]),
        "targets": jnp.asarray(ids[:, 1:]),
        "weights": jnp.asarray(weights.astype(dtype)),
    }


def assert_close(actual, expected, rtol):
    """Every leaf to `rtol` of its own largest value."""
    for path, want in P.flatten(expected).items():
        got, want = np.asarray(P.flatten(actual)[path]), np.asarray(want)
        assert np.abs(got - want).max() <= rtol * max(np.abs(want).max(), 1e-30), path


def test_accumulated_gradients_equal_those_of_the_large_batch(model):
    with jax.enable_x64(True):
        params = jax.tree.map(
            lambda s: np.random.default_rng(0).normal(size=s.shape) * 0.3, P.abstract(transformer.specs(model))
        )
        batch, loss = batch_of(dtype=np.float64), lm.make_loss(model)
        whole, parts = (
            jax.jit(functools.partial(S.gradients, loss, key=None, hypers=None, micro_batches=n))(params, batch)
            for n in (1, 4)
        )
        assert parts[1].dtype == jnp.float64
        assert_close(parts[0], whole[0], 1e-12)
        np.testing.assert_allclose(parts[1:3], whole[1:3], rtol=1e-12)
        split = S.split_rows(batch, 4)
        sums = [loss(params, jax.tree.map(lambda x, i=i: x[i], split))[:2] for i in range(4)]
        means = [float(total / jnp.maximum(weight, 1e-9)) for total, weight in sums]
        assert abs(np.mean(means) - whole[1]) > 1e-2  # the mean of means is something else here


def test_rows_are_dealt_out_like_cards():
    parts = S.split_rows({"x": jnp.arange(12).reshape(6, 2)}, 3)["x"]
    assert parts.shape == (3, 2, 2)
    np.testing.assert_array_equal(parts[:, :, 0] // 2, [[0, 3], [1, 4], [2, 5]])


def members(model):
    """Four runs that differ in everything that may: rates, decay, betas, clipping, dropout, seeds."""
    numbers = {
        "learning_rate": [3e-3, 1e-2, 2e-2, 5e-3], "weight_decay": [0.0, 0.1, 0.2, 0.3], "beta2": [0.9, 0.95, 0.99, 0.999],
        "clip_norm": [0.5, np.inf, 1.0, 0.1], "dropout": [0.0, 0.1, 0.3, 0.5], "seed": [0, 1, 2, 3], "warmup_steps": [1, 5, 10, 0],
        "ema_decay": [0.5, 0.9, 0.99, 0.0],
    }  # fmt: skip
    base = hypers_of(model)
    return [
        base.replace(**{k: jnp.asarray(v[i], getattr(base, k).dtype) for k, v in numbers.items()}) for i in range(4)
    ]


def test_four_members_under_vmap_are_four_runs(model, specs):
    config = dataclasses.replace(ADAMW, ema_decay=0.9)
    with jax.enable_x64(True):
        step = S.make_step(lm.make_loss(model), specs, config, dropout=True)

        def run(hypers, batches):
            state = S.init_state(specs, config, hypers, jnp.float64)
            return jax.lax.scan(lambda state, batch: step(state, batch, hypers), state, batches)

        batches = jax.tree.map(lambda *x: jnp.stack(x), *(batch_of(4, i, np.float64) for i in range(50)))
        alone = [jax.jit(run)(hypers, batches) for hypers in members(model)]
        together = jax.jit(jax.vmap(run, (0, None)))(jax.tree.map(lambda *x: jnp.stack(x), *members(model)), batches)
        for i, (state, metrics) in enumerate(alone):
            one = jax.tree.map(lambda x, i=i: x[i], together)
            assert_close(one[0].params, state.params, 1e-6)
            assert_close(one[0].extra["average"], state.extra["average"], 1e-6)
            assert_close(one[1], metrics, 1e-6)
        losses = [metrics["loss"][-1] for _, metrics in alone]
        assert len({round(float(x), 6) for x in losses}) == 4  # members do differ


def test_first_gradients_of_members_equal_those_alone_in_float32(model, specs):
    batch, loss = batch_of(4), lm.make_loss(model)

    def first(hypers):
        state = S.init_state(specs, ADAMW, hypers)
        return S.gradients(loss, state.params, batch, jax.random.key(hypers.seed), hypers)[0]

    together = jax.jit(jax.vmap(first))(jax.tree.map(lambda *x: jnp.stack(x), *members(model)))
    alone = jax.jit(first)
    for i, hypers in enumerate(members(model)):
        assert_close(jax.tree.map(lambda x, i=i: x[i], together), alone(hypers), 1e-5)


@pytest.fixture(scope="module")
def compiled(model, specs):
    """`(init, step, traces)` of AdamW with an average of weights, jitted and donating; `traces` grows with every trace.

    A batch may hold `poison`: k >= 0 makes the gradient of the k-th leaf NaN, LOSS_IS_BAD the loss alone, anything else nothing.
    """
    config, traces = dataclasses.replace(ADAMW, ema_decay=0.9), []
    honest = lm.make_loss(model)

    def loss(params, batch, key, hypers):
        traces.append(1)
        total, weight, metrics = honest(params, batch, key, hypers)
        for i, leaf in enumerate(jax.tree.leaves(params)):
            harm = jnp.where(batch["poison"] == i, jnp.nan, 0.0)
            zero = jnp.sum(leaf) - jax.lax.stop_gradient(jnp.sum(leaf))
            total = total + jax.lax.stop_gradient(1.0) * _gradient_only(zero, harm)
        total = total + jnp.where(batch["poison"] == S.LOSS_IS_BAD, jnp.nan, 0.0)
        return total, weight, metrics

    step = jax.jit(S.make_step(loss, specs, config, dropout=True), donate_argnums=0)
    init = jax.jit(functools.partial(S.init_state, specs, config))
    return init, step, traces


@jax.custom_jvp
def _gradient_only(x, slope):
    """0, whose derivative by x is `slope`."""
    return jnp.zeros_like(x)


@_gradient_only.defjvp
def _gradient_only_jvp(primals, tangents):
    return jnp.zeros_like(primals[0]), primals[1] * tangents[0]


def copied(tree):
    return jax.tree.map(lambda x: np.array(x), tree)


def assert_same(actual, expected):
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def poisoned(batch, what):
    return {**batch, "poison": jnp.asarray(what, jnp.int32)}


def test_whatever_is_not_finite_never_reaches_the_weights(model, specs, compiled):
    init, step, _ = compiled
    hypers, batch = hypers_of(model), batch_of()
    paths = [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree.leaves_with_path(init(hypers).params)
    ]
    bad = [(poisoned(batch, i), i) for i in range(len(paths))] + [(poisoned(batch, S.LOSS_IS_BAD), S.LOSS_IS_BAD)]
    for weight in (np.nan, np.inf):  # from the data: every gradient is gone, the first is named
        bad.append((poisoned({**batch, "weights": batch["weights"].at[1, 2].set(weight)}, -1), 0))
    state, metrics = step(init(hypers), poisoned(batch, -1), hypers)
    assert metrics["bad_leaf"] == -1 and metrics["skipped"] == 0 and state.opt.count == 1
    for n, (harmful, leaf) in enumerate(bad, 1):
        before = copied(state)
        state, metrics = step(state, harmful, hypers)
        assert_same(
            (state.params, state.opt, state.extra["average"]), (before.params, before.opt, before.extra["average"])
        )
        assert (state.step, state.opt.count) == (1 + n, 1)
        assert (metrics["skipped"], metrics["skipped_in_a_row"], metrics["bad_leaf"]) == (n, n, leaf)
    unharmed = copied(state)
    state, metrics = step(state, poisoned(batch, -1), hypers)
    assert (metrics["skipped"], metrics["skipped_in_a_row"], metrics["bad_leaf"]) == (len(bad), 0, -1)
    assert state.opt.count == 2 and metrics["learning_rate"] == schedules.rate("cosine", 1, hypers)
    assert any(
        np.any(a != b)
        for a, b in zip(jax.tree.leaves(copied(state.params)), jax.tree.leaves(unharmed.params), strict=True)
    )


def test_a_poisoned_weight_changes_nothing_more(model, specs, compiled):
    init, step, _ = compiled
    hypers = hypers_of(model)
    flat = P.flatten(init(hypers).params)
    flat["final_norm/scale"] = flat["final_norm/scale"].at[0].set(jnp.nan)
    state = init(hypers).replace(params=P.unflatten(flat))
    before = copied(state)
    state, metrics = step(state, poisoned(batch_of(), -1), hypers)
    assert metrics["skipped"] == 1 and metrics["bad_leaf"] >= 0 and np.isnan(metrics["loss"])
    assert_same((state.params, state.opt), (before.params, before.opt))


def test_names_of_bad_leaves_are_those_of_the_gradients(model, specs):
    from research.train.program import Program

    program = Program(C.Config(model=model), None, model, None, hypers_of(model))  # type: ignore[arg-type]
    for bad in P.flatten(specs):
        grads = P.unflatten({path: jnp.full(1, jnp.nan if path == bad else 1.0) for path in P.flatten(specs)})
        index = int(S.first_bad(jnp.zeros(()), S.square_sums(grads)))
        assert program.name_bad_leaf(index) == f"the gradient of {bad}"
    assert program.name_bad_leaf(S.LOSS_IS_BAD) == "the loss"


def test_metrics_say_what_the_step_did(model, specs, compiled):
    init, step, _ = compiled
    hypers, batch = hypers_of(model), batch_of()
    start = copied(init(hypers))
    state, metrics = step(init(hypers), poisoned(batch, -1), hypers)
    assert metrics.keys() == METRICS and all(value.shape == () for value in metrics.values())
    key = S.rng.key(hypers.seed, "dropout", 0)
    gradients = jax.jit(functools.partial(S.gradients, lm.make_loss(model)))
    grads, mean, weight, _ = gradients(start.params, batch, key, hypers)
    difference = jax.tree.map(lambda a, b: a - b, copied(state.params), start.params)

    def norm(tree):
        return np.sqrt(sum(float(np.square(x, dtype=np.float64).sum()) for x in jax.tree.leaves(copied(tree))))

    expected = {
        "loss": mean, "weight": batch["weights"].sum(), "grad_norm": norm(grads), "learning_rate": 0.5e-2,
        "update_ratio": norm(difference) / norm(start.params),
    }  # fmt: skip
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-4, err_msg=name)
    assert weight == metrics["weight"] and state.step == 1


def test_clipping_holds_the_gradient_to_its_norm(model, specs):
    config = OptimizerConfig(kind="sgd", momentum=0.0, weight_decay=0.0, schedule=ScheduleConfig("constant", 0))
    step = jax.jit(S.make_step(lm.make_loss(model), specs, config))
    hypers = hypers_of(model, learning_rate=1.0, momentum=0.0, weight_decay=0.0, schedule=config.schedule)
    state = S.init_state(specs, config, hypers)
    size = float(step(state, batch_of(), hypers)[1]["grad_norm"])
    for clip, moved in ((size / 4, size / 4), (size * 4, size), (np.inf, size)):
        new, metrics = step(state, batch_of(), hypers.replace(clip_norm=jnp.float32(clip)))
        assert metrics["grad_norm"] == pytest.approx(size, rel=1e-5)  # as it was before
        assert S.norm(jax.tree.map(jnp.subtract, new.params, state.params)) == pytest.approx(moved, rel=1e-3)


def test_the_average_follows_the_weights_and_is_what_is_evaluated(model, specs, compiled):
    init, step, _ = compiled
    hypers = hypers_of(model).replace(ema_decay=jnp.float32(0.75))
    state = init(hypers)
    average = copied(state.params)
    for i in range(3):
        state, _ = step(state, poisoned(batch_of(seed=i), -1), hypers)
        average = jax.tree.map(lambda a, p: 0.75 * a + 0.25 * p, average, copied(state.params))
    assert_close(state.extra["average"], average, 1e-5)
    config = dataclasses.replace(ADAMW, ema_decay=0.9)
    assert S.eval_params(state, config, specs, hypers) is state.extra["average"]
    plain = S.init_state(specs, ADAMW, hypers)
    assert "average" not in plain.extra and S.eval_params(plain, ADAMW, specs, hypers) is plain.params


def test_one_compile_serves_every_step_and_hyperparameter_and_old_states_are_donated(model, compiled):
    init, step, traces = compiled
    batch = poisoned(batch_of(), -1)
    state = init(hypers_of(model))
    state, _ = step(state, batch, hypers_of(model))  # the first compiles, unless a test before has
    compilations, traced = [], len(traces)

    def listen(event, seconds, **_):
        if "compile" in event:
            compilations.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        for hypers in members(model):
            old = state
            state, _ = step(state, batch, hypers)
            assert all(leaf.is_deleted() for leaf in jax.tree.leaves(old))
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert len(traces) == traced and compilations == [] and step._cache_size() == 1
    assert not any(x.is_deleted() for x in batch.values())


def test_the_initial_state_depends_on_seed_and_scale_alone(model, specs, compiled):
    init, _, _ = compiled
    base = hypers_of(model)
    assert_same(init(base), init(base.replace(learning_rate=jnp.float32(7))))
    other, halved = init(base.replace(seed=jnp.uint32(1))), init(base.replace(init_scale=jnp.float32(0.5)))
    for path, p in P.flatten(specs).items():
        here, there, half = (np.asarray(P.flatten(s.params)[path]) for s in (init(base), other, halved))
        random = p.init.kind != "constant"
        assert np.any(here != there) == random, path
        np.testing.assert_array_equal(half, here * (0.5 if random else 1), err_msg=path)
    assert optim.updates_done(init(base).opt) == 0


ON_EIGHT_DEVICES = """
import dataclasses, sys
import jax, numpy as np
from research import train
from research.core import sharding, params as P
from research.core.errors import UserError
from research.data.tokens import prepare
from research.model.config import ModelConfig
from research.tasks import lm
from research.train import program, step as S

text, folder = sys.argv[1:]
assert jax.device_count() == 8
model = ModelConfig(context=8, width=16, layers=1, heads=2, dropout=0.1)
optimizer = train.OptimizerConfig(learning_rate=1e-2, ema_decay=0.9, schedule=train.ScheduleConfig("constant", 2))
config = train.Config(data=text, model=model, optimizer=optimizer, batch_size=16, micro_batches=2, steps=4, eval_every=4, log_every=1,
                      sample_every=4, sample_tokens=4)
corpus = prepare(text, "byte")

alone = dataclasses.replace(program.build(config, corpus), mesh=jax.make_mesh((1,), ("fsdp",), devices=jax.devices()[:1]))
step = jax.jit(S.make_step(lm.make_loss(alone.model, config.task), alone.specs, optimizer, 2, True))
state = S.init_state(alone.specs, optimizer, alone.hypers)
losses = []
for i in range(4):
    state, metrics = step(state, alone.batches(i), alone.hypers)
    losses.append(float(metrics["loss"]))
held_out = alone.evaluate(state)["loss"]

for mesh, zero, shards in (("data=8", 3, 1), ("fsdp=8", 3, 8), ("data=2,fsdp=4", 3, 4), ("fsdp=8", 1, 8)):
    built = program.build(dataclasses.replace(config, mesh=mesh, zero=zero), corpus)
    sharded, seen = built.initial_state(), []
    for i in range(4):
        sharded, metrics = built.step(sharded, built.put_batch(built.batches(i)), built.hypers)
        seen.append(float(metrics["loss"]))
    np.testing.assert_allclose(seen, losses, rtol=1e-5)
    np.testing.assert_allclose(built.evaluate(sharded)["loss"], held_out, rtol=1e-5)
    assert len(built.sample(sharded)) > 1
    everything = {"params": (sharded.params, state.params), "average": (sharded.extra["average"], state.extra["average"]),
                  "moments": (sharded.opt.inner[0].mu, state.opt.inner[0].mu)}
    for name, (ours, reference) in everything.items():
        for path, leaf in P.flatten(ours).items():
            want = np.asarray(P.flatten(reference)[path])
            np.testing.assert_allclose(leaf, want, atol=2e-5 * max(1, np.abs(want).max()), err_msg=f"{mesh} {name} {path}")
            local = leaf.addressable_shards[0].data
            spec = P.flatten(built.specs)[path]
            divided = "embed" in spec.axes and spec.kind != "vector" and (zero == 3 or name != "params")
            assert leaf.size == local.size * (shards if divided else 1), (mesh, name, path)
    assert sharded.step.sharding.is_fully_replicated

try:
    program.build(dataclasses.replace(config, micro_batches=4), corpus)
except UserError as error:
    assert "4 rows in one pass" in str(error) and "8 devices" in str(error)
else:
    raise AssertionError("4 rows over 8 devices were accepted")

# A run that goes on under another mesh.
for mesh, steps in (("data=2,fsdp=4", 2), ("data=8", 4)):
    result = train.fit(dataclasses.replace(config, mesh=mesh, steps=steps, run_dir=folder))
np.testing.assert_allclose(result.summary["train_loss"], losses[-1], rtol=1e-5)
np.testing.assert_allclose(result.summary["eval_loss"], held_out, rtol=1e-5)
"""


def test_eight_devices_equal_one(run_python, tmp_path):
    (tmp_path / "text.txt").write_text("It was the best of times, it was the worst of times. " * 30)
    run_python(ON_EIGHT_DEVICES, str(tmp_path / "text.txt"), str(tmp_path / "run"), devices=8)

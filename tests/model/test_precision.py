"""Number formats: float64 stays float64 throughout; half precision keeps softmax, norms and logits in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.core import hypers
from research.core import params as P
from research.model import cache, transformer
from research.tasks import lm

EVERYTHING = {"norm": "layer", "norm_placement": "sandwich", "qk_norm": "head", "dropout": 0.1, "activation": "geglu-tanh", "layers": 3,
              "patterns": ("full", "sliding"), "attention_soft_cap": 5.0, "logit_soft_cap": 9.0, "remat": "full", "embedding_scale": "sqrt-width",
              "bias": ("query", "mlp-in", "mlp-out", "norm", "unembed")}  # fmt: skip


def equations(jaxpr):
    """Every equation of a program, inner programs included."""
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for inner in value if isinstance(value, (list, tuple)) else (value,):
                if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                    yield from equations(getattr(inner, "jaxpr", inner))


def program(config, dtype):
    params = P.abstract(transformer.specs(config), dtype)
    rows = jax.ShapeDtypeStruct((2, 5), jnp.int32)
    batch = {"tokens": rows, "targets": rows, "segments": rows, "weights": jax.ShapeDtypeStruct((2, 5), dtype)}
    values = hypers.make(**{name: 0.1 for name in hypers.Hypers.__dataclass_fields__ if name != "seed"}, seed=0)
    loss = lm.make_loss(config, lm.LMConfig(label_smoothing=0.1, z_loss=0.1))
    function = jax.value_and_grad(lambda p, batch, values: loss(p, batch, jax.random.key(0), values)[0])
    return jax.make_jaxpr(function)(params, batch, values)


@pytest.mark.parametrize(
    "changes",
    [
        {"positions": "rotary", **EVERYTHING},
        *({"positions": p, "layers": 1, "activation": "relu"} for p in ("learned", "sinusoidal", "alibi")),
    ],
    ids=lambda changes: changes["positions"],
)
def test_float64_in_float64_throughout(changes, tiny):
    with jax.enable_x64(True):
        made = program(tiny.config(**changes), jnp.float64)
    found = {}
    for equation in equations(made.jaxpr):
        for variable in equation.outvars:
            dtype = getattr(variable.aval, "dtype", None)
            if dtype is not None and jnp.issubdtype(dtype, jnp.floating):
                found.setdefault(str(dtype), set()).add(equation.primitive.name)
    assert set(found) == {"float64"}, {dtype: names for dtype, names in found.items() if dtype != "float64"}
    assert {str(a.dtype) for a in made.out_avals} == {"float64"}


def test_float64_is_more_exact_than_float32(tiny):
    config = tiny.config(layers=1)
    with jax.enable_x64(True):
        params = tiny.params(config, dtype=np.float64)
        tokens = jnp.asarray([[1, 2, 3]])
        shifted = {**params, "embed": {"tokens": params["embed"]["tokens"] * (1 + 1e-12)}}
        difference = np.abs(tiny.forward(params, tokens, config) - tiny.forward(shifted, tokens, config)).max()
    assert 0 < difference < 1e-10


def test_half_precision_multiplies_in_bfloat16_and_reduces_in_float32(tiny):
    made = program(tiny.config(**EVERYTHING, dtype="bfloat16"), jnp.float32)
    kinds = {}
    for equation in equations(made.jaxpr):
        kinds.setdefault(equation.primitive.name, set()).update(
            str(v.aval.dtype) for v in equation.invars if hasattr(v.aval, "dtype")
        )
    assert "bfloat16" in kinds["dot_general"], "products of activations"
    for reduction in ("exp", "log", "rsqrt", "reduce_max"):
        assert kinds[reduction] == {"float32"}, reduction
    assert {str(a.dtype) for a in made.out_avals} == {"float32"}, "loss and gradients"


def test_half_precision_logits_are_float32_and_near(tiny):
    config, half = tiny.config(), tiny.config(dtype="bfloat16")
    params, tokens = tiny.params(config), tiny.tokens(config)
    out = jax.jit(lambda: transformer.apply(params, tokens, half, taps=("attention_pattern",)))()
    assert out.outputs.dtype == jnp.float32 and out.taps["attention_pattern"].dtype == jnp.float32
    exact = np.asarray(tiny.forward(params, tokens, config))
    assert 0 < np.abs(out.outputs - exact).max() < 0.1 * np.abs(exact).max()


def test_norm_scales_are_not_rounded_to_half_precision(tiny):
    """A scale of 1 + 2^-9 is 1 in bfloat16; in float32 it moves some outputs to their neighbours."""
    config = tiny.config(dtype="bfloat16", norm_placement="post", layers=1, positions="none")
    params, tokens = tiny.params(config), tiny.tokens(config)

    run = jax.jit(lambda params: transformer.hidden(params, tokens, config).outputs)

    def outputs(scale):
        changed = {
            path: jnp.full_like(leaf, scale) if path.endswith("norm/scale") else leaf
            for path, leaf in P.flatten(params).items()
        }
        return np.asarray(run(P.unflatten(changed)), np.float32)

    assert (outputs(1.0) != outputs(1 + 2.0**-9)).mean() > 0.05


def test_a_cache_of_half_precision_serves_a_model_in_float32(tiny):
    config = tiny.config()
    params, tokens = tiny.params(config), tiny.tokens(config)
    out = jax.jit(lambda: transformer.apply(params, tokens, config, cache=cache.init(config, 2, 12, jnp.bfloat16)))()
    assert out.outputs.dtype == jnp.float32 and {layer.k_BKSH.dtype for layer in out.cache.layers} == {
        jnp.dtype("bfloat16")
    }
    np.testing.assert_allclose(out.outputs, tiny.forward(params, tokens, config), atol=0.1)

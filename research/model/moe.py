"""The mixture of experts: a router sends each token through a few of many feed-forwards (Shazeer et al., arXiv 1701.06538).

Letters: E experts, J a token's choices, the best first, C places in an expert's queue; R is every choice of every token in one axis.

Two implementations give the same output and gradients. `ragged` lays the tokens out by expert, in blocks of rows that share one, and goes
through the blocks, so an expert works on its own tokens alone. `dense` leaves tokens where they are: without a capacity every expert
works on every token and the gates weigh the results, with one tokens are dealt into the experts' queues by matrix products (GShard, arXiv
2006.16668), which the compiler can spread over an `expert` mesh axis. Both work under vmap. `auto` takes `dense` where experts or the sequence are
spread over devices and `ragged` otherwise, which on a CPU is faster even where a token visits every expert.

`jax.lax.ragged_dot` is not used: CPUs and NVIDIA GPUs expand it to every expert on every token, with zeros (4 to 20 times the time of the
blocks on a CPU), and its gradient under vmap is not implemented.
"""

from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from research.core import params as P
from research.core import sharding
from research.core.dtypes import at_least_float32
from research.model import mlp
from research.model.config import ModelConfig, MoEConfig
from research.model.layers import activate, dot

BLOCK = 64  # rows for which a product takes about as long as fetching its weights on a CPU


@struct.dataclass
class Routing:
    """Where tokens go. `queue_BTJ`: how many choices of the same sequence stand before this one at its expert; `kept_BTJ`: whether the choice
    counts, neither dropped nor of padding. `gates_BTJ` are 0 where it does not."""

    experts_BTJ: jax.Array
    chosen_BTJE: jax.Array  # one-hot
    gates_BTJ: jax.Array
    queue_BTJ: jax.Array
    kept_BTJ: jax.Array


def specs(config: ModelConfig) -> P.Tree:
    """The parameters of a sparse feed-forward: `router`, the experts' `in`, `gate` (for gated activations) and `out`, and what is shared."""
    moe, D, E, F = config.moe, config.width, config.moe.experts, expert_width(config)
    inner, outer = ("experts", "embed", "mlp"), ("experts", "mlp", "embed")
    tree: dict[str, Any] = {"router": _reader(config, E, "experts")}
    for name in mlp.inner_names(config):
        tree[name] = P.Param((E, D, F), inner, mlp.inner_init(config, D, F), inputs=1)
    tree["out"] = P.Param((E, F, D), outer, mlp.outer_init(config, F, D), inputs=1)
    if moe.shared_width is not None:
        tree["shared"] = mlp.specs(config, moe.shared_width)
    if moe.shared_gate:
        tree["shared_gate"] = _reader(config, 1, None)
    return tree


def _reader(config: ModelConfig, out: int, axis: str | None) -> P.Param:
    init = mlp.inner_init(config, config.width, out, carries=False)
    return P.Param((config.width, out), ("embed", axis), init, inputs=1)


def expert_width(config: ModelConfig) -> int:
    """The inner width of one expert."""
    return config.F if config.moe.width is None else config.moe.width


def capacities(moe: MoEConfig, T: int) -> list[int]:
    """How many tokens of a sequence an expert takes, for sequences of 0 to T: `capacity_factor x length x top_k / experts` rounded up, computed
    exactly from the factor as it is written; the length at most, since a token chooses an expert once."""
    share = Fraction(repr(moe.capacity_factor)) * moe.top_k / moe.experts
    return [min(length, -(-share.numerator * length // share.denominator)) for length in range(T + 1)]


def implementation(config: ModelConfig, sizes: dict[str, int] | None = None) -> str:
    """`ragged` or `dense`: what the config asks for, or what `auto` takes on a mesh of these sizes, that in use if None."""
    if config.moe.implementation != "auto":
        return config.moe.implementation
    sizes = sharding.axis_sizes() if sizes is None else sizes
    return "dense" if sizes.get("expert", 1) > 1 or sizes.get("sequence", 1) > 1 else "ragged"


def visits(config: ModelConfig, T: int, sizes: dict[str, int]) -> float:
    """How many experts work on a token of a row of T, on a mesh of these sizes: `top_k`, or all where each works on every token, or what their queues
    have places for."""
    moe = config.moe
    if implementation(config, sizes) == "ragged":
        return moe.top_k
    return moe.experts * (1.0 if moe.capacity_factor is None else capacities(moe, T)[-1] / T)


def apply(p: P.Tree, x_BTD: jax.Array, config: ModelConfig, written_BT: jax.Array | None = None):
    """`(y_BTD, load)`: what the router's losses are made of (see `route`, `losses`). Tokens that no expert takes get 0 from the experts, so the
    residual stream passes them on. With a cache `written_BT` is -1 at padding, which takes no place in a queue."""
    routing, load = route(p["router"], x_BTD, config.moe, written_BT)
    weights = {name: p[name].astype(x_BTD.dtype) for name in (*mlp.inner_names(config), "out")}
    if implementation(config) == "ragged":
        y_BTD = _ragged(weights, x_BTD, routing, config)
    elif config.moe.capacity_factor is None:
        y_BTD = _every_expert(weights, x_BTD, routing, config)
    else:
        y_BTD = _queues(weights, x_BTD, routing, config)
    if "shared" in p:
        shared_BTD = mlp.apply(p["shared"], x_BTD, config)
        y_BTD = y_BTD + (
            shared_BTD * jax.nn.sigmoid(dot(x_BTD, p["shared_gate"])) if "shared_gate" in p else shared_BTD
        )
    return sharding.constrain(y_BTD, "batch", "stream", None), load


def route(router_DE: jax.Array, x_BTD: jax.Array, moe: MoEConfig, written_BT: jax.Array | None = None):
    """`(Routing, load)`, computed in at least float32 at full precision.

    Gates are the softmax over all experts at the `top_k` largest (equal ones: the lower index), made to sum to 1 where `normalise`, before any
    is dropped. With a capacity the queues of a sequence fill in the order of GShard: the first choices of all its tokens by position, then
    the second choices, and so on; sequences do not compete. With a cache a sequence is what one call brings, padding aside.

    `load` holds means over the tokens, padding aside: `chosen` (E,), how often a token chooses each expert, dropped or not; `probability` (E,);
    `router_z`, the squared logsumexp of the logits.
    """
    with jax.default_matmul_precision("float32"):
        logits_BTE = dot(at_least_float32(x_BTD), router_DE)
    logits_BTE = sharding.constrain(logits_BTE, "batch", "sequence", None)
    p_BTE = jax.nn.softmax(logits_BTE)
    experts_BTJ = _best(jax.lax.stop_gradient(p_BTE), moe.top_k)
    chosen_BTJE = jax.nn.one_hot(experts_BTJ, moe.experts, dtype=p_BTE.dtype)
    gates_BTJ = jnp.einsum("BTE,BTJE->BTJ", p_BTE, chosen_BTJE)  # the gradient of top_k's own values would be a scatter
    if moe.normalise:
        gates_BTJ = gates_BTJ / jnp.sum(gates_BTJ, axis=-1, keepdims=True)
    real_BT = jnp.ones(x_BTD.shape[:2], bool) if written_BT is None else written_BT >= 0
    kept_BTJ = jnp.broadcast_to(real_BT[..., None], experts_BTJ.shape)
    queue_BTJ = _queue(chosen_BTJE, kept_BTJ)
    if moe.capacity_factor is not None:  # of the real tokens, so that what pads a batch changes no row of it
        places_B = jnp.asarray(capacities(moe, x_BTD.shape[1]))[jnp.sum(real_BT, axis=1)]
        kept_BTJ = kept_BTJ & (queue_BTJ < places_B[:, None, None])
    routing = Routing(experts_BTJ, chosen_BTJE, jnp.where(kept_BTJ, gates_BTJ, 0), queue_BTJ, kept_BTJ)
    return routing, _load(logits_BTE, p_BTE, chosen_BTJE, real_BT)


def _best(p_BTE: jax.Array, top_k: int) -> jax.Array:
    """The indices (B, T, J) of the largest entries, the best first. By maxima in turn, which stay on the device whose rows they are:
    `lax.top_k` would gather the rows of all devices."""
    best = []
    for _ in range(top_k):
        best.append(jnp.argmax(p_BTE, axis=-1))
        p_BTE = jnp.where(jax.nn.one_hot(best[-1], p_BTE.shape[-1], dtype=bool), -1, p_BTE)
    return jnp.stack(best, axis=-1).astype(jnp.int32)


def _queue(chosen_BTJE: jax.Array, real_BTJ: jax.Array) -> jax.Array:
    """How many real choices of the same expert and sequence come first: ranks of choice in turn, positions within a rank."""
    B, T, J, E = chosen_BTJE.shape
    chosen = jnp.where(real_BTJ[..., None], chosen_BTJE, 0).astype(jnp.int32).swapaxes(1, 2).reshape(B, J * T, E)
    before = ((jnp.cumsum(chosen, axis=1) - chosen) * chosen).sum(axis=-1)
    return before.reshape(B, J, T).swapaxes(1, 2)


def _load(logits_BTE, p_BTE, chosen_BTJE, real_BT) -> dict[str, jax.Array]:
    weights_BT = real_BT.astype(p_BTE.dtype) / jnp.maximum(jnp.sum(real_BT), 1)
    squares_BT = jnp.square(jax.nn.logsumexp(logits_BTE, axis=-1))
    return {
        "chosen": jnp.einsum("BTJE,BT->E", chosen_BTJE, weights_BT),
        "probability": jnp.einsum("BTE,BT->E", p_BTE, weights_BT),
        "router_z": jnp.sum(squares_BT * weights_BT),
    }


def losses(load: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """The router's losses of a layer, or of several by leading dimensions, from its load over a whole batch.

    `balance` is Switch's E sum_e f_e P_e (arXiv 2101.03961, equation 4) for top_k choices, so an even load gives top_k; `router_z` is that of ST-MoE
    (arXiv 2202.08906, equation 5).
    """
    chosen, probability = load["chosen"], load["probability"]
    balance = chosen.shape[-1] * jnp.sum(chosen * probability, axis=-1)
    return {"balance": balance, "router_z": load["router_z"]}


def _every_expert(p: P.Tree, x_BTD, routing: Routing, config: ModelConfig):
    """Every expert on every token, weighed by the gates: 0 for most."""
    weights_BTE = jnp.einsum("BTJ,BTJE->BTE", routing.gates_BTJ, routing.chosen_BTJE).astype(x_BTD.dtype)
    # each device has some experts, which see the rows of all that have others
    x_BTD = sharding.constrain(x_BTD, "dealt", "sequence", None)
    inner = [jnp.einsum("BTD,EDF->BTEF", x_BTD, w_EDF) for w_EDF in (p[name] for name in mlp.inner_names(config))]
    h_BTEF = _activated(inner, config)
    h_BTEF = sharding.constrain(h_BTEF * weights_BTE[..., None], "dealt", "sequence", "experts", "mlp")
    w_EFD = p["out"]
    return jnp.einsum("BTEF,EFD->BTD", h_BTEF, w_EFD)


def _queues(p: P.Tree, x_BTD, routing: Routing, config: ModelConfig):
    """Every expert on its queue of every sequence. Dealing out and collecting are products with one-hot arrays (B, T, E, C)."""
    C = capacities(config.moe, x_BTD.shape[1])[-1]
    place_BTJC = jax.nn.one_hot(jnp.where(routing.kept_BTJ, routing.queue_BTJ, -1), C, dtype=routing.gates_BTJ.dtype)
    gates_BTJ, chosen_BTJE, dtype = routing.gates_BTJ, routing.chosen_BTJE, x_BTD.dtype
    deal_BTEC = jnp.einsum("BTJE,BTJC->BTEC", chosen_BTJE, place_BTJC).astype(dtype)
    collect_BTEC = jnp.einsum("BTJ,BTJE,BTJC->BTEC", gates_BTJ, chosen_BTJE, place_BTJC).astype(dtype)
    x_EBCD = sharding.constrain(jnp.einsum("BTEC,BTD->EBCD", deal_BTEC, x_BTD), None, "batch", None, None)
    # all to all: from the devices of the rows to those of the experts
    x_EBCD = sharding.constrain(x_EBCD, "experts", "dealt", None, None)
    h_EBCF = _activated([_each(x_EBCD, p[name]) for name in mlp.inner_names(config)], config)
    h_EBCF = sharding.constrain(h_EBCF, "experts", "dealt", None, "mlp")
    y_EBCD = sharding.constrain(_each(h_EBCF, p["out"]), "experts", "dealt", None, None)
    y_EBCD = sharding.constrain(y_EBCD, None, "batch", None, None)  # and back
    return jnp.einsum("BTEC,EBCD->BTD", collect_BTEC, y_EBCD)


def _each(x_EBCD, w_EDF):
    """Every expert's rows times its matrix, (E, B, C, F). Folded into one axis, for which CPUs compute gradients faster."""
    x_ERD = x_EBCD.reshape(x_EBCD.shape[0], -1, x_EBCD.shape[3])
    return jnp.einsum("ERD,EDF->ERF", x_ERD, w_EDF).reshape(*x_EBCD.shape[:3], -1)


def _activated(inner: list[jax.Array], config: ModelConfig) -> jax.Array:
    return activate(inner[0], inner[1] if len(inner) > 1 else None, config.activation)


def _ragged(p: P.Tree, x_BTD, routing: Routing, config: ModelConfig):
    """Blocks of rows that share an expert. Rows that lie on different devices are laid out apart, each device's own among themselves."""
    shards = sharding.spread(sharding.axis_sizes(), "batch", sharding.rules())
    if shards == 1 or x_BTD.shape[0] % shards:
        return _blocks(p, x_BTD, routing, config)

    def split(x):
        x = x.reshape(shards, x.shape[0] // shards, *x.shape[1:])
        return sharding.constrain(x, "batch", *[None] * (x.ndim - 1))

    each = jax.vmap(lambda x_BTD, routing: _blocks(p, x_BTD, routing, config))
    return each(split(x_BTD), jax.tree.map(split, routing)).reshape(x_BTD.shape)


def _blocks(p: P.Tree, x_BTD, routing: Routing, config: ModelConfig):
    B, T, D = x_BTD.shape
    J, choices = config.moe.top_k, routing.experts_BTJ.size
    place_R, source, experts, size = _layout(routing, config.moe)
    x_RD = jnp.broadcast_to(x_BTD[:, :, None], (B, T, J, D)).reshape(choices, D)
    x = _take(x_RD, source, place_R).reshape(-1, size, D)
    h = _activated([_product(x, p[name], experts) for name in mlp.inner_names(config)], config)
    y = _product(sharding.constrain(h, None, None, "mlp"), p["out"], experts).reshape(-1, D)
    y_BTJD = _take(y, place_R, source).reshape(B, T, J, D)
    gates_BTJ = routing.gates_BTJ.astype(x_BTD.dtype)
    return jnp.einsum("BTJD,BTJ->BTD", y_BTJD, gates_BTJ)


def _layout(routing: Routing, moe: MoEConfig):
    """`(place_R, source, experts, size)`: the row of each choice, out of range for one that counts nowhere; the choice of each row, out of range for
    one that stays empty; the expert of each block; and how many rows a block has.

    Each expert's rows begin with a block. Small blocks leave few rows empty and large ones fetch weights seldom: a quarter of an even
    share, but at least BLOCK rows, is near the best of both.
    """
    B, T, J = routing.experts_BTJ.shape
    choices, E = B * T * J, moe.experts
    size = min(choices, max(BLOCK, -(-choices // (4 * E))))
    busy = min(E, choices)  # the most experts that have a row
    blocks = (choices - busy) // size + busy
    counts_BE = jnp.sum(jnp.where(routing.kept_BTJ[..., None], routing.chosen_BTJE, 0), axis=(1, 2)).astype(jnp.int32)
    ends_E = jnp.cumsum(-(-jnp.sum(counts_BE, axis=0) // size))  # in blocks
    begins_E = jnp.concatenate([jnp.zeros(1, ends_E.dtype), ends_E[:-1]]) * size
    first_BE = begins_E[None] + jnp.cumsum(counts_BE, axis=0) - counts_BE
    first = jnp.take_along_axis(first_BE, routing.experts_BTJ.reshape(B, T * J), axis=1).reshape(B, T, J)
    place_R = jnp.where(routing.kept_BTJ, first + routing.queue_BTJ, blocks * size).reshape(choices)
    source = (
        jnp.full(blocks * size, choices, jnp.int32).at[place_R].set(jnp.arange(choices, dtype=jnp.int32), mode="drop")
    )
    experts = jnp.sum(jnp.arange(blocks)[:, None] >= ends_E[None], axis=1)
    return place_R, source, jnp.minimum(experts, E - 1), size


@jax.custom_vjp
def _take(x, index, inverse):
    """Rows of x by `index`, 0 out of range. `inverse` is the way back, by which the gradient is a gather too and not a scatter."""
    del inverse
    return jnp.take(x, index, axis=0, mode="fill", fill_value=0)


_take.defvjp(
    lambda x, index, inverse: (_take(x, index, inverse), (index, inverse)),
    lambda residuals, g: (_take(g, residuals[1], residuals[0]), None, None),
)


@jax.custom_vjp
def _product(x, w, experts):
    """Blocks (n, rows, in) times the matrices of their experts, w (E, in, out): (n, rows, out). Weights are never copied as a whole, and their
    gradient is added up in at least float32."""

    def one(_, block):
        x, expert = block
        return None, x @ jax.lax.dynamic_index_in_dim(w, expert, keepdims=False)

    return jax.lax.scan(one, None, (x, experts))[1]


def _product_backward(residuals, g):
    x, w, experts = residuals

    def one(dw, block):
        x, g, expert = block
        more = dw[expert] + jnp.matmul(x.T, g, preferred_element_type=dw.dtype)
        return dw.at[expert].set(more), g @ w[expert].T

    dw, dx = jax.lax.scan(one, jnp.zeros(w.shape, jnp.promote_types(w.dtype, jnp.float32)), (x, g, experts))
    return dx, dw.astype(w.dtype), None


_product.defvjp(lambda x, w, experts: (_product(x, w, experts), (x, w, experts)), _product_backward)

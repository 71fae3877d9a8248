"""Run by test_devices.py in a process with 8 devices: how far attention in blocks under `sequence`, and as cuDNN is called, is from one device's,
with its gradients, and how many messages it takes."""

import functools
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np

from research.core import sharding
from research.model import attention
from research.model.attention import Bias, Mask
from research.model.positions import alibi_slopes
from research.scale import hlo

B, T, N, K, H = 4, 32, 4, 2, 8
CUDNN = ("data=4,tensor=2", "data=2,tensor=4", "data=2,fsdp=2,tensor=2")


def as_cudnn(*arrays, implementation: str, own=jax.nn.dot_product_attention, **options):
    """JAX's attention as its own compiler has it, in the place of cuDNN's."""
    assert implementation == "cudnn" and arrays[0].shape[0] * arrays[0].shape[2] in (B * N, B * N // 8)
    return own(*arrays, implementation="xla", **options)


def main(meshes: list[str]) -> dict:
    attention.BLOCK = 4
    attention._cudnn_has = lambda size: True
    jax.nn.dot_product_attention = as_cudnn
    draw = np.random.default_rng(0)
    q, weigh = (jnp.asarray(draw.normal(size=(B, T, N, H)), jnp.float32) for _ in range(2))
    k, v = (jnp.asarray(draw.normal(size=(B, T, K, H)), jnp.float32) for _ in range(2))
    segments = jnp.asarray(np.sort(draw.integers(0, 3, (B, T)), 1))
    cases = {
        "full": (Mask(), {}), "sliding": (Mask("sliding", 5), {}), "cap": (Mask(), {"cap": 2.0}),
        "segments": (Mask(query_segments_BT=segments, key_segments_BS=segments), {}),
        "bias": (Mask(), {"bias": Bias(alibi_slopes(N))}), "dropout": (Mask(), {"rate": 0.3, "key": jax.random.key(1)}),
        "prefix": (Mask("prefix", prefix_B=jnp.asarray([3, 0, 9, 32])), {}),
        "cudnn": (Mask(), {"implementation": "cudnn"}), "cudnn sliding": (Mask("sliding", 5), {"implementation": "cudnn"}),
    }  # fmt: skip
    results = {}
    for name, (mask, options) in cases.items():

        def weighed(q, k, v, mask, options=options):
            dtype = jnp.bfloat16 if "implementation" in options else jnp.float32
            q, k, v = (sharding.constrain(x.astype(dtype), "batch", "sequence", None, None) for x in (q, k, v))
            found = attention.attend(q, k, v, mask, scale=0.3, **{"implementation": "blocked", **options})
            return jnp.mean(found * weigh)

        def both(weighed=weighed):  # anew for every mesh: what is traced depends on it
            return jax.jit(jax.value_and_grad(functools.partial(weighed), (0, 1, 2)))

        alone = both()(q, k, v, mask)
        for text in CUDNN if "implementation" in options else meshes:
            with sharding.use(sharding.make_mesh(text)):
                program = both().lower(q, k, v, mask).compile()
            far = max(
                float(jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(b)))
                for a, b in zip(jax.tree.leaves(program(q, k, v, mask)), jax.tree.leaves(alone), strict=True)
            )
            sent = sum(one.executed for one in hlo.collectives(program.as_text(), np.zeros(8, int)))
            results[f"{name} {text}"] = {"far": far, "collectives": sent}
    return results


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1:])))

"""Run by test_sample_cache.py in a process with 8 devices: prints whether a mesh draws what one device draws, and how its cache lies."""

import json
import sys

import jax
import numpy as np

from research.core import params as P
from research.core import sharding
from research.model import transformer
from research.model.config import ModelConfig
from research.sample import decode as D
from research.sample.engine import continuations
from research.sample.models import Loaded
from research.sample.options import Sampling

CONFIG = ModelConfig(
    vocab_size=24, context=40, width=16, layers=1, heads=4, kv_heads=2, mlp_width=32, patterns=("sliding",), window=6, tied=False,
)  # fmt: skip
WAYS = {"beams": Sampling(max_tokens=12, beams=2), "speculative": Sampling(max_tokens=12, temperature=0, lookup=2)}
ROWS = np.arange(8, dtype=np.int32)


def drawn(model: Loaded) -> tuple[list, dict]:
    """`(12 tokens of 8 rows, how the cache of 8 bits lies after them)`."""
    filters = Sampling(top_p=0.9).filters()
    prompts = D.Prompts(np.stack([ROWS] * 8) + ROWS[:, None], ROWS + 1, ROWS.astype(np.uint32), 0 * ROWS)
    prepared = D.prepare(model.params, CONFIG)
    sizes = {"num": 1, "length": 24, "vocab": 24, "drawn": True, "remember": False}
    state = D.prefill(prepared, prompts, np.uint32(0), stored="int8", **sizes)
    before = state.cache.layers[0].k_BKSH
    state, found = D.decoder()(prepared, state, filters, np.int32(12))
    layers = state.cache.layers
    shards = [[x.addressable_shards[0].data.shape for x in (one.k_BKSH, one.k_scale_BKS)] for one in layers]
    lies = {"shards": shards, "dtypes": [str(one.v_BKSH.dtype) for one in layers], "donated": before.is_deleted()}
    return np.asarray(found.tokens).tolist(), lies


def main(mesh_text: str) -> dict:
    draw = np.random.default_rng(0)
    specs = transformer.specs(CONFIG)
    params = P.tree_map(lambda p: (draw.normal(size=p.shape) * 0.3).astype(np.float32), specs)
    mesh = sharding.make_mesh(mesh_text)
    alone = Loaded(jax.device_put(params, jax.devices()[0]), CONFIG, None)
    spread = Loaded(jax.device_put(params, sharding.shardings(specs, mesh)), CONFIG, None)
    prompts = [[1 + i, 2, 3, *range(i)] for i in range(8)]
    texts = [
        {name: [one.tokens for one in continuations(model, prompts, how)] for name, how in WAYS.items()}
        for model in (alone, spread)
    ]
    same = {name: texts[0][name] == texts[1][name] for name in WAYS}
    expected, _ = drawn(alone)
    with sharding.use(mesh):
        found, lies = drawn(spread)
    return {"same": {**same, "drawn": found == expected}, **lies}


if __name__ == "__main__":
    assert jax.device_count() == 8
    print(json.dumps(main(sys.argv[1])))

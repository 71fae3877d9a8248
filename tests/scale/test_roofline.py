"""The roofline: what it says of published runs by arithmetic alone, and of messages by theory."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
from jax.sharding import AbstractMesh

from research.core import chips
from research.families import llama, preset
from research.scale import gpus, roofline, search
from research.scale.hlo import Collective
from research.scale.topology import topology
from research.train import Config


def published(width, remat):
    return llama.config(32, width, 64, 28672, context=2048, head_size=128, remat=remat)


@pytest.mark.parametrize(
    ("width", "remat", "there", "mesh", "rows", "teraflops"),
    [
        (4096, "full", "v5e-256", "fsdp=256", 6, 120), (8192, "full", "v5e-256", "fsdp=256", 4, 132),
        (8192, "matmuls", "v5p-128", "fsdp=16,tensor=4", 6, 328),
    ],
)  # fmt: skip
def test_published_runs_are_predicted_within_15_percent(width, remat, there, mesh, rows, teraflops):
    """MaxText's runs, messages by theory; docs/scale.md has them with the messages of the compiled step."""
    model, topo = published(width, remat), topology(there)
    config = Config(model=model, batch_size=rows * topo.chips, mesh=mesh)
    seconds = search.estimate(config, topo).seconds
    flops = roofline.flops.train_flops_per_token(model, 2048) * config.step_tokens / topo.chips
    assert seconds == pytest.approx(flops / teraflops / 1e12, rel=0.15)


def program(**axes):
    mesh = AbstractMesh(tuple(axes.values()), tuple(axes))
    devices = np.array([SimpleNamespace(coords=None) for _ in range(mesh.size)]).reshape(tuple(axes.values()))
    return SimpleNamespace(mesh=SimpleNamespace(shape=mesh.shape, size=mesh.size, devices=devices))


@pytest.mark.parametrize(
    ("kind", "bytes", "sent"),
    [
        ("all-gather", 800, 700),
        ("reduce-scatter", 100, 700),
        ("all-reduce", 800, 1400),
        ("all-to-all", 800, 700),
        ("collective-permute", 800, 800),
    ],
)
def test_a_message_takes_what_leaves_a_device_over_its_links(kind, bytes, sent):
    chip, all_of_them = chips.CHIPS["H100"], np.arange(8)[None]
    one = Collective(kind, 3, bytes, all_of_them)
    found = roofline.message_seconds(one, chip, np.zeros(8, int), program(fsdp=8))
    assert found == pytest.approx(3 * sent / (450e9 * roofline.REACHED["link"]))
    across = roofline.message_seconds(one, chip, np.arange(8) // 4, program(fsdp=8))
    assert across == pytest.approx(3 * sent / 4 / (50e9 * roofline.REACHED["network"])), "four cards a node"
    alone = roofline.message_seconds(one, chip, np.arange(8), program(fsdp=8))
    assert alone == pytest.approx(3 * sent / (50e9 * roofline.REACHED["network"]))


def test_recomputation_costs_its_passes_and_saves_its_bytes():
    config, model = Config(model=published(4096, "full"), batch_size=8), published(4096, "full")
    none = published(4096, "none")
    full, without = roofline.work(config, model, {"fsdp": 8}), roofline.work(config, none, {"fsdp": 8})
    head = 2 * model.V * model.width * 2048
    assert (full.products - 3 * head) / (without.products - 3 * head) == pytest.approx(4 / 3)
    kept = [roofline.kept_bytes(published(4096, name), 2048, 1, 1) for name in ("full", "attention", "matmuls", "none")]
    assert kept == sorted(kept) and kept[0] == 2 * 2048 * 4096 * 32


def test_experts_that_a_token_was_not_sent_to_work_on_it_where_they_are_spread_and_drop_nothing():
    dropless, dropping = preset("mixtral-8x7b"), preset("mixtral-8x7b")
    dropping = dataclasses.replace(dropping, moe=dataclasses.replace(dropping.moe, capacity_factor=1.25))
    expert = 3 * 2 * 3 * dropless.width * dropless.F * dropless.layers * 4096  # of each token: three products, and back
    base, config = {"fsdp": 8}, Config(model=dropless, batch_size=8, sequence_length=4096)
    for model, sizes, more in (
        (dropless, {"expert": 8}, 6), (dropless, {"sequence": 2, "fsdp": 4}, 6), (dropping, base, 0), (dropping, {"expert": 8}, 0.5),
    ):  # fmt: skip
        extra = roofline.work(config, model, sizes).products - roofline.work(config, dropless, base).products
        assert extra == pytest.approx(more * expert, rel=1e-3, abs=1e-6 * expert), (model.moe, sizes)


def test_a_gpu_is_described_by_its_facts():
    text = gpus.target_config("H100")
    assert (
        "core_count: 132" in text
        and "major: 9 minor: 0" in text
        and "ACCELERATED" in text
        and 'platform_name: "CUDA"' in text
    )
    assert "feature_extension: NONE" in gpus.target_config("A100")
    assert set(gpus.GPUS) == {"A100", "H100", "H200", "B200"} and all(name in chips.CHIPS for name in gpus.GPUS)


def test_attention_of_a_gpu_that_is_elsewhere_is_cudnn_s(run_python):
    code = """
from research.model import attention
from research.scale import gpus
here = attention._cudnn_has(64)
for name in ("A100", "H200"):
    gpus.pretend_cudnn(name)
    attention._cudnn_has.cache_clear()
    print(here, name, [attention._cudnn_has(size) for size in (64, 128, 256, 512, 60)])
"""
    assert run_python(code).splitlines() == [
        "False A100 [True, True, False, False, False]",
        "False H200 [True, True, True, False, False]",
    ]


def test_a_copy_is_read():
    assert 1e7 < chips.measured_copy_bandwidth(2**16, 0.01) < 1e13

"""The table of chips, number formats, hypers and the cache folder."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from research.core import chips, dtypes, hypers, paths

VALUES = {name: 0.5 for name in hypers.Hypers.__dataclass_fields__ if name != "seed"}


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("NVIDIA H200", "H200"), ("NVIDIA H100 80GB HBM3", "H100"), ("NVIDIA A100-SXM4-40GB", "A100"), ("NVIDIA L4", "L4"),
        ("TPU v4", "TPU v4"), ("TPU v5 lite", "TPU v5e"), ("TPU v5", "TPU v5p"), ("TPU v5p", "TPU v5p"), ("TPU v6 lite", "TPU v6e"),
        ("cpu", None), ("NVIDIA L40S", None), ("NVIDIA L40", None), ("NVIDIA GeForce RTX 4090", None), ("", None),
    ],
)  # fmt: skip
def test_a_device_kind_names_its_chip_and_no_other(kind, name):
    chip = chips.lookup(kind)
    assert (chip and chip.name) == name


def test_published_figures_are_plausible():
    for chip in chips.CHIPS.values():
        assert 1e14 < chip.flops < 1e16 and 16e9 <= chip.memory <= 300e9 and 1e11 < chip.bandwidth < 1e13, chip
        assert 100 < chip.flops / chip.bandwidth < 700, chip


def test_peak_of_a_cpu_is_measured_and_says_so(monkeypatch):
    monkeypatch.setattr(chips, "measured_matmul_flops", lambda: 3e9)
    assert chips.peak_flops() == (3e9, "measured: 1024 x 1024 float32 matrix product")


def test_measured_product_counts_two_operations_a_term():
    assert 1e7 < chips.measured_matmul_flops(size=64, seconds=0.01) < 1e14


@pytest.mark.parametrize(
    ("requested", "params", "backend", "expected"),
    [
        ("auto", "float32", "cpu", "float32"), ("auto", "float32", "gpu", "bfloat16"), ("auto", "float32", "tpu", "bfloat16"),
        ("auto", "float64", "cpu", "float64"), ("auto", "float64", "gpu", "float64"), ("bfloat16", "float32", "cpu", "bfloat16"),
        ("float32", "float32", "gpu", "float32"), ("float16", "float64", "cpu", "float16"),
    ],
)  # fmt: skip
def test_compute_dtype(requested, params, backend, expected, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    assert dtypes.compute_dtype(requested, jnp.dtype(params)) == jnp.dtype(expected)


def test_reductions_are_promoted_to_float32_and_no_lower():
    for given, expected in (("float16", "float32"), ("bfloat16", "float32"), ("float32", "float32")):
        assert dtypes.at_least_float32(jnp.zeros((), given)).dtype == expected
    with jax.enable_x64(True):
        assert dtypes.at_least_float32(jnp.zeros((), "float64")).dtype == "float64"


def test_hypers_are_scalars_of_the_widest_float_and_an_unsigned_seed():
    made = hypers.make(**VALUES, seed=2**32 - 1)
    assert made.seed.dtype == jnp.uint32 and int(made.seed) == 2**32 - 1
    assert {leaf.dtype for leaf in jax.tree.leaves(made.replace(seed=made.dropout))} == {jnp.dtype("float32")}
    with jax.enable_x64(True):
        assert hypers.make(**VALUES, seed=0).learning_rate.dtype == jnp.float64
    with pytest.raises(TypeError, match="warmup"):
        hypers.make(**VALUES, seed=0, warmup=3)


def test_cache_folder(monkeypatch):
    monkeypatch.setenv("RESEARCH_CACHE", "~/elsewhere")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert paths.research_cache_dir() == Path.home() / "elsewhere"
    monkeypatch.setenv("RESEARCH_CACHE", "")
    assert paths.research_cache_dir() == Path("/x/purestep")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert paths.research_cache_dir() == Path.home() / ".cache" / "purestep"

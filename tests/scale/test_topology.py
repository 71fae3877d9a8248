"""Hardware by its name."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.core.errors import UserError
from research.scale import topology as T


@pytest.mark.parametrize(
    ("name", "platform", "chips", "devices", "slices", "shape"),
    [
        ("v5e-16", "tpu", 16, 16, 1, "v5e:4x4"),
        ("v5p-256", "tpu", 128, 128, 1, "v5p:4x4x8"),  # cores
        ("v5p-32", "tpu", 16, 16, 1, "v5p:2x2x4"),
        ("v6e-256", "tpu", 256, 256, 1, "v6e:16x16"),
        ("v5e-16x2", "tpu", 32, 32, 2, "v5e:4x4"),
        ("tpu7x-8", "tpu", 4, 8, 1, "tpu7x:2x2x1"),  # two devices a chip
        ("h100x8", "gpu", 8, 8, 1, ""),
        ("h200x64", "gpu", 64, 64, 8, ""),
        ("h100x2", "gpu", 2, 2, 1, ""),
        ("cpu-8", "cpu", 8, 8, 1, ""),
    ],
)
def test_names_are_read(name, platform, chips, devices, slices, shape):
    found = T.topology(name)
    assert (found.platform, found.chips, found.devices, found.slices, found.shape) == (
        platform,
        chips,
        devices,
        slices,
        shape,
    )
    assert (found.chip is None) == (platform == "cpu")


def test_a_topology_says_its_chips():
    assert T.topology("v5p-256").said == "128 TPU v5p chips of 4x4x8"
    assert T.topology("tpu7x-8").said == "4 TPU7x chips (8 devices) of 2x2x1"
    assert T.topology("v5e-16x2").said == "32 TPU v5e chips in 2 slices of 4x4"
    assert T.topology("h200x64").said == "64 H200 GPUs in 8 nodes"


@pytest.mark.parametrize(
    "name",
    ["v5e-17", "v5p-255", "v5p-6", "h100x12", "h100x0", "cpu-0", "cpu-", "x100x8", "v9e-16", "", "v5e-16x0"],
)
def test_unknown_names_are_refused(name):
    with pytest.raises(UserError, match="there is no topology"):
        T.topology(name)


def test_names_are_taken_in_any_case_and_as_google_has_them():
    assert [T.topology(name).name for name in ("V5E-16", "v5litepod-16", "tpu-v5litepod-8", "H100x8")] == [
        "v5e-16", "v5e-16", "v5e-8", "h100x8",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("v5e-15", "v5e-16, v5e-8"),
        ("h100x12", "h100x8, h100x16"),
        ("v5p", "v5p-8, v5p-16"),
        ("tpu7x-3", "tpu7x-8"),
        ("cpu", "cpu-8"),
    ],
)
def test_the_nearest_names_are_given(name, near):
    with pytest.raises(UserError, match=f"did you mean {near}"):
        T.topology(name)


@given(st.sampled_from(T.names()))
def test_every_listed_name_is_one(name):
    found = T.topology(name)
    assert found.name == name and found.devices >= found.chips >= 1 and found.devices % found.slices == 0


def test_larger_ones_are_of_the_same_kind_and_grow():
    larger = T.larger_topologies(T.topology("v6e-16"))
    assert [one.devices for one in larger] == [32, 64, 128, 256] and all(one.name.startswith("v6e-") for one in larger)
    assert T.larger_topologies(T.topology("h100x8"))[0].name == "h100x16"

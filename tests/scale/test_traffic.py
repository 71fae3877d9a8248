"""What is sent along each axis: read from groups of devices, and theory by hand."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
from jax.sharding import AbstractMesh

from research.model.config import ModelConfig, MoEConfig
from research.scale import traffic
from research.scale.hlo import Collective
from research.train.config import Config

MESH = AbstractMesh((2, 1, 4), ("data", "fsdp", "tensor"))
MODEL = ModelConfig(vocab_size=64, context=16, width=32, heads=4, kv_heads=2, layers=8, mlp_width=64, tied=False)
MATRICES = 8 * (32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 64) + 2 * 64 * 32
VECTORS = 17 * 32


@pytest.mark.parametrize(
    ("groups", "axes"),
    [
        ([[0, 1, 2, 3], [4, 5, 6, 7]], ("tensor",)),
        ([[0, 4], [1, 5]], ("data",)),
        ([list(range(8))], ("data", "tensor")),
        ([[0], [1]], ()),
    ],
)
def test_axes_are_those_along_which_a_group_differs(groups, axes):
    assert traffic.axes(Collective("all-gather", 1, 8, np.array(groups)), MESH) == axes


def test_a_group_of_several_nodes_uses_the_network():
    one = Collective("all-gather", 1, 8, np.array([[0, 2], [1, 3]]))
    assert traffic.crosses(one, np.array([0, 0, 1, 1])) and not traffic.crosses(one, np.array([0, 1, 0, 1]))


def test_theory_of_an_axis_stands_once_beside_the_most_of_what_goes_along_it():
    groups = np.array([[0, 1]]), np.array([[0, 2]])
    mesh = SimpleNamespace(shape={"fsdp": 4}, devices=np.array([SimpleNamespace(platform="tpu")] * 4))
    program = SimpleNamespace(mesh=mesh, config=Config(model=MODEL, batch_size=16), model=MODEL)
    found = traffic.measured(
        [Collective("all-gather", 1, 8 * (i + 1), g) for i, g in enumerate(groups)], program, np.array([0, 0, 1, 1])
    )
    assert [(one.network, one.theory is None) for one in found] == [(True, False), (False, True)]


def theory(remat="full", micro_batches=1, model=MODEL, batch=16, **sizes):
    model = dataclasses.replace(model, remat=remat)
    return traffic.theory(Config(model=model, batch_size=batch, micro_batches=micro_batches), model, sizes, 2)


def test_fsdp_sends_three_passes_over_the_weights_and_data_its_gradients_once():
    assert theory(fsdp=4) == {"fsdp": 3 * 2 * MATRICES * 3 / 4}
    assert theory("none", fsdp=4) == {"fsdp": 2 * 2 * MATRICES * 3 / 4}
    assert theory(fsdp=4, micro_batches=2) == {"fsdp": 2 * 3 * 2 * MATRICES * 3 / 4}
    assert theory(data=2, fsdp=2) == {"data": 2 * 2 * (MATRICES / 2 + VECTORS) / 2, "fsdp": 3 * 2 * MATRICES / 2}


def test_tensor_sequence_and_stages_send_rows():
    stream = 2 * 16 * 16 * 32  # 16 rows of 16 tokens
    assert theory(tensor=4) == {"tensor": 8 * 12 * stream * 3 / 4}
    assert theory(sequence=4) == {"sequence": 8 * 3 * (stream / 32 / 4) * 2 * 16 * 3}
    turns = 4 * 4 + 3
    assert theory(stage=4) == {"stage": 4 * turns * stream / 16}
    a_turn = MODEL.layers / 4 * (MATRICES - 2 * 64 * 32) / MODEL.layers
    assert theory(stage=4, fsdp=2, batch=32)["fsdp"] == pytest.approx(3 * 2 * (turns * a_turn + 2 * 64 * 32) / 2)


def test_rows_go_to_experts_and_back():
    sparse = ModelConfig(
        vocab_size=64,
        width=32,
        heads=4,
        layers=2,
        context=16,
        feed_forward=("dense", "moe"),
        moe=MoEConfig(experts=4, capacity_factor=2.0),
    )
    stream = 2 * 16 / 4 * 16 * 32
    assert theory(model=sparse, expert=4) == {"expert": 6 * stream * 4 * 3 / 4}, "four times as many places as tokens"

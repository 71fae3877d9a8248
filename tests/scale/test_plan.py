"""Plans for eight devices that are not there: what they say against arithmetic, theory, and what training then does."""

import dataclasses
import importlib.util
import json
import math
import re

import pytest

from research.core import params as P
from research.model import transformer
from research.scale import plan, search
from research.scale.topology import topology
from research.train import experiments

MODEL = ["--model.layers", "3", "--model.width", "64", "--model.heads", "4", "--model.context", "64", "--batch", "16"]
PLAN = """
import json, sys
from research import cli
sys.exit(cli.main(["plan", "lm_tiny_text", "--topology", "cpu-8", *json.loads(sys.argv[1]), "--json", "--show-sharding"]))
"""
TRAINED = """
import dataclasses, json, sys, jax
from research.scale import plan
from research.train import config as C, experiments, start
from research.core import config as core_config
config = core_config.parse(C.Arguments(experiments.load("lm_tiny_text").config), json.loads(sys.argv[1]), "test").experiment
ours, theirs = start.program_of(config), plan.program_for(config, jax.devices())
same = jax.tree.map(lambda a, b: a == b, ours.abstract_state(), theirs.abstract_state())
rows = {k: v.sharding for k, v in ours.put_batch(ours.batches(0)).items()}
from research.scale import aot
planned = {k: v.sharding for k, v in aot.abstract_batch(theirs).items()}
state, batch = ours.initial_state(), ours.put_batch(ours.batches(0))
real = ours.compiled_step
held = sum(shard.data.nbytes for leaf in jax.tree.leaves((state, batch)) for shard in leaf.addressable_shards if shard.device == jax.devices()[0])
taken = held + real.memory_analysis().temp_size_in_bytes
state, _ = real(state, batch, ours.hypers)
print(json.dumps([all(jax.tree.leaves(same)), rows == planned, ours.model == theirs.model, aot.compile_step(theirs).peak / taken]))
"""


@pytest.fixture(scope="module")
def planned(run_python):
    """Plans by mesh: (what the JSON says, what is printed)."""
    out = {}
    for mesh in ("fsdp=8", "fsdp=2,tensor=4", "fsdp=8 --model.remat full", "data=8"):
        said = run_python(PLAN, json.dumps([*MODEL, "--mesh", *mesh.split()]), devices=8)
        out[mesh] = json.loads(said.splitlines()[-1]), said
    return out


def model():
    config = experiments.load("lm_tiny_text").config
    return plan.known(
        dataclasses.replace(config, model=dataclasses.replace(config.model, layers=3, width=64, heads=4, context=64))
    ).model


def test_a_plan_says_what_the_contract_has(planned):
    found, said = planned["fsdp=8"]
    assert (
        found["chips"] == 8
        and found["fits"] is True
        and found["mesh"] == {"fsdp": 8}
        and found["batch"] == 16
        and found["sequence"] == 64
    )
    assert (
        found["limit_bytes_per_chip"] is None and found["step_seconds"] is None and found["compile_seconds"] > 0
    )  # a CPU has no published peak
    assert found["peak_bytes_per_chip"] == found["bytes"]["peak"] > found["bytes"]["params"] > 0
    assert found["params"] == P.count(transformer.specs(model()))
    assert "8 CPU devices" in said and "decoder/0/0/attention/query" in said and "bytes a device" in said


@pytest.mark.parametrize("mesh", ["fsdp=8", "fsdp=2,tensor=4"])
def test_bytes_of_the_state_are_exact(mesh, planned):
    sizes = planned[mesh][0]["mesh"]
    fsdp, tensor = sizes["fsdp"], sizes.get("tensor", 1)
    held = 0
    for p in P.flatten(transformer.specs(model())).values():
        parts = 1
        for axis, size in zip(p.axes, p.shape, strict=True):
            over = {
                "embed": fsdp if p.kind != "vector" else 1,
                "vocab": tensor,
                "heads": tensor,
                "kv_heads": tensor,
                "mlp": tensor,
            }.get(axis, 1)
            parts *= over if size % over == 0 else 1
        held += 4 * p.size // parts
    found = planned[mesh][0]["bytes"]
    assert found["params"] == held
    assert 2 * held < found["optimizer"] < 2 * held + 200  # two moments, and counters


def test_under_fsdp_weights_are_gathered_twice_and_nothing_is_gathered_that_is_no_weight(planned):
    """Once going forward and once going back; a CPU reduces gradients whole where accelerators scatter them."""
    found = planned["fsdp=8"][0]["collectives"]
    matrices = sum(
        4 * p.size
        for path, p in P.flatten(transformer.specs(model())).items()
        if p.kind != "vector" and "positions" not in path
    )
    assert 1.0 <= found["all-gather"]["bytes"] / matrices < 2.2
    assert found["all-reduce"]["bytes"] < 1.2 * matrices


@pytest.mark.parametrize(("mesh", "times"), [("fsdp=8", 1), ("fsdp=8 --model.remat full", 2)])
def test_each_weight_is_gathered_once_for_each_time_that_it_is_used_and_nothing_else_is(mesh, times, planned):
    """Recomputing uses the weights of layers twice. Beside them the head's is gathered, and the tokens' ids for the embedding and its gradient."""
    matrices = [
        path
        for path, p in P.flatten(transformer.specs(model())).items()
        if path.startswith("decoder") and p.kind != "vector"
    ]
    assert len(matrices) == 6
    assert planned[mesh][0]["collectives"]["all-gather"]["executed"] == times * 6 * 3 + 1 + 2


def test_under_data_gradients_alone_travel(planned):
    found = planned["data=8"][0]
    assert set(found["collectives"]) == {"all-reduce"}
    (along,) = found["traffic"]
    assert (
        along["axes"] == ["data"] and 1 <= along["sent"] / along["theory"] < 1.15
    )  # the tied table's two gradients travel apart


@pytest.mark.parametrize("mesh", ["fsdp=8", "fsdp=8 --model.remat full"])
def test_what_is_sent_along_fsdp_is_what_theory_says(mesh, planned):
    """A CPU reduces gradients whole, which is twice the bytes of scattering them: of three passes the third counts double."""
    (along,) = planned[mesh][0]["traffic"]
    passes = 3 if "full" in mesh else 2
    assert along["axes"] == ["fsdp"] and not along["network"]
    assert along["sent"] == pytest.approx(along["theory"] * (passes + 1) / passes, rel=0.15)


def test_what_is_planned_is_what_train_uses(run_python):
    said = run_python(TRAINED, json.dumps([*MODEL[:-2], "--batch-size", "16", "--mesh", "fsdp=4,tensor=2"]), devices=8)
    *same, ratio = json.loads(said.splitlines()[-1])
    assert same == [True, True, True] and 0.9 < ratio < 1.1, "of the memory that the run takes"


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="the extra plan-tpu is not installed")
def test_for_tpus_no_gradient_is_reduced_whole_and_no_activation_at_all(run_python):
    code = PLAN.replace("cpu-8", "v5e-16").replace("lm_tiny_text", "llama3-8b")
    words = ["--model.layers", "4", "--sequence-length", "1024", "--mesh", "fsdp=4,tensor=4", "--fast"]
    found = json.loads(run_python(code, json.dumps(words)).splitlines()[-1])
    assert found["compiled_for"] == "chip" and "reduce-scatter" in found["collectives"]
    smallest = 2 * 4096 * 1024 // 4  # bytes of a device's gradient of keys; a row of activations has four times as many
    assert found["collectives"]["all-reduce"]["bytes"] < smallest, found["collectives"]


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="the extra plan-tpu is not installed")
@pytest.mark.parametrize(
    ("there", "words"),
    [
        ("v5e-4", ["--mesh", "stage=2,fsdp=2"]),
        ("v5e-1", []),
        ("v5e-4", ["--mesh", "fsdp=2,sequence=2", "--sequence-length", "1024", "--model.context", "1024"]),
    ],
)
def test_small_steps_compile_for_tpus(there, words, run_python):
    """Stages whose layers the config unrolls, a host of one chip, heads that are padded where a device has some of the queries."""
    found = json.loads(
        run_python(PLAN.replace("cpu-8", there), json.dumps(["--batch", "8", "--fast", *words])).splitlines()[-1]
    )
    assert found["compiled_for"] == "chip" and found["fits"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["gpt2", "--topology", "cpu-1", "--mesh", "member=1"], "for the members of a sweep"),
        (["gpt2", "--topology", "v5e-17"], "there is no topology 'v5e-17'; did you mean"),
        (["gpt3", "--topology", "cpu-1"], "there is no experiment 'gpt3' .* did you mean .*gpt3-"),
        (["gpt2", "--topology", "cpu-1", "--mesh", "fsdp=2"], "has 2 devices, but there are 1"),
        (["gpt2", "--topology", "cpu-1", "--mesh", "fdsp=1"], "AXIS=SIZE"),
        (["gpt2", "--topology", "cpu-4096"], "devices already"),
        (["gpt2", "--topology", ""], "there is no topology ''"),
        (["gpt2", "--topology", "cpu-1", "--batch", "4", "--batch-size", "8"], "are the same"),
        (["--topology", "cpu-1"], "usage: research plan"),
    ],
)
def test_bad_input_is_refused_before_anything_compiles(words, message, call_verb):
    code, _, err = call_verb("plan", *words)
    assert code == 2
    assert re.search(message, err), err


def estimates(name="llama3-8b", there="v5p-32", **changes):
    topo = topology(there)
    config = dataclasses.replace(plan.of_preset(plan.families.PRESETS[name], topo.devices), **changes)
    return config, topo


def test_meshes_divide_the_model_and_the_rows():
    config, topo = estimates()
    meshes = list(search.meshes(config, topo))
    assert "fsdp=16" in meshes and "fsdp=8,tensor=2" in meshes and len(set(meshes)) == len(meshes)
    for mesh in meshes:
        assert math.prod(search._sizes(mesh).values()) == 16, mesh


def test_no_mesh_is_tried_that_would_be_refused():
    config, topo = estimates("gpt2-xl", "h100x24", batch_size=240)
    meshes = [search._sizes(mesh) for mesh in search.meshes(config, topo)]
    assert meshes and all(1600 % sizes.get("fsdp", 1) == 25 % sizes.get("tensor", 1) == 0 for sizes in meshes)


def test_slices_differ_under_data_stages_or_fsdp():
    config, topo = estimates(there="v5e-16x2")
    meshes = [search._sizes(mesh) for mesh in search.meshes(config, topo)]
    assert {"data": 2, "fsdp": 16} in meshes and {"stage": 2, "fsdp": 16} in meshes and {"fsdp": 32} in meshes
    assert all(sizes.get("data", 1) * sizes.get("stage", 1) * sizes.get("fsdp", 1) % 2 == 0 for sizes in meshes)


def test_few_rows_are_spread_by_their_positions():
    config, topo = estimates(batch_size=2)
    assert any("sequence" in mesh for mesh in search.meshes(config, topo))


def test_the_search_prefers_what_computes_least_and_fits():
    config, topo = estimates()
    found = search.choices(config, topo, 95e9)
    assert found[0].seconds == min(one.seconds for one in found)
    tight = search.choices(config, topo, 12e9)
    assert tight and all(one.bytes <= 12e9 for one in tight) and tight[0].seconds >= found[0].seconds
    assert not search.choices(config, topo, 1e9)


def test_what_is_fixed_stays():
    config, topo = estimates()
    found = search.choices(config, topo, 95e9, frozenset({"model.remat", "micro_batches"}))
    assert {(one.config.model.remat, one.config.micro_batches) for one in found} == {("full", 1)}


def test_changes_of_what_does_not_fit_begin_with_the_least():
    config, topo = estimates(mesh="fsdp=16", batch_size=64)
    model = dataclasses.replace(config.model, remat="none")
    changes = search.changes(dataclasses.replace(config, model=model), topo, 80e9)
    assert len(changes[0][0].split()) == 2, "one option"
    assert changes[0][2] == topo and changes[-1][2].devices > topo.devices

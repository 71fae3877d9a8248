"""Checkpoints come back bit for bit or are found out, and no kill, full disk or damaged file costs more than the newest."""

import collections
import contextlib
import gc
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import struct
from hypothesis import given, settings
from hypothesis import strategies as st

from research.core.errors import UserError
from research.train import checkpoint, manifest, orbax_io
from research.train.checkpoint import Checkpointer, Keep, read_state, restore_subtree

ROOT = Path(__file__).parents[2]


@struct.dataclass
class State:
    step: Any
    params: Any
    frozen: Any
    opt: Any
    extra: Any


def make_state(seed=0, width=8):
    w, b = jax.random.split(jax.random.key(seed))
    params = {
        "decoder": {"w": jax.random.normal(w, (width, 4)), "b": jax.random.normal(b, (4,), jnp.bfloat16)},
        "a.b/c": jnp.array([0.0, -0.0, jnp.nan, jnp.inf]),
        "empty": jnp.zeros((0, 3), jnp.float16),
    }
    opt = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3)).init(params)
    return State(jnp.int32(seed), params, {}, opt, {"skipped": jnp.zeros((), jnp.uint8), "on": jnp.array(True)})


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert (x.shape, x.dtype) == (y.shape, y.dtype)
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def save_all(directory, steps, **kwargs):
    with Checkpointer(directory, **kwargs) as checkpoints:
        for step in steps:
            checkpoints.save(step, make_state(step), {"step": step})


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A directory with checkpoints 1 and 2, to be copied and harmed."""
    directory = tmp_path_factory.mktemp("pair") / "checkpoints"
    save_all(directory, [1, 2])
    return directory


@pytest.fixture
def harmed(pair, tmp_path):
    return Path(shutil.copytree(pair, tmp_path / "checkpoints"))


def test_comes_back_bit_for_bit_in_its_own_classes(tmp_path):
    state, meta = make_state(3), {"best": float("inf"), "cursor": [1, {"a": None}], "loss": 0.1 + 0.2}
    with Checkpointer(tmp_path) as checkpoints:
        checkpoints.save(7, state, meta, is_best=True)
        restored = checkpoints.restore(jax.eval_shape(lambda: state))
        concrete = checkpoints.restore(state)
    assert restored is not None and (restored.step, restored.meta) == (7, meta)
    assert type(restored.state) is State and type(restored.state.opt[1][0]) is type(state.opt[1][0])
    assert_same(restored.state, state)
    assert concrete is not None
    assert_same(concrete.state, state)


def test_nothing_saved_is_none(tmp_path):
    assert Checkpointer(tmp_path / "new").restore(make_state()) is None


def test_the_buffers_may_be_donated_at_once(tmp_path):
    update = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    state = {"w": jnp.arange(300_000.0), "n": jnp.int32(5)}
    state = update(state)
    expected = jax.tree.map(lambda x: np.array(x, copy=True), state)
    with Checkpointer(tmp_path) as checkpoints:
        checkpoints.save(1, state, {})
        for _ in range(20):
            state = update(state)
        jax.block_until_ready(state)
        restored = checkpoints.restore(state)
    assert restored is not None
    assert_same(restored.state, expected)


def test_the_snapshot_is_memory_of_its_own(tmp_path):
    state = {"w": jnp.arange(1000.0), "n": jnp.int32(3)}
    writing = orbax_io.Writing(tmp_path / "x", orbax_io.named_leaves(state))
    for name, leaf in state.items():
        assert not np.shares_memory(writing._snapshot[name], np.asarray(leaf))


def test_save_returns_while_the_disk_is_still_busy(tmp_path, monkeypatch):
    release, start = threading.Event(), orbax_io._start

    def slow(folder, tree):
        release.wait()
        return start(folder, tree)

    monkeypatch.setattr(orbax_io, "_start", slow)
    with Checkpointer(tmp_path) as checkpoints:
        checkpoints.save(1, make_state(), {})
        assert checkpoints.steps() == []
        release.set()
        checkpoints.wait()
        assert checkpoints.steps() == [1]


@pytest.mark.parametrize(
    ("keep", "kept"),
    [
        (Keep(last=2, best=True), [2, 5, 6]),
        (Keep(last=1, best=False), [6]),
        (Keep(last=1, best=False, every=3), [3, 6]),
        (Keep(last=3, best=True, every=4), [2, 4, 5, 6]),
    ],
)
def test_keeps_the_last_the_best_and_every_nth(tmp_path, monkeypatch, keep, kept):
    monkeypatch.setattr(orbax_io, "_start", fake_orbax)
    for steps in ([1, 2, 3], [4, 5, 6]):  # the policy survives a restart
        with Checkpointer(tmp_path, keep) as checkpoints:
            for step in steps:
                checkpoints.save(step, {"w": jnp.ones(2)}, {}, is_best=step <= 2)
    assert [p.name for p in sorted(tmp_path.iterdir())] == [f"{step:08d}" for step in kept]


def fake_orbax(folder, tree):
    """Stands in for Orbax where only names and order matter."""
    folder.mkdir()
    (folder / "data").write_text("x")
    return collections.namedtuple("Response", "result")(lambda: None)


def test_the_same_step_again_replaces_it(tmp_path):
    with Checkpointer(tmp_path) as checkpoints:
        checkpoints.save(1, make_state(1), {"n": 1})
        checkpoints.save(1, make_state(2), {"n": 2})
        restored = checkpoints.restore(make_state())
    assert restored is not None and restored.meta == {"n": 2}
    assert_same(restored.state, make_state(2))
    assert [p.name for p in tmp_path.iterdir()] == ["00000001"]


def flip(path, at):
    data = bytearray(path.read_bytes()) or bytearray(1)
    data[at] ^= 1
    path.write_bytes(data)


HARMS = {
    "first bit": lambda path: flip(path, 0),
    "last bit": lambda path: flip(path, -1),
    "one byte short": lambda path: path.write_bytes(path.read_bytes()[:-1] or b"x"),
    "emptied": lambda path: path.write_bytes(b"" if path.stat().st_size else b"x"),
    "one byte more": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "missing": lambda path: path.unlink(),
    "a folder instead": lambda path: (path.unlink(), path.mkdir()),
}


def test_every_damage_to_every_file_is_found_and_named(harmed):
    folder = harmed / "00000002"
    files = [p for p in folder.rglob("*") if p.is_file()]
    assert {"manifest.json", "manifest.sha256"} < {p.name for p in files} and len(files) > 8
    manifest.verify(folder)
    for path in files:
        content = path.read_bytes()
        for harm in HARMS.values():
            harm(path)
            with pytest.raises(manifest.Damaged, match=path.name.replace(".", r"\.")):
                manifest.verify(folder)
            path.rmdir() if path.is_dir() else path.unlink(missing_ok=True)
            path.write_bytes(content)
    manifest.verify(folder)


def test_a_damaged_one_is_named_set_aside_and_the_one_before_used(harmed):
    largest = max((p for p in (harmed / "00000002").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    flip(largest, 100)
    said = []
    with Checkpointer(harmed, warn=said.append) as checkpoints:
        restored = checkpoints.restore(make_state())
        assert restored is not None and restored.step == 1
        assert_same(restored.state, make_state(1))
        assert checkpoints.steps() == [1]
        checkpoints.save(2, make_state(2), {})
    assert len(said) == 1 and "checkpoint 2" in said[0] and largest.name in said[0] and "checkpoint 1" in said[0]
    assert (harmed / "damaged" / "00000002").is_dir()
    flip(harmed / "00000002" / "manifest.json", 5)
    with Checkpointer(harmed, warn=said.append) as checkpoints:
        checkpoints.restore(make_state())
    assert sorted(p.name for p in (harmed / "damaged").iterdir()) == ["00000002", "00000002-1"]


def test_all_damaged_is_an_error_that_moves_nothing(harmed):
    for step in (1, 2):
        (harmed / f"{step:08d}" / "state" / "_METADATA").unlink()
    with Checkpointer(harmed) as checkpoints, pytest.raises(UserError, match=r"step 2: state/_METADATA.*step 1"):
        checkpoints.restore(make_state())
    assert checkpoints.steps() == [1, 2]


def test_a_step_by_name(harmed):
    checkpoints = Checkpointer(harmed)
    restored = checkpoints.restore(make_state(), step=1)
    assert restored is not None
    assert_same(restored.state, make_state(1))
    with pytest.raises(UserError, match=r"no checkpoint of step 3.*1, 2"):
        checkpoints.restore(make_state(), step=3)
    flip(harmed / "00000001" / "manifest.sha256", 0)
    with pytest.raises(UserError, match=r"manifest\.sha256"):
        checkpoints.restore(make_state(), step=1)
    assert checkpoints.steps() == [1, 2]


def test_another_state_is_an_error_that_names_the_leaf(harmed):
    with pytest.raises(UserError, match=r"params/decoder/w is float32\[8, 4\] in the checkpoint and float32\[9, 4\]"):
        Checkpointer(harmed).restore(make_state(width=9))
    state = make_state()
    with pytest.raises(UserError, match=r"extra/skipped is uint8\[\] in the checkpoint and absent"):
        Checkpointer(harmed).restore(state.replace(extra={"on": state.extra["on"]}))
    with pytest.raises(UserError, match=r"step is int32\[\] in the checkpoint and float32\[\]"):
        Checkpointer(harmed).restore(state.replace(step=jnp.zeros(())))
    assert checkpoint.steps_in(harmed) == [1, 2]


def test_a_part_is_read_without_knowing_the_rest(harmed):
    before = sorted(harmed.rglob("*"))
    params = restore_subtree(harmed)
    assert params.step == 2 and params.meta == {"step": 2}
    assert_same(params.state, jax.tree.map(np.asarray, make_state(2).params))
    assert all(type(x) is np.ndarray for x in jax.tree.leaves(params.state))
    assert restore_subtree(harmed, "extra/on", step=1).state == np.array(True)
    assert restore_subtree(harmed, "opt/1/0/count").state.dtype == np.int32
    with pytest.raises(UserError, match="no 'weights'; it has extra, opt, params, step"):
        restore_subtree(harmed, "weights")
    with pytest.raises(UserError, match="no checkpoint in"):
        restore_subtree(harmed / "nowhere")
    assert sorted(harmed.rglob("*")) == before


def test_reading_passes_over_a_damaged_one_and_leaves_it(harmed, capsys):
    flip(harmed / "00000002" / "state" / "manifest.ocdbt", 3)
    assert restore_subtree(harmed).step == 1
    assert "manifest.ocdbt" in capsys.readouterr().err
    restored = read_state(harmed, make_state())
    assert (restored.step, restored.meta) == (1, {"step": 1})
    assert_same(restored.state, make_state(1))
    assert checkpoint.steps_in(harmed) == [1, 2]


def test_reading_looks_again_when_training_deletes_what_it_reads(harmed, monkeypatch):
    verify = manifest.verify

    def deleted_meanwhile(folder):
        if folder.name == "00000002":
            shutil.rmtree(folder)
            monkeypatch.setattr(manifest, "verify", verify)
        return verify(folder)

    monkeypatch.setattr(manifest, "verify", deleted_meanwhile)
    assert restore_subtree(harmed).step == 1


def test_a_full_disk_costs_one_line_and_no_checkpoint(tmp_path):
    with Checkpointer(tmp_path) as checkpoints:
        checkpoints.save(1, make_state(1), {})
        checkpoints.wait()
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        try:
            checkpoints.save(2, {"w": jnp.ones(1_000_000)}, {})
            with pytest.raises(UserError, match=f"cannot write checkpoints in {tmp_path}: File too large. Those"):
                checkpoints.wait()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert [p.name for p in tmp_path.iterdir()] == ["00000001"]
        checkpoints.save(3, make_state(3), {})
    assert checkpoints.steps() == [1, 3]


def test_too_little_space_is_said_before_writing(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: collections.namedtuple("Usage", "free")(1000))
    with pytest.raises(UserError, match=r"does not fit in .* 0\.0 MB free"):
        Checkpointer(tmp_path).save(1, {"w": jnp.ones(1000)}, {})
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_directory_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write checkpoints in .*file"):
        Checkpointer(tmp_path / "file")


def test_a_failed_save_is_reported_by_the_next_one_and_once(tmp_path, monkeypatch):
    def broken(folder, tree):
        raise OSError(28, "No space left on device")

    checkpoints = Checkpointer(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(orbax_io, "_start", broken)
        checkpoints.save(1, make_state(), {})
        with pytest.raises(UserError, match="No space left"):
            checkpoints.save(2, make_state(), {})
    checkpoints.save(3, make_state(), {})
    checkpoints.close()
    assert checkpoints.steps() == [3]


def test_killed_between_any_two_changes_to_the_disk_leaves_a_whole_checkpoint(harmed, tmp_path, monkeypatch):
    """Copies the directory before every rename, deletion and manifest, as a kill there would leave it."""
    snapshots = []

    def spied(function):
        def call(*args, **kwargs):
            for instant in "before", "after":
                copy = tmp_path / f"snapshot{len(snapshots)}-{instant}"
                snapshots.append(shutil.copytree(harmed, copy))
                if instant == "before":
                    result = function(*args, **kwargs)
            return result

        return call

    with Checkpointer(harmed, Keep(last=2, best=False)) as checkpoints:
        monkeypatch.setattr(Path, "rename", spied(Path.rename))
        monkeypatch.setattr(shutil, "rmtree", spied(half_then_all(shutil.rmtree, spied(os.unlink))))
        monkeypatch.setattr(manifest, "write", spied(manifest.write))
        checkpoints.save(2, make_state(22), {})  # replaces
        checkpoints.save(3, make_state(3), {})  # makes 1 old
        checkpoints.wait()
        monkeypatch.undo()
    assert len(snapshots) >= 2 * (4 + 4 + 2)
    found = []
    for snapshot in snapshots:
        checkpoints = Checkpointer(snapshot, warn=pytest.fail)
        steps = checkpoints.steps()
        assert [p.name for p in sorted(snapshot.iterdir())] == [f"{step:08d}" for step in steps]
        *_, newest = [manifest.verify(snapshot / f"{step:08d}") for step in steps]
        found.append((newest.step, params_of(newest)))
    assert set(found) == {(2, "old"), (2, "new"), (3, "new")}
    assert found == sorted(found, key=[(2, "old"), (2, "new"), (3, "new")].index)


def half_then_all(rmtree, unlink):
    def delete(path, **kwargs):
        if path.exists():
            unlink(path / "manifest.json")
        rmtree(path, **kwargs)

    return delete


def params_of(sealed):
    return "old" if sealed.meta == {"step": 2} else "new"


SAVING_FOREVER = """
    import sys
    import jax.numpy as jnp
    from research.train.checkpoint import Checkpointer
    with Checkpointer(sys.argv[1]) as checkpoints:
        restored = checkpoints.restore({"w": jnp.zeros(50_000), "step": jnp.int32(0)})
        step = restored.step if restored else 0
        print("at", step, int(restored.state["step"]) if restored else 0, flush=True)
        while True:
            step += 1
            checkpoints.save(step, {"w": jnp.full(50_000, float(step)), "step": jnp.int32(step)}, {})
            print("saving", step, flush=True)
"""


def test_killed_at_any_moment_and_started_again(tmp_path):
    reached = 0
    for after in (2, 5):
        with run_python(SAVING_FOREVER, str(tmp_path / "checkpoints")) as process:
            assert process.stdout is not None
            _, restored, content = process.stdout.readline().split()
            assert int(restored) == int(content) >= reached - 1
            for line in process.stdout:
                reached = int(line.split()[1])
                if reached >= int(restored) + after:
                    time.sleep(0.013 * after)  # somewhere within a save
                    process.send_signal(signal.SIGKILL)
                    break
    with Checkpointer(tmp_path / "checkpoints", warn=pytest.fail) as checkpoints:
        last = checkpoints.restore({"w": jnp.zeros(50_000), "step": jnp.int32(0)})
    assert last is not None and last.step >= reached - 1
    np.testing.assert_array_equal(last.state["w"], float(last.step))


OTHER_MESHES = """
    import sys
    import jax, jax.numpy as jnp, numpy as np
    from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
    from research.train.checkpoint import Checkpointer
    assert jax.device_count() == 8
    def mesh(*shape):
        return jax.make_mesh(shape, ("x", "y")[: len(shape)], axis_types=(AxisType.Auto,) * len(shape))
    values = {"w": np.arange(64.0, dtype=np.float32).reshape(8, 8), "b": np.arange(8, dtype=np.int32)}
    specs = [(mesh(8), P("x"), P()), (mesh(2, 4), P("y", "x"), P(("x", "y"))), (mesh(4, 2), P(None, "x"), P("y"))]
    shardings = [{"w": NamedSharding(m, w), "b": NamedSharding(m, b)} for m, w, b in specs]
    shardings.append(jax.tree.map(lambda _: jax.sharding.SingleDeviceSharding(jax.devices()[5]), values))
    for i, saved in enumerate(shardings):
        with Checkpointer(f"{sys.argv[1]}/{i}") as checkpoints:
            checkpoints.save(1, jax.tree.map(jax.device_put, values, saved), {})
            for wanted in shardings:
                shape = lambda v, s: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=s)
                state = checkpoints.restore(jax.tree.map(shape, values, wanted)).state
                assert jax.tree.map(lambda x: x.sharding, state) == wanted
                assert all(np.array_equal(state[name], values[name]) for name in values)
    print("done")
"""


def test_restores_onto_other_meshes(tmp_path):
    with run_python(OTHER_MESHES, str(tmp_path), XLA_FLAGS="--xla_force_host_platform_device_count=8") as process:
        assert process.communicate()[0].splitlines()[-1:] == ["done"]


@contextlib.contextmanager
def run_python(source, *args, **environment):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), **environment}
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(source), *args]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def test_orbax_still_refuses_empty_arrays(tmp_path):
    """If this fails, `orbax_io` need no longer set empty arrays apart."""
    with pytest.raises(ValueError, match="zero size"):
        orbax_io._start(tmp_path / "x", {"w": jnp.zeros((0, 3))})
    gc.collect()


def test_paths_that_are_the_same_as_text_are_refused():
    with pytest.raises(ValueError, match="same path"):
        orbax_io.named_leaves(collections.OrderedDict({1: jnp.ones(1), "1": jnp.ones(1)}))


trees = st.recursive(
    st.lists(st.floats(width=32), min_size=1, max_size=4).map(lambda x: np.array(x, np.float32)),
    lambda inner: st.dictionaries(st.text(min_size=1, max_size=4), inner, min_size=1, max_size=3),
    max_leaves=6,
).filter(lambda tree: isinstance(tree, dict))


@settings(max_examples=50, deadline=None)
@given(trees)
def test_names_and_trees_are_each_others_inverse(tree):
    assert_same(orbax_io.nested(orbax_io.named_leaves(tree)), tree)


def test_the_manifest_is_plain_json_checked_by_sha256sum(pair):
    folder = pair / "00000002"
    body = json.loads((folder / "manifest.json").read_text())
    assert body["step"] == 2 and ["params", "decoder", "w"] in [path for path, _, _ in body["leaves"]]
    if tool := shutil.which("sha256sum"):
        subprocess.run([tool, "--check", "--quiet", "manifest.sha256"], cwd=folder, check=True)

"""The compilation cache is hit by the next process, survives torn entries, stays within bounds and never fails a run."""

import inspect
import os
import subprocess
import sys
import textwrap
import time
import zlib
from pathlib import Path

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.train import compile_cache as cc

ROOT = Path(__file__).parents[2]

PROGRAM = """
    import hashlib, os, sys
    import jax, jax.numpy as jnp
    events = []
    jax.monitoring.register_event_listener(lambda name, **_: events.append(name.rsplit("/", 1)[-1]))
    if "bare" in sys.argv:
        jax.config.update("jax_compilation_cache_dir", sys.argv[1])
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    else:
        from research.train import compile_cache
        compile_cache.enable(sys.argv[1])
    w = jnp.linspace(0, 1, 64 * 64).reshape(64, 64)
    step = jax.jit(jax.grad(lambda w: jnp.tanh(w @ w).sum() + jax.nn.logsumexp(w)))
    digest = hashlib.sha256(jax.device_get(step(w)).tobytes()).hexdigest()
    print(events.count("cache_hits"), events.count("cache_misses"), digest)
"""


def run_program(*args, **environment):
    """(cache hits, entries written, hash of the result, standard error) of a process that compiles a few programs."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), **environment}
    command = [sys.executable, "-W", "always", "-c", textwrap.dedent(PROGRAM), *map(str, args)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    hits, misses, digest = done.stdout.split()
    return int(hits), int(misses), digest, done.stderr


def test_the_next_process_compiles_nothing_and_a_torn_entry_is_made_anew(tmp_path):
    _, written, first, _ = run_program(tmp_path)
    hits, rewritten, second, errors = run_program(tmp_path)
    assert hits == written > 1 and rewritten == 0 and first == second and errors == ""
    (folder,) = tmp_path.iterdir()
    largest = max(folder.glob("*-cache"), key=lambda p: p.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-7])
    # The trap itself: if this fails, unreadable entries need no longer be deleted at the start.
    _, _, third, errors = run_program(folder, "bare")
    assert "Error reading persistent compilation cache entry" in errors and not cc.readable(largest.read_bytes())
    hits, rewritten, fourth, errors = run_program(tmp_path)
    assert (hits, rewritten, errors) == (written - 1, 1, "") and first == third == fourth


@pytest.fixture
def config():
    """JAX's settings, given back afterwards; no test in this process compiles with them."""
    names = ["jax_compilation_cache_dir", *cc.THRESHOLDS]
    before = {name: getattr(jax.config, name) for name in names}
    jax.config.update("jax_compilation_cache_dir", None)
    yield jax.config
    for name, value in before.items():
        jax.config.update(name, value)


def test_the_default_place_is_the_users_cache(tmp_path, monkeypatch, config):
    monkeypatch.setenv("RESEARCH_CACHE", str(tmp_path))
    folder = cc.enable()
    assert folder == tmp_path / "xla" / cc.machine_key() and folder.stat().st_mode & 0o077 == 0
    assert config.jax_compilation_cache_dir == str(folder)
    assert config.jax_persistent_cache_min_compile_time_secs == 0
    assert cc.enable(tmp_path / "other") == folder and not (tmp_path / "other").exists()


def test_what_the_user_set_up_is_left_alone(tmp_path, config):
    config.update("jax_compilation_cache_dir", str(tmp_path))
    (tmp_path / "a-cache").write_bytes(b"torn")
    assert cc.enable() == tmp_path
    assert [p.name for p in tmp_path.iterdir()] == ["a-cache"]


def test_the_users_thresholds_are_left_alone(tmp_path, monkeypatch, config):
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "3")
    config.update("jax_persistent_cache_min_compile_time_secs", 3.0)
    cc.enable(tmp_path)
    assert config.jax_persistent_cache_min_compile_time_secs == 3


def test_an_unusable_folder_is_said_once_and_fails_nothing(tmp_path, monkeypatch, config, capsys):
    monkeypatch.setattr(cc, "_warned", False)
    (tmp_path / "file").write_text("")
    for _ in range(2):
        assert cc.enable(tmp_path / "file") is None
    assert capsys.readouterr().err.count("compiled programs are not kept") == 1
    assert config.jax_compilation_cache_dir is None


def test_the_key_differs_by_features_and_versions(monkeypatch):
    keys = {cc.machine_key()}
    monkeypatch.setattr(cc, "cpu_features", lambda: frozenset(["avx2"]))
    keys.add(cc.machine_key())
    monkeypatch.setattr(cc, "cpu_features", lambda: frozenset(["avx2", "avx512f"]))
    keys.add(cc.machine_key())
    monkeypatch.setattr(jax, "__version__", "9.9.9")
    keys.add(cc.machine_key())
    assert len(keys) == 4 and all("/" not in key for key in keys)


def test_this_machine_has_features():
    assert len(cc.cpu_features()) >= 1 and all(cc.cpu_features())


@given(st.binary(min_size=5, max_size=200), st.data())
def test_an_entry_cut_short_or_changed_is_unreadable(content, data):
    entry = zlib.compress(content)
    assert cc.readable(entry)
    assert not cc.readable(entry[: data.draw(st.integers(0, len(entry) - 1))])
    at, bit = data.draw(st.integers(2, len(entry) - 1)), data.draw(st.integers(0, 7))
    changed = bytes([*entry[:at], entry[at] ^ (1 << bit), *entry[at + 1 :]])
    assert not cc.readable(changed) or zlib.decompress(changed) == content  # a bit of padding may change


@pytest.mark.parametrize("entry", [b"", b"\0" * 100, b"garbage", zlib.compress(b""), zlib.compress(b"1234")])
def test_what_jax_could_not_read_is_unreadable(entry):
    assert not cc.readable(entry)


def test_zstandard_entries_are_read_where_the_library_is_there(monkeypatch):
    entry = cc.ZSTD_MAGIC + b"rest"

    def refuse(data):
        raise ValueError("torn")

    monkeypatch.setattr(cc, "_zstd", lambda: refuse)
    assert not cc.readable(entry)
    monkeypatch.setattr(cc, "_zstd", lambda: lambda data: b"12345678")
    assert cc.readable(entry)
    monkeypatch.setattr(cc, "_zstd", lambda: None)
    assert cc.readable(entry)


def test_only_new_or_changed_entries_are_read(tmp_path, monkeypatch):
    for name in "abc":
        (tmp_path / f"{name}-cache").write_bytes(zlib.compress(b"program"))
    (tmp_path / "c-cache").write_bytes(b"torn")
    (tmp_path / "torn-but-no-entry").write_bytes(b"torn")
    assert cc.delete_unreadable(tmp_path) == ["c-cache"]
    read, readable = [], cc.readable
    monkeypatch.setattr(cc, "readable", lambda data: read.append(data) or readable(data))
    assert cc.delete_unreadable(tmp_path) == [] and read == []
    content = (tmp_path / "a-cache").read_bytes()
    (tmp_path / "a-cache").write_bytes(b"x" * len(content))  # the same length
    os.utime(tmp_path / "a-cache", (1, 1))
    (tmp_path / "b-cache").write_bytes(zlib.compress(b"program")[:-1])
    assert sorted(cc.delete_unreadable(tmp_path)) == ["a-cache", "b-cache"] and len(read) == 2
    (tmp_path / cc.CHECKED).write_text("[")
    assert cc.delete_unreadable(tmp_path) == []
    assert {p.name for p in tmp_path.iterdir()} == {cc.CHECKED, "torn-but-no-entry"}


@pytest.mark.parametrize(("limits", "left"), [((10_000, 2), "de"), ((250, 100), "de"), ((300, 3), "cde"), ((0, 9), "")])
def test_the_least_recently_used_go_first_whatever_machine_they_are_of(tmp_path, limits, left):
    for i, name in enumerate("cabed"):
        path = tmp_path / f"machine{i % 2}" / f"{name}-cache"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x" * 100)
        os.utime(path, (200, 1) if name == "e" else (1, ord(name)))  # e is old, but was read last
    cc.bound(tmp_path, *limits)
    assert sorted(p.name[0] for p in tmp_path.rglob("*-cache")) == sorted(left)


def test_a_normal_cache_costs_little_at_the_start(tmp_path):
    folder = tmp_path / cc.machine_key()
    folder.mkdir()
    for i in range(300):
        (folder / f"{i}-cache").write_bytes(zlib.compress(bytes(3000)))
    cc.delete_unreadable(folder)
    took = []
    for _ in range(5):
        began = time.process_time()
        cc.delete_unreadable(folder)
        cc.bound(tmp_path)
        took.append(time.process_time() - began)
    assert min(took) < 0.05


def test_only_the_false_alarm_is_taken_out_of_standard_error(capfd):
    start = b"E0101 00:00:00.0 1 cpu_aot_loader.cc:195] Loading XLA:CPU AOT result. Target machine feature "
    false, true = start + b"+prefer-no-gather is not  supported\n", start + b"+avx512f is not  supported\n"

    def load(value, *, fail):
        os.write(2, b"before\n" + false + true + false)
        if fail:
            raise KeyError(value)
        return value

    quiet = cc.hushed(load)
    assert quiet(3, fail=False) == 3
    with pytest.raises(KeyError):
        quiet(3, fail=True)
    os.write(2, false)
    once = "before\n" + true.decode()
    assert capfd.readouterr().err == once + once + false.decode()


def test_hushing_wraps_once(monkeypatch):
    from jax._src import compilation_cache

    original = inspect.unwrap(compilation_cache.get_executable_and_time)
    monkeypatch.setattr(compilation_cache, "get_executable_and_time", original)
    cc._hush_loading()
    wrapped = compilation_cache.get_executable_and_time
    assert wrapped.__wrapped__ is original
    cc._hush_loading()
    assert compilation_cache.get_executable_and_time is wrapped

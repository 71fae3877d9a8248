"""Checkpoints: the state of a run on disk, written in the background by Orbax, sealed by a manifest, never half there.

A checkpoint is written under a hidden name, sealed (`manifest.py`), and only then renamed to its step. Killed before
the rename, the run still has the checkpoint before; killed after it, the new one. Hidden leftovers are cleared when the
directory is next opened for writing, so a folder named by a step is complete, or was damaged later, as its seal shows.

    checkpoints/00001000/    one checkpoint: Orbax's files, manifest.json, manifest.sha256
    checkpoints/damaged/     checkpoints that a restore found damaged and set aside
"""

import dataclasses
import json
import os
import re
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from research.core.errors import UserError
from research.train import manifest
from research.train.manifest import Damaged, Manifest
from research.train.orbax_io import Writing, named_leaves, nested, read_arrays

SAVING, REPLACED, DELETING = ".saving-", ".replaced-", ".deleting-"
NONE_THERE = -1
READ_TRIES = 5
OnDamage = Callable[[int, Damaged, int], None]  # the damaged step, what is wrong, the step used instead
Read = Callable[[Path, Manifest], Any]


@dataclasses.dataclass(frozen=True)
class Keep:
    """Which checkpoints stay: the `last` ones, the newest one saved as `best`, and each whose step `every` divides."""

    last: int = 2
    best: bool = True
    every: int | None = None


@dataclasses.dataclass(frozen=True)
class Restored:
    """A checkpoint read back: its step, its state (or the subtree asked for), and the `meta` it was saved with."""

    step: int
    state: Any
    meta: dict[str, Any]


def to_stderr(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


class Checkpointer:
    """The checkpoints of one run, for the process that trains it (the run directory's lock is held by the caller).

    Use it as a context manager or call `close()`: a save still under way when the interpreter shuts down is lost.
    """

    def __init__(self, directory: str | Path, keep: Keep = Keep(), warn: Callable[[str], None] = to_stderr):
        """Raises UserError when `directory` cannot be written."""
        self.directory, self.keep, self._warn = Path(directory).absolute(), keep, warn
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            if _is_primary():
                self._clear_leftovers()
        except OSError as error:
            raise _cannot_write(self.directory, error) from error
        self._best = {step: self._was_best(step) for step in self.steps()}

    def save(self, step: int, state: Any, meta: dict[str, Any], is_best: bool = False) -> None:
        """Starts saving `state` as of `step` and returns: its buffers may be donated. Waits for the save before it.

        `meta` is whatever JSON the caller needs back. A checkpoint of the same step is replaced.
        Raises UserError when the save before failed for lack of space or permission, or this one would not fit.
        """
        self.wait()
        meta = json.loads(json.dumps(meta))
        named = named_leaves(state)
        self._check_space(sum(leaf.nbytes for leaf in named.values()))
        leaves = [(path, str(leaf.dtype), leaf.shape) for path, leaf in named.items()]
        staging = self.directory / f"{SAVING}{_name(step)}"
        writing = Writing(staging, named)

        def finish():
            writing.finish()
            if _is_primary():
                manifest.write(staging, step, is_best, meta, leaves)
                self._publish(staging, self.directory / _name(step))
                self._best[step] = is_best
                self._delete_old(step)

        self._thread = threading.Thread(target=self._run, args=(finish,), name="checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Returns when the save under way is on disk. Raises UserError when space or permission was lacking."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise _as_user_error(self.directory, error) or error

    def restore(self, abstract_state: Any, step: int | None = None) -> Restored | None:
        """The newest whole checkpoint, or that of `step`, bit for bit; None where there is none at all.

        `abstract_state` is the state or ShapeDtypeStructs of it; leaves come back in its structure and on its shardings
        (the first device where it names none), whatever they were saved from. Newer checkpoints that are damaged are
        named in a warning and moved to `damaged/`. Raises UserError when every one is damaged, `step` is missing or
        damaged (nothing is moved then), or shapes or dtypes differ.
        """
        self.wait()
        chosen, problem = NONE_THERE, None
        if _is_primary():
            try:
                chosen = self._choose(step)
            except UserError as error:
                problem = error
        chosen = _agreed(NONE_THERE - 1 if problem else chosen)
        if chosen < NONE_THERE:
            raise problem or UserError(f"process 0 found no whole checkpoint in {self.directory}")
        if chosen == NONE_THERE:
            return None
        folder = self.directory / _name(chosen)
        sealed = manifest.read(folder)
        return Restored(chosen, _load(folder, sealed, abstract_state), sealed.meta)

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, ascending."""
        return steps_in(self.directory)

    def close(self) -> None:
        """Waits for the save under way, as `wait` does."""
        self.wait()

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, kind, *_) -> None:
        try:
            self.close()
        except UserError as error:
            if kind is None:
                raise
            self._warn(str(error))  # the exception on its way out matters more

    def _run(self, finish: Callable[[], None]) -> None:
        try:
            finish()
        except BaseException as error:  # handed to the thread that saves or waits next
            self._error = error
            if _is_primary():
                for leftover in self.directory.glob(f"{SAVING}*"):
                    shutil.rmtree(leftover, ignore_errors=True)

    def _publish(self, staging: Path, final: Path) -> None:
        replaced = self.directory / f"{REPLACED}{final.name}"
        if final.exists():
            final.rename(replaced)
        staging.rename(final)
        shutil.rmtree(replaced, ignore_errors=True)

    def _delete_old(self, newest: int) -> None:
        steps = self.steps()
        kept = {newest, *steps[len(steps) - self.keep.last :]}
        if self.keep.best:
            kept |= set([step for step in steps if self._best.get(step)][-1:])
        if self.keep.every:
            kept |= {step for step in steps if step % self.keep.every == 0}
        for step in set(steps) - kept:
            doomed = self.directory / f"{DELETING}{_name(step)}"
            (self.directory / _name(step)).rename(doomed)  # at once, so that a kill cannot leave half a checkpoint
            shutil.rmtree(doomed, ignore_errors=True)

    def _clear_leftovers(self) -> None:
        for replaced in self.directory.glob(f"{REPLACED}*"):
            final = self.directory / replaced.name.removeprefix(REPLACED)
            if not final.exists():
                replaced.rename(final)
        for prefix in (SAVING, REPLACED, DELETING):
            for leftover in self.directory.glob(f"{prefix}*"):
                shutil.rmtree(leftover)

    def _choose(self, step: int | None) -> int:
        if step is None and not self.steps():
            return NONE_THERE
        return _newest_whole(self.directory, step, self._set_aside, lambda _, sealed: sealed.step)

    def _set_aside(self, step: int, error: Damaged, instead: int) -> None:
        aside = self.directory / "damaged"
        target, copies = aside / _name(step), 1
        while target.exists():
            target, copies = aside / f"{_name(step)}-{copies}", copies + 1
        try:
            aside.mkdir(exist_ok=True)
            (self.directory / _name(step)).rename(target)
        except OSError as problem:
            raise _cannot_write(self.directory, problem) from problem
        self._warn(f"checkpoint {step} is damaged ({error}): moved to {target}, using checkpoint {instead}")

    def _was_best(self, step: int) -> bool:
        try:
            return manifest.read(self.directory / _name(step)).best
        except (Damaged, FileNotFoundError):
            return False

    def _check_space(self, needed: int) -> None:
        try:
            free = shutil.disk_usage(self.directory).free
        except OSError as error:
            raise _cannot_write(self.directory, error) from error
        if free < needed:
            raise UserError(
                f"a checkpoint of {needed / 1e6:,.1f} MB does not fit in {self.directory}: {free / 1e6:,.1f} MB free. "
                "Make room, or keep fewer checkpoints; those already saved are intact"
            )


def steps_in(directory: str | Path) -> list[int]:
    """The steps that have a checkpoint in `directory`, ascending; none where it does not exist."""
    try:
        return sorted(int(p.name) for p in Path(directory).iterdir() if len(p.name) >= 8 and p.name.isdecimal())
    except FileNotFoundError:
        return []


def read_state(directory: str | Path, abstract_state: Any, step: int | None = None) -> Restored:
    """The newest whole checkpoint, or that of `step`, as `Checkpointer.restore` gives it, but changing nothing on disk.

    May run beside the training process. Raises UserError where there is no whole checkpoint or the state differs.
    """

    def read(folder: Path, sealed: Manifest) -> Restored:
        return Restored(sealed.step, _load(folder, sealed, abstract_state), sealed.meta)

    return _newest_whole(Path(directory).absolute(), step, _tell, read)


def restore_subtree(
    directory: str | Path, name: str = "params", step: int | None = None, expected: Any = None
) -> Restored:
    """One part of a saved state as nested dicts of NumPy arrays, without knowing the rest: `params`, `extra/average`.

    Reads the newest whole checkpoint, or that of `step`, and changes nothing: it may run beside the training process.
    Raises UserError where there is no whole checkpoint, the state has no such part, or the part is not of the shapes and
    dtypes of `expected`, where that is given.
    """
    prefix = tuple(name.split("/"))

    def read(folder: Path, sealed: Manifest) -> Restored:
        wanted = {
            path: jax.ShapeDtypeStruct(shape, np.dtype(dtype))
            for path, dtype, shape in sealed.leaves
            if path[: len(prefix)] == prefix
        }
        if not wanted:
            parts = ", ".join(sorted({path[0] for path, _, _ in sealed.leaves}))
            raise UserError(f"checkpoint {folder} has no {name!r}; it has {parts}")
        if expected is not None:
            _check_agreement(folder, wanted, {(*prefix, *path): leaf for path, leaf in named_leaves(expected).items()})
        tree = nested(read_arrays(folder, wanted))
        for part in prefix:
            tree = tree[part]
        return Restored(sealed.step, tree, sealed.meta)

    return _newest_whole(Path(directory).absolute(), step, _tell, read)


def _load(folder: Path, sealed: Manifest, abstract_state: Any) -> Any:
    named = named_leaves(abstract_state)
    saved = {path: jax.ShapeDtypeStruct(shape, np.dtype(dtype)) for path, dtype, shape in sealed.leaves}
    _check_agreement(folder, saved, named)
    first = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    wanted = {
        path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None) or first)
        for path, leaf in named.items()
    }
    found = read_arrays(folder, wanted)
    return jax.tree.unflatten(jax.tree.structure(abstract_state), [found[path] for path in named])


def _check_agreement(folder: Path, found: dict[tuple[str, ...], Any], wanted: dict[tuple[str, ...], Any]) -> None:
    saved, asked = (
        {"/".join(path): f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in named.items()} for named in (found, wanted)
    )
    differing = [
        f"{name} is {saved.get(name, 'absent')} in the checkpoint and {asked.get(name, 'absent')} in this run"
        for name in sorted(saved | asked)
        if saved.get(name) != asked.get(name)
    ]
    if differing:
        more = f", and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise UserError(f"checkpoint {folder} is of another state: {'; '.join(differing[:3])}{more}")


def _tell(step: int, error: Damaged, instead: int) -> None:
    to_stderr(f"checkpoint {step} is damaged ({error}): reading checkpoint {instead}")


def _newest_whole(directory: Path, step: int | None, on_damage: OnDamage, read: Read) -> Any:
    """`read` of the newest whole checkpoint, or of `step`. Looks again when training deletes it meanwhile."""
    for _ in range(READ_TRIES):
        steps = steps_in(directory)
        if step is not None and step not in steps:
            raise UserError(
                f"no checkpoint of step {step} in {directory}; there are: {', '.join(map(str, steps)) or 'none'}"
            )
        if not steps:
            raise UserError(f"no checkpoint in {directory}: train first, or name another run")
        try:
            return _first_whole(directory, [step] if step is not None else steps[::-1], on_damage, read)
        except FileNotFoundError:
            continue
    raise UserError(f"the checkpoints in {directory} change faster than they can be read; try again")


def _first_whole(directory: Path, steps: list[int], on_damage: OnDamage, read: Read) -> Any:
    damaged: list[tuple[int, Damaged]] = []
    for step in steps:
        folder = directory / _name(step)
        try:
            result = read(folder, manifest.verify(folder))
        except Damaged as error:
            damaged.append((step, error))
        except UserError:
            raise
        except Exception as error:
            raise error if folder.exists() else FileNotFoundError(folder) from error
        else:
            for bad, error in damaged:
                on_damage(bad, error, step)
            return result
    listed = "; ".join(f"step {step}: {error}" for step, error in damaged)
    raise UserError(f"no whole checkpoint in {directory} ({listed}). Bring back a copy, or start again with --fresh")


def _name(step: int) -> str:
    return f"{step:08d}"


def _is_primary() -> bool:
    return jax.process_index() == 0


def _agreed(step: int) -> int:
    """Process 0's value on every process."""
    if jax.process_count() == 1:
        return step
    from jax.experimental import multihost_utils

    return int(multihost_utils.broadcast_one_to_all(np.int32(step)))


def _cannot_write(directory: Path, reason: object) -> UserError:
    return UserError(f"cannot write checkpoints in {directory}: {reason}. Those already saved are intact")


def _as_user_error(directory: Path, error: BaseException) -> UserError | None:
    """Full disks and missing permissions. TensorStore reports them as ValueError with the system's error number."""
    if isinstance(error, OSError):
        return _cannot_write(directory, error)
    code = re.search(r"os_error_code='(\d+)'", str(error))
    return _cannot_write(directory, os.strerror(int(code[1]))) if code else None

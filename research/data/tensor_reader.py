"""Reading stored tensors into arrays that the caller made: sliced, transposed and converted on the way, by a few threads.

A file is read in contiguous pieces. Where the destination wants those very bytes they go straight into it; otherwise a piece of a few
megabytes is read, and copied from the processor's cache to where it belongs. So a model is held once, in the dtype asked for, and
nothing else grows with it.
"""

import contextlib
import math
import mmap
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from research.core.errors import UserError
from research.data.tensors import Entry

_SCRATCH = 4 << 20  # bytes a thread reads before it copies them: within the last level of cache, and a few rows of any matrix
_DIRECT = 16 << 20  # bytes of one read straight into place: enough pieces to keep the threads evenly busy
_GAP = 64 << 10  # unwanted bytes between wanted ones that are cheaper to read than to skip
_HUGE = 2 << 20  # a huge page


@dataclass(frozen=True)
class Job:
    """Read `entry`, seen as an array of `shape` (its own where None), at `index` (one slice of step 1 or one number an axis, whole axes
    where the tuple ends early), its axes permuted by `transpose` (of those that numbers left), into `out`."""

    entry: Entry
    out: np.ndarray
    shape: tuple[int, ...] | None = None
    index: tuple[slice | int, ...] = ()
    transpose: Sequence[int] | None = None


@dataclass(frozen=True)
class _Piece:
    """Bytes `begin` to `begin + nbytes` of a file hold an array of `counts`; `cut` of it is what `out` wants."""

    entry: Entry
    begin: int
    counts: tuple[int, ...]
    cut: tuple[slice, ...]
    out: np.ndarray

    @property
    def nbytes(self) -> int:
        return math.prod(self.counts) * self.entry.dtype.itemsize


def read_into(
    entry: Entry,
    out: np.ndarray,
    *,
    shape: tuple[int, ...] | None = None,
    index: tuple[slice | int, ...] = (),
    transpose: Sequence[int] | None = None,
) -> None:
    """Fills `out` with `np.transpose(stored.reshape(shape)[index], transpose).astype(out.dtype)`, reading only the bytes that takes
    (and gaps under 64 KiB between them). Raises as `read_all` does."""
    read_all([Job(entry, out, shape, index, transpose)])


def read_all(jobs: Iterable[Job], threads: int | None = None) -> None:
    """Does all `jobs`, in the order of the files, in `threads` threads (one for each of up to 8 processors, at least 2). Beyond the
    destinations this takes at most 16 MiB a thread, whatever the jobs' sizes.

    Raises UserError where a file cannot be read or has become shorter, where whole numbers are asked as floats or the reverse, or
    where values exceed the range of the dtype asked for; ValueError where shape, index, permutation and destination do not fit.
    """
    jobs = sorted(jobs, key=lambda job: (job.entry.file, job.entry.begin))
    with contextlib.ExitStack() as stack:
        descriptors: dict[Path, int] = {}
        for file in {job.entry.file: None for job in jobs}:
            descriptors[file] = _open(file)
            stack.callback(os.close, descriptors[file])
        own = threading.local()

        def work(piece: _Piece) -> None:
            if not hasattr(own, "scratch"):
                own.scratch = np.empty(_SCRATCH, np.uint8)
            _read_piece(piece, descriptors[piece.entry.file], own.scratch)

        pool = stack.enter_context(ThreadPoolExecutor(threads or min(8, max(2, os.cpu_count() or 2))))
        for _ in pool.map(work, [piece for job in jobs for piece in _pieces(job)]):
            pass


def allocate(shape: tuple[int, ...], dtype) -> np.ndarray:
    """Returns an array of `shape` and `dtype`, its values not set, that `adopt` can take without a copy: it begins at a multiple of 64
    bytes, and large ones at a huge page (memory then comes 2 MiB instead of 4 KiB at a time, which halves the time to first fill it).
    """
    dtype = np.dtype(dtype)
    nbytes = math.prod(shape) * dtype.itemsize
    if nbytes < _HUGE:
        raw, alignment = np.empty(nbytes + 64, np.uint8), 64
    else:
        pages = mmap.mmap(-1, nbytes + _HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with contextlib.suppress(OSError):  # a kernel without them: ordinary pages serve
                pages.madvise(mmap.MADV_HUGEPAGE)
        raw, alignment = np.frombuffer(pages, np.uint8), _HUGE
    offset = -raw.ctypes.data % alignment
    return raw[offset : offset + nbytes].view(dtype).reshape(shape)


def adopt(array: np.ndarray, where: jax.Device | jax.sharding.Sharding | None = None) -> jax.Array:
    """Returns `array` as a JAX array on `where`. On a CPU an array of `allocate`'s is taken as it is, without a copy (`jnp.asarray` would
    copy), so nobody may write to it afterwards. Raises UserError for a 64-bit dtype where JAX is not set to keep those."""
    if jax.dtypes.canonicalize_dtype(array.dtype) != array.dtype:
        raise UserError(f"{array.dtype} needs JAX_ENABLE_X64=1 in the environment; set it, or ask for a 32-bit dtype.")
    return jax.device_put(array, where)


def _open(file: Path) -> int:
    try:
        return os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror or error}") from error


def _pieces(job: Job) -> Iterator[_Piece]:
    """The contiguous runs of bytes that hold what `job` asks for, each small enough for a thread's scratch memory, or larger where
    the bytes go straight into place."""
    entry, itemsize = job.entry, job.entry.dtype.itemsize
    _check_dtypes(entry, job.out.dtype)
    sizes = entry.shape if job.shape is None else tuple(job.shape)
    if math.prod(sizes) != math.prod(entry.shape):
        raise ValueError(f"{entry.name} of shape {entry.shape} cannot be seen as {sizes}")
    wanted, view = _destination(job, sizes)
    if 0 in view.shape:
        return
    spans = _spans(wanted, sizes, itemsize)
    straight = spans == wanted and view.dtype == entry.dtype and view.flags.c_contiguous
    for box in _boxes(spans, sizes, (_DIRECT if straight else _SCRATCH) // itemsize):
        begin = entry.begin + itemsize * sum(b * math.prod(sizes[a + 1 :]) for a, (b, _) in enumerate(box))
        both = [(max(b, lo), min(e, hi)) for (b, e), (lo, hi) in zip(box, wanted, strict=True)]
        if any(lo >= hi for lo, hi in both):
            continue  # a box that lies within a gap
        cut = tuple(slice(lo - b, hi - b) for (lo, hi), (b, _) in zip(both, box, strict=True))
        out = view[tuple(slice(lo - w, hi - w) for (lo, hi), (w, _) in zip(both, wanted, strict=True))]
        yield _Piece(entry, begin, tuple(e - b for b, e in box), cut, out)


def _check_dtypes(entry: Entry, dtype: np.dtype) -> None:
    if entry.dtype != dtype and not (jnp.issubdtype(entry.dtype, jnp.floating) and jnp.issubdtype(dtype, jnp.floating)):
        raise UserError(
            f"{entry.file}: tensor {ascii(entry.name)} is stored as {entry.dtype}, not convertible to {dtype}; "
            "only floating point numbers are converted. Ask for the stored dtype."
        )


Box = list[tuple[int, int]]
"""From and to on every axis."""


def _destination(job: Job, sizes: tuple[int, ...]) -> tuple[Box, np.ndarray]:
    """What `job` wants of every axis of `sizes`, and its destination seen in the order of those axes, numbers' axes of size 1
    included."""
    if len(job.index) > len(sizes):
        raise ValueError(f"{job.index} has more axes than {sizes}")
    index = [*job.index, *[slice(None)] * (len(sizes) - len(job.index))]
    wanted: Box = []
    for size, at in zip(sizes, index, strict=True):
        if isinstance(at, slice):
            start, stop, step = at.indices(size)
            if step != 1:
                raise ValueError(f"{at}: only slices of step 1 are read")
            wanted.append((start, max(start, stop)))
        else:
            wanted.append((range(size)[at], range(size)[at] + 1))
    kept = [a for a, at in enumerate(index) if isinstance(at, slice)]
    order = list(range(len(kept)) if job.transpose is None else job.transpose)
    if sorted(order) != list(range(len(kept))):
        raise ValueError(f"{tuple(order)} does not permute the {len(kept)} axes of {job.index} on {sizes}")
    shape = tuple(wanted[kept[a]][1] - wanted[kept[a]][0] for a in order)
    if job.out.shape != shape:
        raise ValueError(f"{job.entry.name}: the destination has shape {job.out.shape}, what is read {shape}")
    view = job.out.transpose(np.argsort(order)) if order else job.out
    return wanted, np.expand_dims(view, tuple(a for a in range(len(sizes)) if a not in kept))


def _spans(wanted: Box, sizes: tuple[int, ...], itemsize: int) -> Box:
    """What is read for `wanted`: the same, but for axes whose unwanted part is too short to be worth skipping, read whole."""
    spans = list(wanted)
    for a in range(len(sizes) - 1, 0, -1):
        inner = math.prod(sizes[a + 1 :]) * itemsize
        if (sizes[a] - (spans[a][1] - spans[a][0])) * inner > _GAP:
            break
        spans[a] = (0, sizes[a])
    return spans


def _boxes(spans: Box, sizes: tuple[int, ...], most: int, a: int = 0) -> Iterator[Box]:
    """`spans` cut, in order, into boxes that are contiguous in an array of `sizes` and have at most `most` elements."""
    if a == len(sizes):
        yield []
        return
    inner = math.prod(sizes[a + 1 :])
    whole = all(span == (0, size) for span, size in zip(spans[a + 1 :], sizes[a + 1 :], strict=True))
    begin, end = spans[a]
    if whole and inner <= most:
        step = most // inner
        for at in range(begin, end, step):
            yield [(at, min(end, at + step)), *spans[a + 1 :]]
    else:
        for at in range(begin, end):
            for rest in _boxes(spans, sizes, most, a + 1):
                yield [(at, at + 1), *rest]


def _read_piece(piece: _Piece, descriptor: int, scratch: np.ndarray) -> None:
    """Reads `piece` into place, through `scratch` unless its destination is contiguous and of the stored dtype."""
    entry, out = piece.entry, piece.out
    if out.shape == piece.counts and out.dtype == entry.dtype and out.flags.c_contiguous:
        _read_bytes(piece, descriptor, out.reshape(-1).view(np.uint8))
        return
    _read_bytes(piece, descriptor, scratch[: piece.nbytes])
    stored = scratch[: piece.nbytes].view(entry.dtype).reshape(piece.counts)[piece.cut]
    try:
        with np.errstate(over="raise", under="ignore", invalid="ignore"):
            _copy(out.squeeze(), stored.squeeze())
    except FloatingPointError as error:
        raise UserError(
            f"{entry.file}: tensor {ascii(entry.name)} ({entry.dtype}) has values beyond the range of {out.dtype}. "
            "Ask for bfloat16 or float32."
        ) from error


def _read_bytes(piece: _Piece, descriptor: int, buffer: np.ndarray) -> None:
    """Fills `buffer` with the bytes of `piece`. Raises UserError where the file ends before."""
    view, at = memoryview(buffer), 0
    while at < len(view):
        try:
            got = os.preadv(descriptor, [view[at:]], piece.begin + at)
        except OSError as error:
            raise UserError(f"cannot read {piece.entry.file}: {error.strerror or error}") from error
        if got == 0:
            raise UserError(f"{piece.entry.file} has become shorter while it was read. Fetch it again.")
        at += got


import os as _os
MODE = _os.environ.get("MODE", "dp")
BLK = int(_os.environ.get("BLK", "16"))
_SCRATCH = int(_os.environ.get("SCR", "4")) << 20


def _copy(out: np.ndarray, stored: np.ndarray) -> None:
    """Fills `out` with `stored` of the same shape, converted; they may order their axes in memory differently."""
    order = sorted(range(out.ndim), key=lambda axis: -abs(out.strides[axis]))
    if order == list(range(out.ndim)):
        np.copyto(out, stored, casting="unsafe")
        return
    if out.itemsize < stored.itemsize:
        stored = stored.astype(out.dtype)
    if MODE == "dp":
        bits = np.dtype(f"u{stored.itemsize}")
        turned = np.asarray(jax.device_put(stored.view(bits).transpose(order), jax.local_devices(backend="cpu")[0]))
        np.copyto(out.transpose(order), turned.view(stored.dtype), casting="unsafe")
    elif MODE == "np":
        a = order[-1]
        n = out.shape[a]
        for i in range(0, n, BLK):
            k = (slice(None),) * a + (slice(i, i + BLK),)
            np.copyto(out[k], stored[k], casting="unsafe")
    else:
        np.copyto(out, stored, casting="unsafe")

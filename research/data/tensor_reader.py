"""Reading stored tensors into arrays that the caller made: sliced, transposed and converted on the way, by a few threads.

A file is read in contiguous pieces. Where the destination wants those very bytes they go straight into it; otherwise a piece that fits the
processor's cache is read and copied from there to where it belongs, to several places where several want of it. So a model is held once, in
the dtype asked for, and nothing else grows with it.
"""

import contextlib
import math
import mmap
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from research.core.errors import UserError
from research.data.tensors import Entry, beyond_range, shown

_SCRATCH = 2 << 20  # bytes a thread reads before it copies them: they stay in its cache, and hold rows of any matrix
_DIRECT = 16 << 20  # bytes of one read straight into place: enough pieces to keep the threads evenly busy
_GAP = 64 << 10  # unwanted bytes between wanted ones that are cheaper to read than to skip
_LINE = 64  # bytes of a line of the processor's cache


@dataclass(frozen=True)
class Job:
    """Read `entry`, seen as an array of `shape` (its own where None), at `index` (one slice of step 1 or one number an axis, whole axes
    where the tuple ends early), its axes permuted by `transpose` (of those that numbers left), into `out`."""

    entry: Entry
    out: np.ndarray
    shape: tuple[int, ...] | None = None
    index: tuple[slice | int, ...] = ()
    transpose: Sequence[int] | None = None


Box = list[tuple[int, int]]
"""From and to on every axis."""


@dataclass(frozen=True)
class _Region:
    """The part `box` of a stored tensor belongs into `out`, whose axes are those of the stored tensor."""

    box: Box
    out: np.ndarray


Target = tuple[tuple[slice, ...], np.ndarray]
"""A part of what a piece holds, and where it belongs."""


@dataclass(frozen=True)
class _Piece:
    """Bytes from `begin` on hold an array of `counts`, parts of which belong to the `targets`."""

    entry: Entry
    begin: int
    counts: tuple[int, ...]
    targets: list[Target]


def read_all(jobs: Iterable[Job], threads: int | None = None) -> None:
    """Does all `jobs`, in the order of the files, in `threads` threads (one for each of up to 8 processors, at least 2). What several jobs
    want is read once. Beyond the destinations this takes a few megabytes a thread, whatever the jobs' sizes.

    Raises UserError where a file cannot be read or has become shorter, where whole numbers are asked as floats or the reverse, or
    where values exceed the range of the dtype asked for; ValueError where shape, index, permutation and destination do not fit.
    """
    groups: dict[tuple[Entry, tuple[int, ...]], list[_Region]] = {}
    for job in jobs:
        _check_dtypes(job.entry, job.out.dtype)
        sizes = _sizes(job)
        groups.setdefault((job.entry, sizes), []).append(_region(job, sizes))
    ordered = sorted(groups.items(), key=lambda group: (group[0][0].file, group[0][0].begin))
    pieces = (piece for (entry, sizes), regions in ordered for piece in _pieces(entry, sizes, regions))
    turn = threading.Lock()

    def work() -> None:
        scratch = np.empty(_SCRATCH, np.uint8)
        while True:
            with turn:
                piece = next(pieces, None)
            if piece is None:
                return
            _read_piece(piece, descriptors[piece.entry.file], scratch)

    count = threads or min(8, max(2, os.cpu_count() or 2))
    with _opened({entry.file for entry, _ in groups}) as descriptors, ThreadPoolExecutor(count) as pool:
        workers = [pool.submit(work) for _ in range(count)]
        try:
            wait(workers, return_when=FIRST_EXCEPTION)
        finally:
            with turn:
                pieces.close()  # after an error or an interrupt no thread begins another
        for worker in workers:
            worker.result()


@contextlib.contextmanager
def _opened(files: set[Path]) -> Iterator[dict[Path, int]]:
    """Descriptors of `files`, open while the block runs. Raises UserError where one cannot be opened."""
    with contextlib.ExitStack() as stack:
        descriptors: dict[Path, int] = {}
        for file in files:
            try:
                descriptors[file] = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise UserError(f"cannot read {file}: {error.strerror or error}") from error
            stack.callback(os.close, descriptors[file])
        yield descriptors


def allocate(shape: tuple[int, ...], dtype) -> np.ndarray:
    """Returns an array of `shape` and `dtype`, its values not set, that `adopt` can take without a copy. Raises UserError for a 64-bit
    dtype where JAX is not set to keep those.

    It begins at a page of its own. NumPy would ask for huge pages, which are quicker to fill on a machine's own memory, but on a virtual machine
    whose host takes free memory back they cost five times what pages of the ordinary size do.
    """
    dtype = np.dtype(dtype)
    if jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise UserError(f"{dtype} needs JAX_ENABLE_X64=1 in the environment; set it, or ask for a 32-bit dtype.")
    count = math.prod(shape)
    pages = mmap.mmap(-1, max(1, count * dtype.itemsize), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return np.frombuffer(pages, np.uint8, count * dtype.itemsize).view(dtype).reshape(shape)


def adopt(array: np.ndarray, device: Any = None) -> jax.Array:
    """Returns `array` as a JAX array on `device`. On a CPU an array of `allocate`'s is taken as it is, without a copy (`jnp.asarray` would
    copy), so nobody may write to it afterwards."""
    return jax.device_put(array, device)


def _check_dtypes(entry: Entry, dtype: np.dtype) -> None:
    if entry.dtype != dtype and not (jnp.issubdtype(entry.dtype, jnp.floating) and jnp.issubdtype(dtype, jnp.floating)):
        raise UserError(
            f"{entry.file}: tensor {shown(entry.name)} is stored as {entry.dtype}, not convertible to {dtype}; "
            "only floating point numbers are converted. Ask for the stored dtype."
        )


def _sizes(job: Job) -> tuple[int, ...]:
    """The shape that `job` sees its tensor in."""
    sizes = job.entry.shape if job.shape is None else tuple(job.shape)
    if math.prod(sizes) != math.prod(job.entry.shape):
        raise ValueError(f"{job.entry.name} of shape {job.entry.shape} cannot be seen as {sizes}")
    return sizes


def _region(job: Job, sizes: tuple[int, ...]) -> _Region:
    """What `job` wants of a tensor of `sizes`, and its destination seen in the order of those axes, numbers' axes of size 1 included."""
    if len(job.index) > len(sizes):
        raise ValueError(f"{job.index} has more axes than {sizes}")
    index = [*job.index, *[slice(None)] * (len(sizes) - len(job.index))]
    box: Box = []
    for size, at in zip(sizes, index, strict=True):
        if isinstance(at, slice):
            start, stop, step = at.indices(size)
            if step != 1:
                raise ValueError(f"{at}: only slices of step 1 are read")
            box.append((start, max(start, stop)))
        else:
            box.append((range(size)[at], range(size)[at] + 1))
    kept = [a for a, at in enumerate(index) if isinstance(at, slice)]
    order = list(range(len(kept)) if job.transpose is None else job.transpose)
    if sorted(order) != list(range(len(kept))):
        raise ValueError(f"{tuple(order)} does not permute the {len(kept)} axes of {job.index} on {sizes}")
    shape = tuple(box[kept[a]][1] - box[kept[a]][0] for a in order)
    if job.out.shape != shape:
        raise ValueError(f"{job.entry.name}: the destination has shape {job.out.shape}, what is read {shape}")
    view = job.out.transpose(np.argsort(order)) if order else job.out
    return _Region(box, np.expand_dims(view, tuple(a for a in range(len(sizes)) if a not in kept)))


def _pieces(entry: Entry, sizes: tuple[int, ...], regions: list[_Region]) -> Iterator[_Piece]:
    """What is read for `regions` of a tensor seen as `sizes`: together where the bytes of one lie among those of another (the parts of a
    fused projection, the shards of its columns), each alone otherwise."""
    regions = [region for region in regions if 0 not in region.out.shape]
    spans = [_span(region.box, sizes, entry.dtype.itemsize) for region in regions]
    hull = [(min(b for b, _ in axis), max(e for _, e in axis)) for axis in zip(*spans, strict=True)]
    if sum(map(_volume, spans)) > _volume(hull):
        yield from _cut(entry, sizes, _span(hull, sizes, entry.dtype.itemsize), regions)
    else:
        for span, region in zip(spans, regions, strict=True):
            yield from _cut(entry, sizes, span, [region])


def _volume(box: Box) -> int:
    return math.prod(end - begin for begin, end in box)


def _span(box: Box, sizes: tuple[int, ...], itemsize: int) -> Box:
    """What is read for `box`: the same, but for axes whose unwanted part is too short to be worth skipping, read whole."""
    span = list(box)
    for a in range(len(sizes) - 1, 0, -1):
        inner = math.prod(sizes[a + 1 :]) * itemsize
        if (sizes[a] - (span[a][1] - span[a][0])) * inner > _GAP:
            break
        span[a] = (0, sizes[a])
    return span


def _cut(entry: Entry, sizes: tuple[int, ...], span: Box, regions: list[_Region]) -> Iterator[_Piece]:
    """The contiguous runs of bytes that make up `span`, each small enough for a thread's scratch memory, or larger where the bytes go
    straight into place."""
    itemsize = entry.dtype.itemsize
    straight = len(regions) == 1 and regions[0].box == span and _takes_bytes(regions[0].out, entry.dtype)
    for box in _boxes(span, sizes, (_DIRECT if straight else _SCRATCH) // itemsize):
        begin = entry.begin + itemsize * sum(b * math.prod(sizes[a + 1 :]) for a, (b, _) in enumerate(box))
        targets = [target for region in regions if (target := _target(box, region))]
        if targets:  # none where the box lies within a gap
            yield _Piece(entry, begin, tuple(e - b for b, e in box), targets)


def _takes_bytes(out: np.ndarray, dtype: np.dtype) -> bool:
    """Whether stored bytes of `dtype` are what `out` holds in memory."""
    return out.dtype == dtype and out.flags.c_contiguous


def _target(box: Box, region: _Region) -> Target | None:
    """The part of `box` that `region` wants, and where it belongs; None where they do not meet."""
    both = [(max(b, lo), min(e, hi)) for (b, e), (lo, hi) in zip(box, region.box, strict=True)]
    if any(lo >= hi for lo, hi in both):
        return None
    part = tuple(slice(lo - b, hi - b) for (lo, hi), (b, _) in zip(both, box, strict=True))
    where = tuple(slice(lo - b, hi - b) for (lo, hi), (b, _) in zip(both, region.box, strict=True))
    return part, region.out[(*where, ...)]  # with the dots a single number is an array too


def _boxes(span: Box, sizes: tuple[int, ...], most: int, a: int = 0) -> Iterator[Box]:
    """`span` cut, in order, into boxes that are contiguous in an array of `sizes` and have at most `most` elements."""
    if a == len(sizes):
        yield []
        return
    inner = math.prod(sizes[a + 1 :])
    whole = all(own == (0, size) for own, size in zip(span[a + 1 :], sizes[a + 1 :], strict=True))
    begin, end = span[a]
    if whole and inner <= most:
        step = most // inner
        for at in range(begin, end, step):
            yield [(at, min(end, at + step)), *span[a + 1 :]]
    else:
        for at in range(begin, end):
            for rest in _boxes(span, sizes, most, a + 1):
                yield [(at, at + 1), *rest]


def _read_piece(piece: _Piece, descriptor: int, scratch: np.ndarray) -> None:
    """Reads `piece` into place, through `scratch` unless it is what a destination holds in memory."""
    entry = piece.entry
    if len(piece.targets) == 1:
        out = piece.targets[0][1]
        if out.shape == piece.counts and _takes_bytes(out, entry.dtype):
            _read_bytes(piece, descriptor, out.reshape(-1).view(np.uint8))
            return
    nbytes = math.prod(piece.counts) * entry.dtype.itemsize
    _read_bytes(piece, descriptor, scratch[:nbytes])
    stored = scratch[:nbytes].view(entry.dtype).reshape(piece.counts)
    for part, out in piece.targets:
        if not _place(out.squeeze(), stored[(*part, ...)].squeeze()):
            raise UserError(
                f"{entry.file}: tensor {shown(entry.name)} ({entry.dtype}) has values beyond the range of {out.dtype}. "
                "Ask for bfloat16 or float32."
            )


def _read_bytes(piece: _Piece, descriptor: int, buffer: np.ndarray) -> None:
    """Fills `buffer` with the bytes of `piece`. Raises UserError where the file ends before."""
    view, at = buffer.data, 0
    while at < len(view):
        try:
            got = os.preadv(descriptor, [view[at:]], piece.begin + at)
        except OSError as error:
            raise UserError(f"cannot read {piece.entry.file}: {error.strerror or error}") from error
        if got == 0:
            raise UserError(f"{piece.entry.file} has become shorter while it was read. Fetch it again.")
        at += got


def _place(out: np.ndarray, stored: np.ndarray) -> bool:
    """Fills `out` with `stored` of the same shape, converted, and returns whether its dtype could hold all of them.

    Where their axes lie in another order in memory, one of the two is walked across its rows. That is `stored`, first converted and
    laid out anew with rows that are an odd number of cache lines apart: at its own distance, most often a high power of two, all of a column
    falls into the same few places of the cache, and the copy takes two to five times as long.
    """
    with np.errstate(all="ignore"):  # the range is checked below, where 16-bit formats raise no flags
        if out.ndim < 2 or out.strides[-1] == min(out.strides):
            np.copyto(out, stored, casting="unsafe")
            return not beyond_range(stored, out)
        *rows, n = stored.shape
        pad = _LINE // out.itemsize if n * out.itemsize % (4 * _LINE) == 0 else 0
        spread = np.empty((*rows, n + pad), out.dtype)[..., :n]
        np.copyto(spread, stored, casting="unsafe")
        np.copyto(out, spread)
        return not beyond_range(stored, spread)

"""The persistent compilation cache, on by default: a program compiled once on a machine is not compiled again.

JAX writes the entries; this module says where, keeps them within bounds and removes what it could not read. Entries hold
machine code, so they lie in a folder of their own for every set of CPU features and version. JAX writes an entry in place and
never replaces one, so an entry torn by a kill would warn and recompile at every start: entries that are new since the last
start are read through once, and unreadable ones deleted. JAX's own bound (`jax_compilation_cache_max_size`) takes a file lock
and writes a time stamp for every read, and reads every stamp for every write, so the bound is kept here, at the start.
"""

import contextlib
import functools
import hashlib
import importlib
import json
import os
import platform
import re
import sys
import tempfile
import threading
import weakref
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from research.core.paths import research_cache_dir

MAX_BYTES, MAX_ENTRIES = 2 * 1024**3, 2_000
CHECKED = "checked.json"
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
HEADER_BYTES = 4  # the compile time, before the program
DIRECTORY = "jax_compilation_cache_dir"
# Small programs too: a start compiles a hundred of them, at 30 ms each against 7 ms to read one (2 cores, jax 0.10.2).
THRESHOLDS = {"jax_persistent_cache_min_compile_time_secs": 0.0, "jax_persistent_cache_min_entry_size_bytes": -1}
FALSE_ALARM = re.compile(rb"cpu_aot_loader.*Target machine feature \+prefer-")

_warned = False
_HUSHED: "weakref.WeakSet[Callable]" = weakref.WeakSet()


def enable(cache_dir: str | Path | None = None) -> Path | None:
    """Turns the cache on, in a subfolder of `cache_dir` or of the user's cache folder, and returns the subfolder.

    A cache that the user has set up (`JAX_COMPILATION_CACHE_DIR`) is left as it is. Where the folder cannot be used, says so
    once on standard error and returns None: a run goes on without it.
    """
    import jax

    if chosen := getattr(jax.config, DIRECTORY):
        return Path(chosen)
    base = Path(cache_dir) if cache_dir is not None else research_cache_dir() / "xla"
    folder = base / machine_key()
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)  # whoever writes here runs code as this user
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(13, "Permission denied", str(folder))
        delete_unreadable(folder)
        bound(base)
    except OSError as error:
        _warn_once(f"compiled programs are not kept: {folder}: {error.strerror or error}")
        return None
    for name, value in THRESHOLDS.items():
        if name.upper() not in os.environ:
            jax.config.update(name, value)
    jax.config.update(DIRECTORY, str(folder))
    if "avx512f" in cpu_features():
        _hush_loading()
    return folder


def machine_key() -> str:
    """A folder name that differs where machine code may: the CPU's features, and the versions of jax and jaxlib."""
    import jax
    from jaxlib import version

    digest = hashlib.sha256(" ".join(sorted(cpu_features())).encode()).hexdigest()[:12]
    return f"{platform.machine() or 'unknown'}-{digest}-jax{jax.__version__}-jaxlib{version.__version__}"


@functools.cache
def cpu_features() -> frozenset[str]:
    """The feature names that Linux reports (`flags` on x86, `Features` on ARM), or the processor's name elsewhere."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
        for line in lines:
            name, _, value = line.partition(":")
            if name.strip().lower() in ("flags", "features"):
                return frozenset(value.split())
    return frozenset([platform.processor() or platform.machine()])


def delete_unreadable(folder: Path) -> list[str]:
    """Deletes entries that JAX could not read and returns their names. Reads only those that it has not seen before."""
    known = _read_checked(folder)
    found, deleted = {}, []
    for entry in _entries(folder):
        stat = entry.stat()
        stamp = [stat.st_size, stat.st_mtime_ns]
        if known.get(entry.name) != stamp and not readable(Path(entry.path).read_bytes()):
            Path(entry.path).unlink(missing_ok=True)
            deleted.append(entry.name)
        else:
            found[entry.name] = stamp
    if found != known:
        with tempfile.NamedTemporaryFile("w", dir=folder, prefix=f".{CHECKED}.", delete=False) as file:
            json.dump(found, file)
        os.replace(file.name, folder / CHECKED)
    return deleted


def readable(data: bytes) -> bool:
    """Whether an entry decompresses to more than its header. One in a format that this Python cannot read passes unread."""
    try:
        if data.startswith(ZSTD_MAGIC):
            decompress = _zstd()
            return decompress is None or len(decompress(data)) > HEADER_BYTES
        return len(zlib.decompress(data)) > HEADER_BYTES
    except Exception:  # each library has errors of its own
        return False


def bound(base: Path, max_bytes: int = MAX_BYTES, max_entries: int = MAX_ENTRIES) -> None:
    """Deletes the entries used longest ago, of every machine and version, until what is left is within both bounds."""
    entries = []
    for folder in base.iterdir():
        for entry in _entries(folder) if folder.is_dir() else ():
            stat = entry.stat()
            entries.append((max(stat.st_atime_ns, stat.st_mtime_ns), entry.path, stat.st_size))
    count, size = len(entries), sum(size for _, _, size in entries)
    for _, path, bytes_of_it in sorted(entries):
        if count <= max_entries and size <= max_bytes:
            return
        Path(path).unlink(missing_ok=True)
        count, size = count - 1, size - bytes_of_it


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    with os.scandir(folder) as found:
        yield from (entry for entry in found if entry.name.endswith("-cache") and entry.is_file())


def _read_checked(folder: Path) -> dict[str, Any]:
    try:
        known = json.loads((folder / CHECKED).read_text())
        return known if isinstance(known, dict) else {}
    except (OSError, ValueError):
        return {}


def _zstd() -> Callable[[bytes], bytes] | None:
    """What JAX uses when it is there: Python 3.14's own module, or the `zstandard` package."""
    with contextlib.suppress(ImportError):
        return importlib.import_module("compression.zstd").decompress
    with contextlib.suppress(ImportError):
        return importlib.import_module("zstandard").ZstdDecompressor().decompress
    return None


def _warn_once(message: str) -> None:
    global _warned
    if not _warned:
        print(message, file=sys.stderr, flush=True)
    _warned = True


def _hush_loading() -> None:
    """With AVX-512, XLA of jaxlib 0.10 reports each program it reads back as made for another machine.

    It compares what the code generator was told to prefer (`+prefer-no-gather`) with what the CPU can do. Those lines alone
    are dropped; any other feature missing is worth the alarm.
    """
    from jax._src import compilation_cache as cache  # nothing public is called just around the reading of an entry

    load = getattr(cache, "get_executable_and_time", None)
    if load is not None and load not in _HUSHED:
        cache.get_executable_and_time = hushed(load)
        _HUSHED.add(cache.get_executable_and_time)


def hushed(function: Callable) -> Callable:
    """`function`, with lines of false alarm taken out of what it writes to the standard error of the process."""
    one_at_a_time = threading.Lock()

    @functools.wraps(function)
    def call(*args, **kwargs):
        with one_at_a_time, tempfile.TemporaryFile() as written:
            sys.stderr.flush()
            stderr = os.dup(2)
            os.dup2(written.fileno(), 2)
            try:
                return function(*args, **kwargs)
            finally:
                sys.stderr.flush()
                os.dup2(stderr, 2)
                os.close(stderr)
                written.seek(0)
                for line in written:
                    if not FALSE_ALARM.search(line):
                        os.write(2, line)

    return call

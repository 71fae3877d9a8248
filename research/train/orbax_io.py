"""Arrays to and from a folder through Orbax, by the paths of their leaves.

What is stored is nested dicts named by keys, fields and indices, so a checkpoint can be read, whole or in part, without
the classes that held the state. Plain Orbax opens it too: `orbax.checkpoint.v1.load(folder)`.
"""

import logging
from pathlib import Path
from typing import Any

import jax
import numpy as np

LeafPath = tuple[str, ...]


def named_leaves(tree: Any) -> dict[LeafPath, Any]:
    """`{path: leaf}` over a pytree of arrays; a path is the names of keys, fields and indices.

    Raises ValueError when two paths are the same as text.
    """
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    named = {tuple(jax.tree_util.keystr((part,), simple=True) for part in path): leaf for path, leaf in flat}
    if len(named) != len(flat):
        raise ValueError("two leaves have the same path: keys must differ as text")
    return named


def nested(named: dict[LeafPath, Any]) -> dict[str, Any]:
    """The inverse of `named_leaves`, as nested dicts."""
    tree: dict[str, Any] = {}
    for path, leaf in named.items():
        node = tree
        for part in path[:-1]:
            node = node.setdefault(part, {})
        node[path[-1]] = leaf
    return tree


class Writing:
    """One write to `folder`: the arrays are copied when this is made; `finish()` returns once they are on disk.

    A process that is alone copies to the host and leaves the rest to whichever thread finishes. Of several, each owns
    only some shards, so Orbax does the copying, and all must make their `Writing` at the same point.
    """

    def __init__(self, folder: Path, named: dict[LeafPath, Any]):
        tree = nested({path: leaf for path, leaf in named.items() if leaf.size})  # Orbax refuses empty arrays
        self._folder, self._response, self._snapshot = folder, None, None
        if jax.process_count() == 1:
            self._snapshot = jax.tree.map(_own_copy, jax.device_get(tree))
        else:
            self._response = _start(folder, tree)

    def finish(self) -> None:
        """Raises OSError, or ValueError with the system's error number in its text, when it cannot be written."""
        (self._response or _start(self._folder, self._snapshot)).result()


def read_arrays(folder: Path, wanted: dict[LeafPath, jax.ShapeDtypeStruct]) -> dict[LeafPath, Any]:
    """The leaves named, bit for bit: JAX arrays where a sharding is asked for, NumPy arrays elsewhere."""
    from orbax.checkpoint import v1 as ocp

    _quiet()
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    stored = {path: _template(leaf) for path, leaf in wanted.items() if leaf.size}
    with context:
        found = named_leaves(ocp.load(str(folder), nested(stored))) if stored else {}
    for path, leaf in wanted.items():
        if not leaf.size:
            empty = np.zeros(leaf.shape, leaf.dtype)
            found[path] = empty if leaf.sharding is None else jax.device_put(empty, leaf.sharding)
    return found


def _template(leaf: jax.ShapeDtypeStruct) -> Any:
    """What tells Orbax the kind of array to return; for NumPy that is an array, here one that takes no memory."""
    return leaf if leaf.sharding is not None else np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape)


def _own_copy(array: np.ndarray) -> np.ndarray:
    """On CPU what `device_get` returns is a view of the device's buffer, which donation would hand to the next step."""
    return array if array.flags.owndata else array.copy()


def _start(folder: Path, tree: Any):
    from orbax.checkpoint import v1 as ocp

    _quiet()
    context = ocp.Context()
    context.array.saving.use_compression = False  # weights hardly compress, and training needs the cores
    context.asynchronous.create_directories_asynchronously = False  # else a failure there holds up the exit for minutes
    with context:
        return ocp.save_async(str(folder), tree)


def _quiet() -> None:
    """Orbax logs what it also raises, tracebacks included; the exception is enough."""
    logger = logging.getLogger("absl")
    if _not_from_orbax not in logger.filters:
        logger.addFilter(_not_from_orbax)


def _not_from_orbax(record: logging.LogRecord) -> bool:
    return "/orbax/" not in record.pathname.replace("\\", "/")

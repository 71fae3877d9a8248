"""What a model is to sampling: parameters, a ModelConfig and a tokeniser; and its prepared weights, kept with it."""

import dataclasses
import weakref
from collections.abc import Callable, Hashable
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding

from research.core import params as P
from research.core import sharding
from research.core.errors import UserError
from research.data.tokenizer import Tokenizer
from research.model.config import ModelConfig
from research.sample import decode as D


@dataclasses.dataclass(frozen=True, eq=False)
class Loaded:
    """A model in memory. Without a tokeniser it takes and gives ids alone."""

    params: P.Tree
    config: ModelConfig
    tokenizer: Tokenizer | None


def opened(model: Any) -> Loaded:
    """The parts of a model: its `params`, its `tokenizer`, and the ModelConfig at `config` or at `model`.

    Raises UserError for what is none.
    """
    configs = [getattr(model, name, None) for name in ("config", "model")]
    config = next((one for one in configs if isinstance(one, ModelConfig)), None)
    if config is None:
        expected = "a model such as research.hf.load(path) or research.load_run(path) gives"
        raise UserError(f"there is a {type(model).__name__} where {expected} was expected")
    return Loaded(model.params, config, getattr(model, "tokenizer", None))


class Kept:
    """Values kept beside objects for as long as these live: of each kind the last one, under its key."""

    def __init__(self):
        self._of: dict[int, tuple[weakref.ref, dict[str, tuple[Hashable, Any]]]] = {}

    def get(self, owner: Any, kind: str, key: Hashable, make: Callable[[], Any]) -> Any:
        """What `make()` gave for this owner and key before, or gives now. It is only kept if `owner` has weak references."""
        held = self._of.get(id(owner))
        if held is None:
            try:
                held = (weakref.ref(owner, lambda _, number=id(owner): self._of.pop(number, None)), {})
            except TypeError:
                return make()
            self._of[id(owner)] = held
        if kind not in held[1] or held[1][kind][0] != key:
            held[1][kind] = (key, make())
        return held[1][kind][1]


KEPT = Kept()


def prepared(model: Any, loaded: Loaded) -> D.Model:
    """The weights of `model`, whose parts are `loaded`, as decoding reads them: made once, and again if its weights are replaced."""
    key = (id(loaded.params), loaded.config)

    def make() -> tuple[D.Model, P.Tree]:
        with sharding.use(mesh_of(loaded.params)):
            return D.prepare(loaded.params, loaded.config), loaded.params  # the second holds the id

    return KEPT.get(model, "prepared", key, make)[0]


def mesh_of(params: P.Tree) -> Mesh | None:
    """The mesh that parameters are spread over; None on a single device."""
    for leaf in jax.tree.leaves(params):
        where = getattr(leaf, "sharding", None)
        if isinstance(where, NamedSharding) and where.mesh.size > 1 and isinstance(where.mesh, Mesh):
            return where.mesh
    return None

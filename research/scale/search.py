"""The mesh, the policy of recomputation and the number of passes that serve a run best on a topology: what may be is listed, an analytic model of
memory and time sorts it, and the best few are compiled."""

import dataclasses
import math
from collections.abc import Iterator

import jax
from jax.sharding import AbstractMesh, AxisType

from research.core import params as P
from research.core import sharding
from research.core.chips import Chip
from research.core.errors import UserError
from research.model import moe, transformer
from research.model.config import ModelConfig
from research.scale import roofline, traffic
from research.scale.topology import Topology, larger_topologies
from research.train import config as C
from research.train.program import check_axes

POLICIES = ("none", "attention", "matmuls", "full")
MOST_TENSOR = 16
ROOM = 0.92  # of the memory: the analytic model does not know all
STATE_BYTES = 16  # a parameter in float32: itself, two moments, its gradient


@dataclasses.dataclass(frozen=True)
class Choice:
    """One way to run: a config with its mesh, and what the analytic model says: bytes of a device, and seconds of a step."""

    config: C.Config
    bytes: float
    seconds: float


def choices(config: C.Config, topology: Topology, limit: float, fixed: frozenset[str] = frozenset()) -> list[Choice]:
    """Every way to run that should fit into `limit` bytes a device, the fastest first. Fields that are `fixed` stay as they are."""
    found = []
    for mesh in meshes(config, topology):
        for passes in [config.micro_batches] if "micro_batches" in fixed else splits(config, mesh):
            for remat in [config.model.remat] if "model.remat" in fixed else POLICIES:
                model = dataclasses.replace(config.model, remat=remat)
                one = dataclasses.replace(config, mesh=mesh, micro_batches=passes, model=model)
                found.append(estimate(one, topology))
    return sorted((one for one in found if one.bytes <= ROOM * limit), key=lambda one: (one.seconds, one.bytes))


def meshes(config: C.Config, topology: Topology) -> Iterator[str]:
    """Meshes over all devices that divide the model and the rows. Slices differ under `data`, `stage` or `fsdp`."""
    slices = topology.slices
    outer = ("data", "stage", "fsdp") if slices > 1 else ("fsdp",)
    for axis in outer:
        for sizes in _within(config, topology.devices // slices):
            sizes = {"data": 1, "stage": 1, **sizes}
            sizes[axis] *= slices
            rows = config.batch_size // config.micro_batches
            if config.batch_size % sharding.spread(sizes, "batch") or not _divides(config.model, sizes):
                continue
            if sizes["sequence"] == 1 or rows < sharding.spread(
                {**sizes, "fsdp": sizes["fsdp"] * sizes["sequence"]}, "batch"
            ):
                yield ",".join(f"{name}={size}" for name, size in sizes.items() if size > 1) or "fsdp=1"


def _divides(model: ModelConfig, sizes: dict[str, int]) -> bool:
    try:
        check_axes(model, sizes)
    except UserError:
        return False
    return model.segments[0][1] % sizes["stage"] == 0


def _within(config: C.Config, devices: int) -> Iterator[dict[str, int]]:
    """Sizes of `fsdp`, `expert`, `sequence` and `tensor` whose product is the number of devices."""
    for tensor in (n for n in _powers(MOST_TENSOR) if devices % n == 0 and config.row_tokens % n == 0):
        for expert in (n for n in _powers(devices // tensor) if devices // tensor % n == 0):
            rest = devices // tensor // expert
            for sequence in (n for n in _powers(rest) if rest % n == 0 and config.row_tokens % (n * tensor) == 0):
                yield {"fsdp": rest // sequence, "expert": expert, "sequence": sequence, "tensor": tensor}


def _powers(most: int) -> list[int]:
    return [2**n for n in range(max(1, most).bit_length()) if 2**n <= most]


def splits(config: C.Config, mesh: str) -> list[int]:
    """Numbers of passes that leave every device a whole number of rows."""
    sizes = _sizes(mesh)
    shards = sharding.spread(sizes, "batch")
    rows = config.batch_size // shards
    return [n for n in _powers(rows) if rows % n == 0]


def _sizes(mesh: str) -> dict[str, int]:
    return {name: int(size) for name, size in (part.split("=") for part in mesh.split(","))}


def estimate(config: C.Config, topology: Topology) -> Choice:
    """What the analytic model says of a config. Memory: its state, what the forward pass keeps, one layer or the head at work. Time: the roofline,
    with the messages that theory has."""
    sizes, model, chip = _sizes(config.mesh), config.model, topology.chip
    mesh = AbstractMesh(tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))
    specs = P.flatten(transformer.specs(model))
    shares = {
        path: math.prod(jax.sharding.NamedSharding(mesh, sharding.param_spec(p, mesh)).shard_shape(p.shape))
        for path, p in specs.items()
    }
    held = STATE_BYTES * sum(shares.values())
    if config.zero == 1:
        held += 4 * (P.count(transformer.specs(model)) / sizes.get("tensor", 1) - sum(shares.values()))
    tensor = sizes.get("tensor", 1)
    shards = sharding.spread(sizes, "batch")
    tokens = (
        config.batch_size / shards / config.micro_batches * config.row_tokens / sizes.get("sequence", 1)
    )  # of a device and pass
    visits = moe.visits(model, config.row_tokens, sizes)
    kept = roofline.kept_bytes(model, tokens, tensor, visits) * traffic.turns_a_microbatch(
        traffic.schedule(config, sizes)
    )
    weights = 2 * sum(p.size for path, p in specs.items() if path.startswith("decoder")) / max(1, model.layers) / tensor
    layer = (
        2 * tokens * (4 * model.width + (3 * roofline.inner(model, visits) + 4 * model.heads * model.H) / tensor)
        + 2 * weights
    )
    tile = tokens if config.task.head_tile is None else min(tokens, config.task.head_tile)
    head = tile * model.V / tensor * 6 + 2 * 2 * model.V * model.width / tensor
    seconds = math.inf if chip is None else analytic_seconds(config, sizes, chip, topology.slices)
    return Choice(config, held + kept + max(layer, head), seconds)


def analytic_seconds(config: C.Config, sizes: dict[str, int], chip: Chip, slices: int) -> float:
    """Seconds of a step by the roofline, messages by theory."""
    model, reached = config.model, roofline.REACHED
    done, plan = roofline.work(config, model, sizes), traffic.schedule(config, sizes)
    computing = sum(done.seconds(chip).values())
    computing += roofline.waiting(computing, done, plan)
    if chip.link is None:
        return computing
    link, network = chip.link * reached["link"], (chip.network or chip.link) * reached["network"]
    across = next((axis for axis in ("data", "stage", "fsdp") if slices > 1 and sizes.get(axis, 1) % slices == 0), None)
    share = 1.0 if chip.dimensions == 0 or sizes.get("tensor", 1) == 1 else (chip.dimensions - 1) / chip.dimensions

    def seconds(axis: str, size: float) -> float:
        if axis == across:  # members on one slice or node share what leaves it
            return size / min(network * sizes[axis] / slices, link)
        return size / (link / max(1, chip.dimensions) if axis in roofline.WAITED_FOR else link * share)

    sent = {axis: seconds(axis, size) for axis, size in traffic.theory(config, model, sizes, 2).items()}
    waited = sum(took for axis, took in sent.items() if axis in roofline.WAITED_FOR)
    return max(computing, sum(sent.values()) - waited) + reached["waited"] * waited


def changes(config: C.Config, topology: Topology, limit: float) -> list[tuple[str, C.Config, Topology]]:
    """What would make a config that does not fit one that should, the least costly first: one change (more passes, more recomputation, a tiled
    head, another mesh), then these together, then more chips of the kind. Each as options of a command line, with its config."""
    singles = [
        *(("--micro-batches", n, dataclasses.replace(config, micro_batches=n)) for n in splits(config, config.mesh) if n > config.micro_batches),
        *(("--model.remat", name, _with_remat(config, name)) for name in POLICIES[POLICIES.index(config.model.remat) + 1 :]),
        *(("--mesh", mesh, dataclasses.replace(config, mesh=mesh)) for mesh in meshes(config, topology)
          if mesh != config.mesh and not splits_badly(config, mesh)),
    ]  # fmt: skip
    if config.task.head_tile is None:
        tiled = dataclasses.replace(config, task=dataclasses.replace(config.task, head_tile=4096))
        singles.append(("--task.head-tile", 4096, tiled))
    found = [(f"{option} {value}", estimate(one, topology)) for option, value, one in singles]
    fitting = sorted((one for one in found if one[1].bytes <= ROOM * limit), key=lambda one: one[1].seconds)
    out = [(said, one.config, topology) for said, one in fitting]
    for one in choices(config, topology, limit)[:2]:
        said = f"--mesh {one.config.mesh} --micro-batches {one.config.micro_batches} --model.remat {one.config.model.remat}"
        out.append((said, one.config, topology))
    for larger in larger_topologies(topology):
        if there := choices(config, larger, limit):
            best = there[0].config
            said = f"--topology {larger.name} --mesh {best.mesh} --micro-batches {best.micro_batches} --model.remat {best.model.remat}"
            out.append((said, best, larger))
            break
    return out


def _with_remat(config: C.Config, name: str) -> C.Config:
    return dataclasses.replace(config, model=dataclasses.replace(config.model, remat=name))


def splits_badly(config: C.Config, mesh: str) -> bool:
    """Whether a mesh's devices have no whole number of rows of each pass."""
    shards = sharding.spread(_sizes(mesh), "batch")
    return config.batch_size // config.micro_batches % shards > 0

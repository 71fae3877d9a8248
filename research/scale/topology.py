"""Hardware by its name: `v5e-16`, `v5p-256`, `v6e-256x2` (two slices), `h100x64`, `cpu-8`.

Cloud TPU's names count cores for v5p (v5p-256 has 128 chips) and for tpu7x (tpu7x-8 has 4 chips, and a device for each core); they count chips
for v5e and v6e. Slice shapes are those that docs.cloud.google.com/tpu/docs lists.
"""

import dataclasses
import difflib
import re

from research.core.chips import CHIPS, Chip
from research.core.errors import UserError

SHAPES_2D = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
SHAPES_3D = {
    4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8", 256: "4x8x8", 512: "8x8x8", 1024: "8x8x16", 2048: "8x16x16",
    4096: "16x16x16",
}  # fmt: skip
# name -> (chip, shapes by chips, what the name counts a chip, devices a chip)
TPUS = {
    "v5e": ("TPU v5e", SHAPES_2D, 1, 1), "v6e": ("TPU v6e", SHAPES_2D, 1, 1), "v5p": ("TPU v5p", SHAPES_3D, 2, 1),
    "tpu7x": ("TPU7x", SHAPES_3D, 2, 2),
}  # fmt: skip
GPUS = {"a100": "A100", "h100": "H100", "h200": "H200", "b200": "B200"}
NODE = 8  # GPUs that share a switch


@dataclasses.dataclass(frozen=True)
class Topology:
    """`name` as it was asked for; `platform`: tpu, gpu or cpu; `chip`: what is published of a device, None for a CPU; `devices` of all `slices` (of
    a GPU: nodes) together; `chips`: how many chips they are on; `shape` of a slice, as libtpu has it."""

    name: str
    platform: str
    chip: Chip | None
    devices: int
    chips: int
    slices: int = 1
    shape: str = ""

    @property
    def said(self) -> str:
        """In words."""
        if self.platform == "cpu":
            return f"{self.devices} CPU devices"
        assert self.chip is not None
        words = (
            f"{self.chips} {self.chip.name} chips"
            if self.platform == "tpu"
            else f"{self.devices} {self.chip.name} GPUs"
        )
        if self.devices != self.chips:
            words += f" ({self.devices} devices)"
        if self.slices > 1:
            words += f" in {self.slices} {'slices' if self.platform == 'tpu' else 'nodes'}"
        return words + (f" of {self.shape.partition(':')[2]}" if self.shape else "")


def topology(name: str) -> Topology:
    """The topology of a name, in any case, or as Google has v5e (v5litepod-16). Raises UserError, with the nearest names, for one that is not
    known."""
    asked, name = name, name.lower().removeprefix("tpu-").replace("v5litepod-", "v5e-")
    if found := re.fullmatch(r"cpu-(\d+)", name):
        count = int(found[1])
        if 1 <= count <= 4096:
            return Topology(name, "cpu", None, count, count)
    if found := re.fullmatch(r"([a-z]+\d+)x(\d+)", name):
        count = int(found[2])
        if found[1] in GPUS and count >= 1 and (count <= NODE or count % NODE == 0):
            return Topology(name, "gpu", CHIPS[GPUS[found[1]]], count, count, max(1, count // NODE))
    if found := re.fullmatch(r"(v\d[ep]|tpu7x)-(\d+)(?:x(\d+))?", name):
        kind, size, slices = found[1], int(found[2]), int(found[3] or 1)
        if kind in TPUS:
            chip, shapes, counted, devices = TPUS[kind]
            if size % counted == 0 and size // counted in shapes and slices >= 1:
                chips = size // counted * slices
                return Topology(
                    name, "tpu", CHIPS[chip], chips * devices, chips, slices, f"{kind}:{shapes[size // counted]}"
                )
    near = _same_kind(name)[:4] or difflib.get_close_matches(name, names(), 4, 0.4)
    raise UserError(
        f"there is no topology {asked!r}; did you mean {', '.join(near)}?" if near else
        f"there is no topology {asked!r}; there are for example v5e-16, v5p-256, v6e-256x2 (two slices), tpu7x-8, h100x8, h200x64, cpu-8"
    )  # fmt: skip


def _same_kind(name: str) -> list[str]:
    """Names that begin as this one does, the nearest size first."""
    kind = next((kind for kind in (*TPUS, *GPUS, "cpu") if name.startswith(kind)), None)
    size = int((re.findall(r"[-x](\d+)", name) or ["8"])[0])
    same = [one for one in names() if kind is not None and one.startswith(kind)]
    return sorted(same, key=lambda one: abs(int(re.split(r"[-x]", one)[-1]) - size))


def names() -> list[str]:
    """Names of one slice, or of up to 128 nodes of GPUs, and some of CPUs."""
    tpus = [f"{kind}-{chips * counted}" for kind, (_, shapes, counted, _) in TPUS.items() for chips in shapes]
    gpus = [f"{kind}x{count}" for kind in GPUS for count in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)]
    return [*tpus, *gpus, *(f"cpu-{n}" for n in (1, 2, 4, 8, 16))]


def larger_topologies(smaller: Topology) -> list[Topology]:
    """Those of the same kind with more chips, by their number."""
    kind = re.match(r"[a-z]+\d*[a-z]*", smaller.name)
    same = [topology(name) for name in names() if kind is not None and name.startswith(kind[0])]
    return sorted((one for one in same if one.devices > smaller.devices), key=lambda one: one.devices)

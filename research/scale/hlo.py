"""What a compiled program sends between devices: its collectives, how often each is executed, and how much they bring.

Read from the text of the program after XLA's partitioner. A loop's body is counted as often as it turns: where the text does not say, from the
bound in its condition, its first value and its step.
"""

import dataclasses
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np

BYTES = {
    "pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8, "f8e4m3fn": 1,
    "f8e5m2": 1,
}  # fmt: skip
KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")
IOTA = r"\[([\d,]+)\](?:T\(([\d,]+)\))?"  # devices by sizes, and by the order of their dimensions
BETWEEN_SLICES = "_xla_megascale_transfer_type"
TRANSFERS = {name.upper().replace("-", "_"): name for name in KINDS}
FUSED = "all-reduce-scatter"  # what libtpu calls a computation whose all-reduce keeps only the device's own share
ARRAY = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\]")
INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One instruction: its kind, how often a step executes it, bytes that one execution leaves on a device, and `groups` of devices that take part
    together, (groups, devices of one); of a permute the pairs."""

    kind: str
    executed: int
    bytes: int
    groups: np.ndarray
    operation: str = ""

    @property
    def total(self) -> int:
        return self.executed * self.bytes


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation: what it makes, by which operation, and the rest of the line."""

    name: str
    shape: str
    opcode: str
    rest: str  # operands and attributes

    def attribute(self, name: str) -> str | None:
        """A computation that an attribute names."""
        found = re.search(rf"\b{name}=%?([\w.\-]+)", self.rest)
        return None if found is None else found[1]

    @property
    def operands(self) -> list[str]:
        return re.findall(r"%([\w.\-]+)", self.rest.partition("), ")[0])


Program = dict[str, list[Instruction]]


def collectives(text: str, node: np.ndarray) -> list[Collective]:
    """Every collective of a compiled program's text that a step executes at least once. `node`: which slice or node each device is on.

    libtpu compiles for one slice of several: its groups name the slice's devices, and what goes to other slices its runtime receives.
    """
    program, entry = parse(text)
    slices = (
        np.stack([np.flatnonzero(node == n) for n in np.unique(node)])
        if BETWEEN_SLICES in text
        else np.arange(len(node))[None]
    )
    turns, fused = executions(program, entry), _callers(program)
    found = []
    for name, body in program.items():
        if not turns[name]:
            continue
        for one in body:
            kind = one.opcode.removesuffix("-start")
            received = re.search(rf'{BETWEEN_SLICES}="(\w+)"', one.rest) if kind == "recv" else None
            if received is not None:
                kind = TRANSFERS.get(received[1], "collective-permute")
                found.append(Collective(kind, turns[name], array_bytes(one.shape.partition(", u32")[0]), slices.T))
            if kind not in KINDS or received is not None:
                continue
            size = _result_bytes(one)
            if FUSED in name and kind == "all-reduce":
                kind, size = "reduce-scatter", array_bytes(fused[name].shape) if name in fused else size
            operation = re.search(r'op_name="([^"]*)"', one.rest)
            found.append(
                Collective(
                    kind,
                    turns[name],
                    size,
                    slices[0][groups(one.rest, slices.shape[1])],
                    operation[1] if operation else "",
                )
            )
    return found


def parse(text: str) -> tuple[Program, str]:
    """(computations by name, the name of the entry)."""
    program: Program = {}
    entry, current = "", None
    for line in text.splitlines():
        head = re.match(r"^(ENTRY )?%?([\w.\-]+) .*\{\s*$", line) if not line.startswith((" ", "}", '"')) else None
        if head is not None:
            current = program.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif line.rstrip() == "}":
            current = None
        elif current is not None and (found := INSTRUCTION.match(line)):
            current.append(Instruction(*found.groups()))
    return program, entry


def executions(program: Program, entry: str) -> dict[str, int]:
    """How often a step executes each computation."""
    turns: dict[str, int] = defaultdict(int)

    def visit(name: str, times: int) -> None:
        turns[name] += times
        for one in program.get(name, ()):
            for called, more in _called(program, name, one):
                visit(called, times * more)

    visit(entry, 1)
    return turns


def _called(program: Program, caller: str, one: Instruction) -> Iterator[tuple[str, int]]:
    if one.opcode == "while":
        body, condition = one.attribute("body"), one.attribute("condition")
        if body is not None:
            yield body, trips(program, caller, one, body, condition or "")
        return
    if one.opcode in ("async-update", "async-done"):
        return
    for name in ("calls", "to_apply", "true_computation", "false_computation"):
        called = one.attribute(name)
        if called is not None:
            yield called, 1
    branches = re.search(r"branch_computations=\{([^}]*)\}", one.rest)
    for called in branches[1].split(",") if branches else ():
        yield called.strip().lstrip("%"), 1


def trips(program: Program, caller: str, loop: Instruction, body: str, condition: str) -> int:
    """How often a loop turns: as the compiler says, or (bound - first) / step of what its condition compares."""
    known = re.search(r"known_trip_count[^\d]*(\d+)", loop.rest)
    if known:
        return int(known[1])
    there = {one.name: one for one in program.get(condition, ())}
    compare = next((one for one in reversed(program.get(condition, ())) if one.opcode == "compare"), None)
    if compare is None:
        return 1
    sides = [there.get(name) for name in compare.operands]
    bound = next((_constant(one) for one in sides if one is not None and _constant(one) is not None), None)
    index = next((found for one in sides if one is not None and (found := _index(one)) is not None), None)
    if bound is None:
        return 1
    if index is None:
        return max(1, bound)
    first = _operand_constant(program.get(caller, ()), loop, index)
    return max(1, -(-(bound - first) // _step(program.get(body, ()), index)))


def _constant(one: Instruction) -> int | None:
    found = re.match(r"(-?\d+)\)", one.rest) if one.opcode == "constant" else None
    return None if found is None else int(found[1])


def _index(one: Instruction) -> int | None:
    """Which entry of the loop's tuple an instruction reads."""
    found = re.search(r"\bindex=(\d+)", one.rest) if one.opcode == "get-tuple-element" else None
    return None if found is None else int(found[1])


def _operand_constant(body: Sequence[Instruction], loop: Instruction, index: int) -> int:
    """The first value of an entry of a loop's tuple, 0 where it is not written there."""
    there = {one.name: one for one in body}
    made = there.get(loop.operands[0]) if loop.operands else None
    if made is None or made.opcode != "tuple" or index >= len(made.operands):
        return 0
    value = there.get(made.operands[index])
    return (_constant(value) or 0) if value is not None else 0


def _step(body: Sequence[Instruction], index: int) -> int:
    """By how much a turn raises an entry of the tuple, 1 where it is not written there."""
    there = {one.name: one for one in body}
    root = next((one for one in reversed(body) if one.opcode == "tuple"), None)
    if root is None or index >= len(root.operands):
        return 1
    add = there.get(root.operands[index])
    if add is None or add.opcode != "add":
        return 1
    steps = [value for name in add.operands if name in there and (value := _constant(there[name])) is not None]
    return max(1, steps[0]) if steps else 1


def _callers(program: Program) -> dict[str, Instruction]:
    """Fusions by the computation that they call."""
    return {
        called: one
        for body in program.values()
        for one in body
        if one.opcode == "fusion" and (called := one.attribute("calls"))
    }


def array_bytes(shape: str) -> int:
    """Bytes of all arrays in a shape."""
    return sum(_bytes(*found) for found in ARRAY.findall(shape))


def _bytes(dtype: str, dims: str) -> int:
    return BYTES.get(dtype, 0) * math.prod(int(d) for d in dims.split(",") if d)


def _result_bytes(one: Instruction) -> int:
    """Bytes that an instruction leaves on a device. One that starts a gather or a permute names its operands first, its own counters last."""
    if not one.opcode.endswith("-start") or one.opcode == "all-reduce-start" or not one.shape.startswith("("):
        return array_bytes(one.shape)
    inner = one.shape[1:]
    if inner.startswith("("):  # (operands), (results)
        return array_bytes(inner.partition("), ")[2].partition(")")[0])
    return max(_bytes(*found) for found in ARRAY.findall(one.shape))


def groups(rest: str, devices: int) -> np.ndarray:
    """The groups of devices of a collective: (groups, devices of one). All devices where none are named."""
    if found := re.search(r"source_target_pairs=\{(.*?)\}\}", rest):
        return np.array([[int(n) for n in pair.split(",")] for pair in re.findall(r"\{(\d+,\d+)", found[1] + "}")])
    if found := re.search(r"replica_groups=\{\{(.*?)\}\}", rest):
        return np.array([[int(n) for n in group.split(",")] for group in found[1].split("},{")])
    if found := re.search(rf"replica_groups=\[(\d+),(\d+)\]<={IOTA}", rest):
        return _iota(found[3], found[4]).reshape(int(found[1]), int(found[2]))
    if found := re.search(rf"replica_groups=mesh\[([^\]]*)\](?:,? device_ids=\({IOTA}\))?\s*\{{([^}}]*)\}}", rest):
        sizes = {name: int(n) for name, n in re.findall(r"'(\w+)'=(\d+)", found[1])}
        axes, along = list(sizes), [name for name in sizes if f"'{name}'" in found[4]]
        ids = _iota(found[2] or str(math.prod(sizes.values())), found[3]).reshape(list(sizes.values()))
        kept = [axes.index(name) for name in axes if name not in along]
        return ids.transpose([*kept, *(axes.index(name) for name in along)]).reshape(
            -1, math.prod(sizes[name] for name in along)
        )
    return np.arange(devices)[None]


def _iota(dims: str, order: str | None) -> np.ndarray:
    """The devices in order, (dims), their dimensions turned around."""
    sizes = [int(n) for n in dims.split(",")]
    ids = np.arange(math.prod(sizes)).reshape(sizes)
    return ids.transpose([int(n) for n in order.split(",")]) if order else ids

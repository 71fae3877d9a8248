"""What `research families` prints: every family with its presets, their exact sizes, and what sets it apart."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from research.core import config as C
from research.core.errors import UserError
from research.families import FAMILIES

PROG = "research families [NAME]"


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Lists the families of models, or one of them; `research inspect PRESET` shows a preset's config and parameters."""

    json: bool = False  # the last line is one JSON object
    debug: bool = False  # tracebacks instead of one-line errors


def main(argv: Sequence[str]) -> int:
    """`research families [NAME] [--json]`."""
    named = [] if not argv or argv[0].startswith("-") else [argv[0]]
    arguments = C.parse(Arguments(), argv[len(named) :], PROG, Arguments.__doc__ or "")
    if named and named[0] not in FAMILIES:
        raise UserError(f"there is no family {named[0]!r}; there are {', '.join(FAMILIES)}")
    found = describe(*(named or FAMILIES))
    print("\n".join(lines(found)))
    if arguments.json:
        print(json.dumps({"families": found}))
    return 0


def describe(*names: str) -> list[dict[str, Any]]:
    """Families as JSON values: name, title, features, the `model_type`s they load and save, and the parameters of every preset."""
    chosen = [FAMILIES[name] for name in names]
    return [
        {"name": one.name, "title": one.title, "features": one.features, "model_types": one.model_types, "presets": dict(one.parameters)}
        for one in chosen
    ]  # fmt: skip


def lines(found: list[dict[str, Any]]) -> list[str]:
    """The table for a person: a line a family, then a line a preset."""
    out = []
    for one in found:
        formats = f"config.json: {', '.join(one['model_types'])}" if one["model_types"] else "no published format"
        out.append(f"{one['name']:<12}  {one['title']}: {one['features']} ({formats})")
        out += [f"    {name:<20}  {count:>17,}" for name, count in one["presets"].items()]
    return out

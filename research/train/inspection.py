"""What `research inspect MODEL` prints: config and parameter tree of a run, a folder in Hugging Face's layout, a hub id or a preset; of a run also
its checkpoints and result. Weights are read for `--hash` alone."""

import dataclasses
import difflib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from research import families, hf
from research.core import config as C
from research.core import params as P
from research.core.errors import UserError
from research.model import transformer
from research.model.config import ModelConfig
from research.train import rundir
from research.train.checkpoint import steps_in
from research.train.run import Run, load_run

PROG = "research inspect MODEL"


@dataclasses.dataclass(frozen=True)
class Arguments:
    """MODEL is a run directory, a folder in Hugging Face's layout, a hub id (its config alone is fetched), or a preset of `research families`."""

    hash: bool = False  # the last line is the SHA-256 over all parameters (of a run: of the latest checkpoint)
    json: bool = False  # the last line is one JSON object
    debug: bool = False  # tracebacks instead of one-line errors


def main(argv: Sequence[str]) -> int:
    """`research inspect MODEL [--hash] [--json]`."""
    if argv and argv[0] in ("-h", "--help"):
        C.parse(Arguments(), argv, PROG, Arguments.__doc__ or "")
    if not argv or argv[0].startswith("-"):
        raise UserError(f"usage: {PROG} [--hash] [--json]")
    arguments = C.parse(Arguments(), argv[1:], PROG)
    name, path = argv[0], Path(argv[0]).expanduser()
    if rundir.holds_run(path):
        run = load_run(path)
        found, head = describe_run(run), _run_lines
        if arguments.hash:
            found["step"], found["hash"] = run.trained[0], P.digest(run.trained[1])
    else:
        found, head = describe_model(name, path, arguments.hash), _model_lines
    print("\n".join([*head(found), *_table(found)]))
    if arguments.json:
        print(json.dumps(found))
    if arguments.hash:
        print(found["hash"])
    return 0


def describe_run(run: Run) -> dict[str, Any]:
    """The facts of a run as JSON values. Reads no weights."""
    evals = [record for record in run.metrics if record.get("split") == "eval"]
    return {
        "run_dir": str(run.path), "config": C.to_dict(run.config), **leaves(run.model),
        "checkpoints": steps_in(run.checkpoints), "last_eval": evals[-1] if evals else None,
    }  # fmt: skip


def describe_model(name: str, path: Path, hashed: bool = False) -> dict[str, Any]:
    """The facts of a preset, a folder or a model of the hub as JSON values. Reads no weights unless they are to be hashed."""
    if not path.exists() and name in families.PRESETS:
        if hashed:
            raise UserError(f"{name} is a preset and has no weights to hash; give a run or a folder")
        config = families.preset(name)
        return {"model": name, "family": config.family, "config": C.to_dict(config), **leaves(config)}
    if not path.exists() and not hashed:
        config = _from_hub(name)
        return {"model": name, "family": config.family, "config": C.to_dict(config), **leaves(config)}
    source = hf.open_source(name)
    out = {"model": name, "family": source.family.name, "config": C.to_dict(source.config)}
    out |= leaves(source.config, source.dtypes())
    return {**out, "hash": P.digest(hf.read(source))} if hashed else out


def _from_hub(name: str) -> ModelConfig:
    try:
        return hf.read_config(name)
    except UserError as error:
        near = difflib.get_close_matches(name, families.PRESETS, 1, 0.6)
        raise UserError(f"{error}{f'; the nearest preset is {near[0]}' if near else ''}") from None


def leaves(config: ModelConfig, dtypes: dict[str, np.dtype] | None = None) -> dict[str, Any]:
    """`params`, the exact number, and `leaves`: shape, axes, dtype (float32 where none is given), count and bytes of each by its path."""
    flat = P.flatten(transformer.specs(config))
    kinds = {path: np.dtype(np.float32) if dtypes is None else dtypes[path] for path in flat}
    described = {
        path: {"shape": p.shape, "axes": p.axes, "dtype": kinds[path].name, "count": p.size, "bytes": kinds[path].itemsize * p.size}
        for path, p in flat.items()
    }  # fmt: skip
    return {"params": sum(p.size for p in flat.values()), "leaves": described}


def _run_lines(found: dict[str, Any]) -> list[str]:
    out = [f"run         {found['run_dir']}", f"checkpoints {', '.join(map(str, found['checkpoints'])) or 'none'}"]
    if found["last_eval"]:
        loss = found["last_eval"].get("loss")
        shown = f"{loss:.4f}" if isinstance(loss, (int, float)) else "not finite"
        out.append(f"held out    loss {shown} at step {found['last_eval']['step']}")
    return out


def _model_lines(found: dict[str, Any]) -> list[str]:
    family = families.FAMILIES[found["family"]]
    return [f"model       {found['model']}", f"family      {family.title}: {family.features}"]


def _table(found: dict[str, Any]) -> list[str]:
    """The config, then the parameter tree, for a person."""
    out = ["", "config", *(f"  {name} = {value}" for name, value in C.flat(found["config"]).items())]
    width = max(len(path) for path in found["leaves"])
    out += ["", f"{'parameter':<{width}}  {'shape':<20}  {'axes':<32}  {'dtype':<9}  {'count':>15}  {'bytes':>15}"]
    for path, leaf in found["leaves"].items():
        shape, axes = "x".join(map(str, leaf["shape"])), ", ".join(map(str, leaf["axes"]))
        out.append(
            f"{path:<{width}}  {shape:<20}  {axes:<32}  {leaf['dtype']:<9}  {leaf['count']:>15,}  {leaf['bytes']:>15,}"
        )
    size, kinds = (
        sum(leaf["bytes"] for leaf in found["leaves"].values()),
        {leaf["dtype"] for leaf in found["leaves"].values()},
    )
    return [*out, f"{found['params']:,} parameters in {', '.join(sorted(kinds))}, {size:,} bytes", ""]

"""What `research inspect RUN` prints: config, parameter tree, checkpoints, result; with `--hash`, what the weights are bit for bit."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from research.core import config as C
from research.core import params as P
from research.core.errors import UserError
from research.model import transformer
from research.train.checkpoint import steps_in
from research.train.run import Run, load_run


@dataclasses.dataclass(frozen=True)
class Arguments:
    """How to inspect."""

    hash: bool = False  # the last line is the SHA-256 over all parameters of the latest checkpoint
    json: bool = False  # the last line is one JSON object
    debug: bool = False  # tracebacks instead of one-line errors


def main(argv: Sequence[str]) -> int:
    """`research inspect RUN [--hash] [--json]`."""
    if argv and argv[0] in ("-h", "--help"):
        C.parse(Arguments(), argv, "research inspect RUN")
    if not argv or argv[0].startswith("-"):
        raise UserError("usage: research inspect RUN [--hash] [--json]")
    arguments = C.parse(Arguments(), argv[1:], "research inspect RUN")
    run = load_run(argv[0])
    found = describe(run)
    if arguments.hash:
        found["step"], found["hash"] = run.trained[0], P.digest(run.trained[1])
    print("\n".join(lines(run, found)))
    if arguments.json:
        print(json.dumps(found))
    if arguments.hash:
        print(found["hash"])
    return 0


def describe(run: Run) -> dict[str, Any]:
    """The facts of a run as JSON values. Reads no weights."""
    flat = P.flatten(transformer.specs(run.model))
    evals = [record for record in run.metrics if record.get("split") == "eval"]
    return {
        "run_dir": str(run.path), "config": C.to_dict(run.config), "params": sum(p.size for p in flat.values()),
        "leaves": {path: {"shape": p.shape, "axes": p.axes, "count": p.size, "bytes": 4 * p.size} for path, p in flat.items()},
        "checkpoints": steps_in(run.checkpoints), "last_eval": evals[-1] if evals else None,
    }  # fmt: skip


def lines(run: Run, found: dict[str, Any]) -> list[str]:
    """`describe`'s facts for a person."""
    out = [f"run         {found['run_dir']}", f"checkpoints {', '.join(map(str, found['checkpoints'])) or 'none'}"]
    if found["last_eval"]:
        loss = found["last_eval"].get("loss")
        shown = f"{loss:.4f}" if isinstance(loss, (int, float)) else "not finite"
        out.append(f"held out    loss {shown} at step {found['last_eval']['step']}")
    out += ["", "config"]
    out += [f"  {name} = {value}" for name, value in C.flat(found["config"]).items()]
    width = max(len(path) for path in found["leaves"])
    out += ["", f"{'parameter':<{width}}  {'shape':<20}  {'axes':<32}  {'count':>12}  {'bytes':>13}"]
    for path, leaf in found["leaves"].items():
        axes = ", ".join(str(a) for a in leaf["axes"])
        out.append(
            f"{path:<{width}}  {'x'.join(map(str, leaf['shape'])):<20}  {axes:<32}  {leaf['count']:>12,}  {leaf['bytes']:>13,}"
        )
    return [*out, f"{found['params']:,} parameters in float32", ""]

"""`research convert SRC DST`: a run directory as a folder in Hugging Face's layout, or the reverse, or either once more in another dtype."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import jax

from research import hf
from research.core import config as C
from research.core import params as P
from research.core.errors import UserError
from research.data.files import check_new, new_folder
from research.train import rundir, start
from research.train.checkpoint import Checkpointer, Keep
from research.train.config import Config
from research.train.run import Run

USAGE = "usage: research convert SRC DST [--to hf|run] [--dtype NAME]"
PROG = "research convert SRC DST"


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What to make of SRC: a run directory, a folder in Hugging Face's layout, or a hub id. DST must not exist, or be empty."""

    to: Literal["auto", "hf", "run"] = "auto"  # auto: the layout that SRC does not have
    dtype: Literal["auto", "float32", "bfloat16", "float16", "float64"] = "auto"  # auto: as stored; a run is float32
    json: bool = False  # the last line is one JSON object
    debug: bool = False  # tracebacks instead of one-line errors


def main(argv: Sequence[str]) -> int:
    """`research convert SRC DST [--to hf|run] [--dtype NAME] [--json]`."""
    if {"-h", "--help"} & set(argv):
        C.parse(Arguments(), ["--help"], PROG, (__doc__ or "").replace("`", ""))
    if len(argv) < 2 or argv[0].startswith("-") or argv[1].startswith("-"):
        raise UserError(USAGE)
    arguments = C.parse(Arguments(), argv[2:], PROG)
    found = convert(argv[0], argv[1], arguments.to, None if arguments.dtype == "auto" else arguments.dtype)
    print(f"{found['to']}: {found['params']:,} parameters in {found['path']}")
    if arguments.json:
        print(json.dumps(found))
    return 0


def convert(source: str, target: str | Path, to: str = "auto", dtype: str | None = None) -> dict:
    """Writes the model of `source` to the folder `target` and says what it wrote. A run's optimiser state is left behind.

    Raises UserError for what is no model, a target that is there, a dtype other than float32 for a run, and as `hf.save` does.
    """
    opened, target = start.open_source(source), Path(target).expanduser()
    check_new(target)
    if Path(source).expanduser().resolve() in target.resolve().parents:
        raise UserError(f"{target} lies in {source} itself; give a folder beside it")
    to = to if to != "auto" else "hf" if isinstance(opened, Run) else "run"
    if to == "run" and dtype not in (None, "float32"):
        raise UserError(f"dtype is {dtype!r}; a run directory holds float32, the precision in which it is trained")
    if isinstance(opened, Run):
        params, config, tokenizer = opened.params, opened.model, opened.tokenizer
    else:
        params, config = hf.read(opened, "float32" if to == "run" else dtype), opened.config
        tokenizer = hf.tokenizer_of(opened.folder)
    if to == "hf":
        hf.save(params, config, tokenizer, target, dtype=dtype)
    else:
        if tokenizer is None:
            raise UserError(f"{source} holds no tokeniser, and a run directory needs one; put its tokenizer.json there")
        with new_folder(target) as fresh:
            _write_run(fresh, source, params, Config(model=config, tokenizer="tokenizer.json"), tokenizer)
    return {"source": source, "path": str(target), "to": to, "params": sum(x.size for x in jax.tree.leaves(params))}


def _write_run(folder: Path, source: str, params: P.Tree, config: Config, tokenizer) -> None:
    """A run directory whose only checkpoint, that of step 0, holds these parameters and no optimiser."""
    with rundir.RunDir.open(folder, C.to_dict(config), {"converted_from": source}):
        tokenizer.save(folder / "tokenizer.json")
        with Checkpointer(folder / "checkpoints", Keep(last=1)) as saver:
            saver.save(0, {"params": params}, {})

"""What GPT-2, or any other model, makes of a prompt.

    python experiments/gpt2_generate.py [MODEL] [--prompt TEXT] [--max-tokens 50] [--temperature 0.8] [--top-k 40] ...

MODEL is a folder in Hugging Face's layout, an id of the hub, or a run directory. Without one: GPT-2 from the hub; without a network, the newest
run directory in runs/. The same in Python:

    from research import hf, sample
    model = hf.load("path/to/gpt2")
    print(sample.generate(model, "你好，这是一个AI大模型生成的文本。", max_tokens=50))
"""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated, Any

import tyro

from research import sample
from research.core import config
from research.core.errors import UserError
from research.train.command import guarded
from research.train.run import load_run, open_model

GPT2 = "openai-community/gpt2"
GET_IT = f"no GPT-2 here: on a machine with a network, `hf download {GPT2} --local-dir gpt2`, then give the folder gpt2 as MODEL"


@dataclasses.dataclass(frozen=True)
class Arguments:
    """The prompt, and how to draw what follows it."""

    prompt: str = "你好，这是一个AI大模型生成的文本。"
    sampling: Annotated[sample.Sampling, tyro.conf.arg(name="")] = sample.Sampling(max_tokens=50)
    debug: bool = False  # tracebacks instead of one-line errors

    flattened = ("sampling",)


def gpt2_or_newest_run(runs: Path = Path("runs")) -> Any:
    """GPT-2 from the hub or its cache; where it cannot be had, the newest run. Raises UserError where there is none either."""
    try:
        return open_model(GPT2)
    except UserError:
        print(GET_IT, file=sys.stderr)
    found = sorted(runs.glob("*/checkpoints/"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise UserError(f"and no run in {runs}/ to use instead; `python experiments/quickstart.py` makes one")
    print(f"using the newest run, {found[-1].parent}", file=sys.stderr)
    return load_run(found[-1].parent)


def main(argv: list[str]) -> int:
    """Prints the prompt and every continuation."""
    name = argv.pop(0) if argv and not argv[0].startswith("-") else None
    arguments = config.parse(Arguments(), argv, "gpt2_generate.py [MODEL]", __doc__ or "")
    model = gpt2_or_newest_run() if name is None else open_model(name)
    for one in sample.continuations(model, [arguments.prompt], arguments.sampling):
        print(one.prompt + one.text)
    return 0


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(sys.argv[1:]), "--debug" in sys.argv))

"""What `research sample MODEL` does: options, standard output, the JSON line.

Standard output is the prompt and its continuation verbatim, as they come, and nothing else (on a terminal, a line end
after them). Several samples follow one another, each after a line `=== prompt 1 of 2, sample 3 of 5 ===` and with a
line end after it. `--json` adds its line at the very end. All else goes to standard error.
"""

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import tyro

from research.core import config as C
from research.core.errors import UserError
from research.data.encoding import to_utf8
from research.sample.engine import Generation, continuations
from research.sample.models import Loaded, opened
from research.sample.options import Sampling

PROG = "research sample"
KINDS = "a run directory, a folder in Hugging Face's layout, or an id of its hub"
USAGE = f"{PROG} MODEL [--prompt TEXT ...] [options]: MODEL is {KINDS}; {PROG} --help lists the options"
DESCRIPTION = (
    f"Continues prompts with a model: {PROG} MODEL --prompt TEXT. Write --prompt=TEXT where TEXT begins with --."
)

Load = Callable[[str], Any]  # to what `continuations` takes for a model


@tyro.conf.configure(tyro.conf.UseAppendAction)
@dataclasses.dataclass(frozen=True)
class Arguments:
    """The command line: how to draw, from which prompts, and how to report."""

    prompt: tuple[str, ...] = ()  # any number of them; - reads standard input; none: the start of a document
    draft: str | None = None  # a smaller model, named as MODEL is, that proposes tokens for speculative decoding
    sampling: Annotated[Sampling, tyro.conf.arg(name="")] = Sampling()
    json: bool = False  # the last line of standard output is one JSON object
    debug: bool = False  # tracebacks instead of one-line errors

    flattened = ("sampling",)

    def __post_init__(self):
        if self.prompt.count("-") > 1:
            raise UserError("--prompt - is given twice, but standard input can be read once")
        if self.draft is not None:
            self.sampling.check_draft()


def sample_command(load: Load, argv: Sequence[str]) -> int:
    """Runs `research sample` on its arguments, MODEL first, and returns the exit code 0.

    `load(MODEL)` gives what `continuations` takes for a model. Raises UserError for a bad option, prompt or model.
    """
    name, arguments = parse(argv)
    prompts = [_stdin() if text == "-" else text for text in arguments.prompt] or [None]
    print(f"loading {name}", file=sys.stderr)
    model = opened(load(name))
    if arguments.draft is not None:
        print(f"loading {arguments.draft}", file=sys.stderr)
    draft = None if arguments.draft is None else opened(load(arguments.draft))
    _run(model, draft, prompts, name, arguments)
    return 0


def parse(argv: Sequence[str]) -> tuple[str, Arguments]:
    """The model and the options. Raises UserError as `research.core.config.parse` does, and for a missing MODEL."""
    asks_help = bool({"-h", "--help"} & set(argv))
    if not asks_help and (not argv or argv[0].startswith("-")):
        raise UserError(f"the model is missing; {USAGE}")
    options = list(argv if asks_help and argv[0].startswith("-") else argv[1:])
    return argv[0], C.parse(Arguments(), _joined(options), PROG, DESCRIPTION)


TEXTS = ("--prompt", "--stop", "--regex")  # options whose value may begin with a dash


def _joined(options: list[str]) -> list[str]:
    """Texts such as `-x` tied to their option, so that they are not taken for options themselves."""
    out: list[str] = []
    for word in options:
        if out and out[-1] in TEXTS and word.startswith("-") and not word.startswith("--"):
            out[-1] += f"={word}"
        else:
            out.append(word)
    return out


def report(name: str, prompts: Sequence[str | None], results: Sequence[Generation]) -> dict[str, Any]:
    """What `--json` prints. `prompt` is the first one; every sample names its own. Times in seconds.

    `logprobs`, `alternatives` (lists of `[id, log-probability]`), `score`, and of speculative decoding `proposed`, `accepted`
    and for all samples together `acceptance_rate` are there where options ask for them.
    """
    fields = ("prompt", "text", "tokens", "prompt_tokens", "finish_reason")
    extra = ("logprobs", "alternatives", "score", "proposed", "accepted")
    rate = acceptance_rate(results)
    samples = [
        {name: getattr(one, name) for name in fields + extra if name in fields or getattr(one, name) is not None}
        for one in results
    ]
    return {
        "run": name,
        "prompt": prompts[0] or "",
        "samples": samples,
        "tokens": sum(len(one.tokens) for one in results),
        "seconds": max(one.seconds for one in results),
        "tokens_per_second": tokens_per_second(results),
        **({} if rate is None else {"acceptance_rate": rate}),
    }


def tokens_per_second(results: Sequence[Generation]) -> float:
    """Tokens of all samples over their time, without the first chunk, which may compile, unless it is the only one."""
    first, seconds = max(one.first_seconds for one in results), max(one.seconds for one in results)
    later = sum(len(one.tokens) - one.first_tokens for one in results)
    if later:
        return later / (seconds - first)
    return sum(len(one.tokens) for one in results) / seconds if seconds else 0.0


def acceptance_rate(results: Sequence[Generation]) -> float | None:
    """Of speculative decoding: accepted over proposed tokens of all samples, 0 where none was proposed. None without it."""
    if results[0].proposed is None:
        return None
    return sum(one.accepted or 0 for one in results) / max(sum(one.proposed or 0 for one in results), 1)


def _run(model: Loaded, draft: Loaded | None, prompts: Sequence[str | None], name: str, arguments: Arguments) -> None:
    sampling, alone = arguments.sampling, len(prompts) * arguments.sampling.num == 1
    print(f"drawing {len(prompts) * sampling.num} x {sampling.max_tokens} tokens", file=sys.stderr)
    on_text = _stream(prompts[0] or "") if alone else _progress()
    results = continuations(model, prompts, sampling, on_text, draft)
    if not alone:
        _write_all(results, len(prompts), sampling.num)
    elif not results[0].text:
        _write(prompts[0] or "")
    total, reasons = sum(len(one.tokens) for one in results), sorted({one.finish_reason for one in results})
    if alone and (arguments.json or sys.stdout.isatty()):
        _write("\n")
    rate = acceptance_rate(results)
    accepted = "" if rate is None else f"{rate:.0%} of the proposed accepted, "
    speed = f"{tokens_per_second(results):.0f} tokens/s"
    print(f"{total} tokens, {speed}, {accepted}ended by: {', '.join(reasons)}", file=sys.stderr)
    if arguments.json:
        _write(json.dumps(report(name, prompts, results)) + "\n")


def _stream(prompt: str) -> Callable[[int, str], None]:
    """Writes the prompt with the first text of its continuation: not before it is known to be a good one."""
    before = [prompt]

    def on_text(_: int, text: str) -> None:
        _write("".join(before) + text)
        before.clear()

    return on_text


def _write_all(results: Sequence[Generation], prompts: int, num: int) -> None:
    for i, one in enumerate(results):
        which = f"prompt {i // num + 1} of {prompts}, sample {i % num + 1} of {num}"
        _write(f"=== {which} ===\n{one.prompt}{one.text}\n")


def _progress() -> Callable[[int, str], None]:
    """Counts the characters of all samples on standard error, at most once a second."""
    state = {"characters": 0, "said": time.perf_counter()}

    def on_text(_: int, text: str) -> None:
        state["characters"] += len(text)
        if time.perf_counter() - state["said"] >= 1:
            print(f"{state['characters']} characters", file=sys.stderr)
            state["said"] = time.perf_counter()

    return on_text


def _stdin() -> str:
    """Standard input, all of it, as it is. Raises UserError where it is not UTF-8."""
    data = sys.stdin.buffer.read()
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"standard input is not UTF-8 at byte {error.start}; give the prompt as UTF-8 text") from error


def _write(text: str) -> None:
    """Text to standard output as UTF-8, whatever the locale and the platform's line ends, at once."""
    sys.stdout.flush()
    sys.stdout.buffer.write(to_utf8(text))
    sys.stdout.buffer.flush()

"""`research bench sample`: tokens/s of greedy decoding beside transformers' `generate`, and the share of the memory bandwidth that it uses.

Every side has a process of its own, and all are timed in turn, a round each, over and over; the median round counts. A round is whole
generations. What the prompts take, measured with a single token, is taken off, so the figures are those of decoding. The bandwidth is that of
matrix-vector products with the model's own matrices on the same machine, timed in the same rounds.
"""

import contextlib
import dataclasses
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from research.bench.process import Reply, Side, failed, started
from research.bench.rows import BUSY, SPREAD, aligned, expect
from research.bench.train import others_use, our_environment, say, threads
from research.core import config as C
from research.core.config import require
from research.families import gpt2

FOLDER = Path(__file__).parent
CACHES = {"both": ("default", "static"), "default": ("default",), "static": ("static",), "none": ()}
ON_CPU, ON_ACCELERATOR = "gpt2", "gpt2-xl"
LEAST_SECONDS = 1.0  # of a round
BATCHES_ON_CPU, BATCHES_ON_ACCELERATOR = (1, 16), (1,)


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What to measure."""

    # one of GPT-2's sizes; None: gpt2 (124M) on a CPU, gpt2-xl (1.5B, bfloat16) on an accelerator
    preset: str | None = None
    batch: tuple[int, ...] = ()  # rows; none given: 1 and 16 on a CPU, 1 on an accelerator
    prompt: int = 128  # tokens of every prompt
    new: int = 128  # tokens that are generated
    rounds: int = 5  # the median counts
    peer: Literal["both", "default", "static", "none"] = "both"  # the cache that transformers uses
    peer_python: str | None = None  # the interpreter that has torch and transformers; None: this one
    json: bool = False  # the last line is one JSON object
    debug: bool = False  # tracebacks instead of one-line errors

    def __post_init__(self):
        presets = gpt2.FAMILY.presets
        require(self.preset is None or self.preset in presets, "preset", self.preset, f"one of {', '.join(presets)}")
        require(all(n >= 1 for n in self.batch), "batch", self.batch, "whole numbers of at least 1")
        require(self.prompt >= 1, "prompt", self.prompt, "a whole number of at least 1")
        require(self.new >= 2, "new", self.new, "a whole number of at least 2: the first token is the prompt's")
        require(
            self.prompt + self.new <= 1025, "new", self.new, f"at most {1025 - self.prompt} after {self.prompt} tokens"
        )
        require(self.rounds >= 1, "rounds", self.rounds, "a whole number of at least 1")


def main(argv: Sequence[str]) -> int:
    """`research bench sample [options]`: prints a table, and with `--json` one JSON object on the last line."""
    arguments: Arguments = C.parse(Arguments(), argv, "research bench sample", main.__doc__ or "")
    busy = others_use()
    result = measure(arguments, *sides(arguments))
    result["busy_at_start"], result["warnings"] = busy, doubts(result["rows"], busy)
    print("\n".join([*lines(result), *result["warnings"]]))
    if arguments.json:
        print(json.dumps(result), flush=True)
    return 0


def sides(arguments: Arguments) -> tuple[Side, Side, list[Side]]:
    """Our side, the bandwidth, and the peers that are asked for."""
    import sys

    def own(name: str, script: str) -> Side:
        return Side(name, sys.executable, FOLDER / script, environment=our_environment())

    python = arguments.peer_python or sys.executable
    peers = [
        Side(f"transformers generate, {cache} cache", python, FOLDER / "sample_peer.py", {"cache": cache})
        for cache in CACHES[arguments.peer]
    ]
    return own("ours", "sample_ours.py"), own("bandwidth", "bandwidth.py"), peers


def measure(arguments: Arguments, ours: Side, bandwidth: Side, peers: Sequence[Side]) -> dict[str, Any]:
    """The result as JSON values: `rows` and what they were measured on. Raises UserError as `rows.expect` does."""
    about = expect(_about(ours), ours, None)
    on_cpu = about["platform"] == "cpu"
    known = _about(peers[0]) if peers else {}
    note = None if peers else "no peer was asked for"
    if failed(known):
        note = f"no peer: {known['text']} in {peers[0].python}; --peer-python names another interpreter"
    name = arguments.preset or (ON_CPU if on_cpu else ON_ACCELERATOR)
    layers, width, heads, _ = gpt2.SIZES[name]
    request = {
        "layers": layers, "width": width, "heads": heads, "vocabulary": gpt2.FAMILY.presets[name].V, "prompt": arguments.prompt,
        "new": arguments.new, "threads": threads(), "device": about["device"],
    }  # fmt: skip
    rows = []
    for batch in arguments.batch or (BATCHES_ON_CPU if on_cpu else BATCHES_ON_ACCELERATOR):
        contenders = [ours, bandwidth, *([] if note else peers)]
        found = (_in_turn if on_cpu else _one_by_one)(contenders, {**request, "batch": batch}, arguments.rounds)
        rows += rows_of({**request, "batch": batch, "preset": name}, contenders, found, note)
    return {
        "rows": rows, "device": about["kind"], "platform": about["platform"], "dtype": about["dtype"], "threads": request["threads"],
        "rounds": arguments.rounds, "versions": {**about["versions"], **known.get("versions", {})},
    }  # fmt: skip


def _about(side: Side) -> Reply:
    with started(side) as ask:
        return ask("about")


@dataclasses.dataclass
class Found:
    """A side's reply to its building, and the seconds of a step in each of its rounds."""

    built: Reply
    seconds: list[float] = dataclasses.field(default_factory=list)


def _in_turn(contenders: Sequence[Side], request: dict[str, Any], rounds: int) -> list[Found]:
    """All sides stand by, and are timed one round each, in turn."""
    with contextlib.ExitStack() as stack:
        found, asks = [], []
        for side in contenders:
            asks.append(stack.enter_context(started(side)))
            found.append(Found(asks[-1]("build", **request)))
            built = found[-1].built
            said = (
                f"{built['error']}: {built['text']}"
                if failed(built)
                else f"{1000 * built['step_seconds']:.0f} ms a step"
            )
            say(f"batch {request['batch']}: {side.name}: {said}")
        for _ in range(rounds):
            for ask, one in zip(asks, found, strict=True):
                if not failed(one.built):
                    reply = ask("time", seconds=max(one.built["step_seconds"], LEAST_SECONDS))
                    if failed(reply):
                        one.built = reply
                    else:
                        one.seconds.append(reply["seconds"] / reply["steps"])
        return found


def _one_by_one(contenders: Sequence[Side], request: dict[str, Any], rounds: int) -> list[Found]:
    """The sides one after the other, each with the whole device: for accelerators, whose memory one process takes."""
    return [found for side in contenders for found in _in_turn([side], request, rounds)]


def rows_of(
    shape: dict[str, Any], contenders: Sequence[Side], found: Sequence[Found], note: str | None
) -> list[dict[str, Any]]:
    """One row for each peer, or one without, which says so in `note`. Raises RuntimeError when a peer is another model."""
    mine, reading, *others = found
    expect(mine.built, contenders[0], None)
    expect(reading.built, contenders[1], None)
    rates, bandwidths = _rates(mine, shape), [reading.built["bytes"] / seconds for seconds in reading.seconds]
    rate, bandwidth = statistics.median(rates), statistics.median(bandwidths)
    read = rate / shape["batch"] * mine.built["bytes_per_step"]
    common = {
        **{name: shape[name] for name in ("preset", "batch", "prompt", "new")}, "params": mine.built["params"], "ours_tokens_per_second": rate,
        "ours_rounds": rates, "ours_prompt_seconds": mine.built["prompt_seconds"], "compile_seconds": mine.built["compile_seconds"],
        "bytes_per_step": mine.built["bytes_per_step"], "bytes_per_second": read, "bandwidth": bandwidth, "bandwidth_rounds": bandwidths,
        "bandwidth_way": reading.built["way"], "bandwidth_fraction": read / bandwidth,
        "peer": None, "peer_tokens_per_second": None, "peer_rounds": None, "peer_prompt_seconds": None, "ratio": None, "note": note,
    }  # fmt: skip
    rows = []
    for side, other in zip(contenders[2:], others, strict=True):
        if failed(other.built):
            rows.append({**common, "peer": side.name, "note": f"{other.built['error']}: {other.built['text']}"})
            continue
        if other.built["params"] != mine.built["params"]:
            raise RuntimeError(f"{side.name} has {other.built['params']:,} parameters, ours {mine.built['params']:,}")
        theirs = _rates(other, shape)
        rows.append({
            **common, "peer": side.name, "peer_tokens_per_second": statistics.median(theirs), "peer_rounds": theirs,
            "peer_prompt_seconds": other.built["prompt_seconds"], "ratio": rate / statistics.median(theirs),
        })  # fmt: skip
    return rows or [common]


def _rates(found: Found, shape: dict[str, Any]) -> list[float]:
    """Tokens/s of decoding in every round: all tokens but the first, over the time without the prompts'."""
    tokens = shape["batch"] * (shape["new"] - 1)
    return [tokens / max(seconds - found.built["prompt_seconds"], 1e-9) for seconds in found.seconds]


def doubts(rows: Sequence[dict[str, Any]], busy: float) -> list[str]:
    """Why the figures may not be worth much, a line for each reason."""
    out = (
        [f"warning: {busy:.0%} of the processors were in use before the start; measure on an idle machine"]
        if busy > BUSY
        else []
    )
    for row in rows:
        for name, rates in (
            ("ours", row["ours_rounds"]),
            (row["peer"], row["peer_rounds"]),
            ("the bandwidth", row["bandwidth_rounds"]),
        ):
            if rates and max(rates) > SPREAD * min(rates):
                out.append(
                    f"warning: batch {row['batch']}: rounds of {name} differ by a factor of {max(rates) / min(rates):.2f}"
                )
    return list(dict.fromkeys(out))


def lines(result: dict[str, Any]) -> list[str]:
    """The result for a person."""
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items() if version)
    table: list[tuple[str, ...]] = [("model", "batch", "ours", "GB/s", "of bandwidth", "peer", "its", "ratio")]
    notes = []
    for row in result["rows"]:
        ours = (
            f"{row['ours_tokens_per_second']:,.1f}",
            f"{row['bytes_per_second'] / 1e9:.1f}",
            f"{row['bandwidth_fraction']:.2f}",
        )
        its = ("", "") if row["ratio"] is None else (f"{row['peer_tokens_per_second']:,.1f}", f"{row['ratio']:.2f}")
        table.append((row["preset"], str(row["batch"]), *ours, row["peer"] or "none", *its))
        if row["note"]:
            notes.append(f"{row['peer']} {row['note']}" if row["peer"] else row["note"])
    first = result["rows"][0]
    return [
        f"{result['device']}, {result['threads']} threads, {result['dtype']}; {versions}",
        f"tokens/s of greedy decoding after {first['prompt']} tokens, {first['new']} new ones; median of {result['rounds']} rounds",
        "", *aligned(table), *dict.fromkeys(notes),
    ]  # fmt: skip

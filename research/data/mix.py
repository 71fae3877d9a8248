"""`research data mix`: a mixture of sources described in a file of JSON, checked, with what each source gives to a run.

    {"sources": [{"data": "jsonl:web.jsonl", "weight": 3}, {"data": "text:books", "weight": 1}],
     "unit": "tokens",
     "stages": [[0, [3, 1]], [1000000, [1, 1]]]}

`unit` is what weights are shares of, and what stages begin at: records (each row of a batch is one) or tokens. `stages` may be left out; where
they are there, a source needs no weight, and weights that are given are those of the first stage.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from research.core.errors import UserError
from research.data import command_line, sources
from research.data.mixture import Schedule
from research.data.shares import exact_shares
from research.data.tables.spec import MEDIA, open_tables
from research.data.tables.splits import split
from research.data.tokens import PREPARED, Corpus, prepare

PROG = "research data mix FILE.json"
UNITS = ("records", "tokens")
_KEYS = {"sources": "a list of objects", "unit": "records or tokens", "stages": "a list of [first, [weights]]"}
_TEXT_KEYS = {"text_field": "text", "learn": "text", "clean": "text"}  # options of `tokens.prepare`
_SOURCE_KEYS = {"data": "text", "weight": "a number", **_TEXT_KEYS}
_BLOCK = 1 << 16


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Checks the mixture that FILE.json describes and prints for every source its share, how much there is of it to train on, and how often a run of
    so many steps goes over that. In tokens, every source is prepared for it."""

    steps: int | None = None  # of the run; None: shares alone
    batch_size: int = 16  # rows of a step
    context: int = 1024  # tokens of a row
    # byte, char, bpe:N, or a tokenizer.json or its folder; None: byte, or what a source was prepared with
    tokenizer: str | None = None
    json: bool = False  # the last line is one JSON object
    debug: bool = False  # tracebacks instead of one-line errors

    def __post_init__(self):
        for name in ("steps", "batch_size", "context"):
            value = getattr(self, name)
            if value is not None and not 1 <= value < 2**40:
                raise UserError(f"--{name.replace('_', '-')} is {value}; expected a whole number from 1 to below 2^40")


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Sources, each with what it says of its texts (`text_field`, `learn`, `clean`), and the stages (first record or token, weights) that `Schedule`
    takes."""

    data: tuple[str, ...]
    texts: tuple[dict[str, Any], ...]
    unit: str
    stages: tuple[tuple[int, tuple[Any, ...]], ...]


def main(argv: Sequence[str]) -> int:
    """`research data mix FILE.json [options]`."""
    file, arguments = command_line.parse(Arguments(), argv, PROG)
    found = described(read(Path(file).expanduser()), arguments)
    return command_line.show(lines(found), found, arguments.json)


def read(path: Path) -> Mixture:
    """Returns the mixture that a file describes. Raises UserError, naming the file and the field, for what is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    _check_keys(value, _KEYS, ("sources",), str(path))
    listed, unit = value["sources"], value.get("unit", UNITS[0])
    if not isinstance(listed, list) or not listed:
        raise UserError(
            f"{path}: sources is {listed!r}; expected a list of at least one {{'data': ..., 'weight': ...}}."
        )
    if unit not in UNITS:
        raise UserError(f"{path}: unit is {unit!r}; expected records or tokens.")
    for number, one in enumerate(listed):
        _check_keys(one, _SOURCE_KEYS, ("data",), f"{path}, source {number}")
        for name in ("data", *_TEXT_KEYS):
            if name in one and not isinstance(one[name], str):
                raise UserError(f"{path}, source {number}: {name} is {one[name]!r}; expected text.")
    mixture = Mixture(
        tuple(one["data"] for one in listed), tuple({name: one[name] for name in _TEXT_KEYS if name in one} for one in listed),
        unit, _stages(value, str(path)),
    )  # fmt: skip
    try:
        Schedule(mixture.stages)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return mixture


def _check_keys(value: Any, known: Mapping[str, str], needed: Sequence[str], where: str) -> None:
    expected = ", ".join(f"{name} ({kind})" for name, kind in known.items())
    if not isinstance(value, dict):
        raise UserError(f"{where} is {type(value).__name__}; expected an object with {expected}.")
    if unknown := [name for name in value if name not in known]:
        raise UserError(f"{where} has no field {unknown[0]!r}; expected {expected}.")
    if missing := [name for name in needed if name not in value]:
        raise UserError(f"{where} lacks the field {missing[0]!r}; expected {expected}.")


def _stages(value: Mapping[str, Any], where: str) -> tuple[tuple[int, tuple[Any, ...]], ...]:
    """The stages; without any, one of the sources' weights."""
    weights = [one.get("weight") for one in value["sources"]]
    stages = value.get("stages")
    if stages is None:
        if None in weights:
            raise UserError(f"{where}: source {weights.index(None)} has no weight; give one, or stages.")
        stages = [[0, weights]]
    elif not isinstance(stages, list) or not all(map(_is_stage, stages)):
        raise UserError(f"{where}: stages is {stages!r}; expected a list of [first, [weights]], as in [[0, [3, 1]], [5000, [1, 1]]].")  # fmt: skip
    elif stages and any(weight is not None for weight in weights) and weights != stages[0][1]:
        raise UserError(
            f"{where}: the sources' weights are {weights}, and stage 0 has {stages[0][1]}. Give one of them."
        )
    wrong = [weight for _, given in stages for weight in given if not isinstance(weight, (int, float, str)) or isinstance(weight, bool)]  # fmt: skip
    if wrong:
        raise UserError(f"{where}: the weight {wrong[0]!r} is no number.")
    return tuple((first, tuple(given)) for first, given in stages)


def _is_stage(stage: Any) -> bool:
    return isinstance(stage, list) and len(stage) == 2 and type(stage[0]) is int and isinstance(stage[1], list)


def described(mixture: Mixture, arguments: Arguments) -> dict[str, Any]:
    """Returns for every source its share of each stage, what there is of it to train on, what a run draws of it and how many epochs that is, as JSON
    values; the last two are None without steps. Records drawn are exact, tokens within the longest record. Raises UserError for a source that
    cannot be opened, has nothing to train on, or, in tokens, has another tokeniser than the others."""
    there = _records(mixture) if mixture.unit == "records" else _tokens(mixture, arguments.tokenizer)
    drawn: list[Any] = [None] * len(there)
    if arguments.steps is not None:
        rows = arguments.steps * arguments.batch_size
        drawn = records_drawn(mixture, rows) if mixture.unit == "records" else tokens_drawn(mixture, rows * arguments.context)  # fmt: skip
    described = [
        {
            "data": data, "shares": [float(Fraction(w, period)) for w, period in shares], mixture.unit: count, "drawn": taken,
            "epochs": None if taken is None else taken / count,
        }
        for data, shares, count, taken in zip(mixture.data, _shares(mixture), there, drawn, strict=True)
    ]  # fmt: skip
    return {"unit": mixture.unit, "stages": [first for first, _ in mixture.stages], "steps": arguments.steps, "sources": described}  # fmt: skip


def _shares(mixture: Mixture) -> list[list[tuple[int, int]]]:
    """For every source its share of each stage, (part, whole)."""
    exact = exact_shares(mixture.stages)
    stages = list(zip(exact.weights, exact.periods, strict=True))
    return [[(weights[source], period) for weights, period in stages] for source in range(exact.sources)]


def records_drawn(mixture: Mixture, records: int) -> list[int]:
    """Returns how many of the first `records` of a mixture come from each source."""
    schedule, drawn = Schedule(mixture.stages), [0] * len(mixture.data)
    missing, stop = set(range(len(drawn))), records
    while missing and stop:  # the last record of a source has as many before it as its index
        start = max(0, stop - _BLOCK)
        found, indices = schedule(np.arange(start, stop))
        for source in sorted(missing & set(np.unique(found).tolist())):
            drawn[source] = int(indices[found == source].max()) + 1
            missing.remove(source)
        stop = start
    return drawn


def tokens_drawn(mixture: Mixture, tokens: int) -> list[int]:
    """Returns each source's share of the first `tokens` of a mixture, rounded."""
    firsts = [first for first, _ in mixture.stages]
    sizes = [max(0, min(last, tokens) - first) for first, last in zip(firsts, [*firsts[1:], tokens], strict=True)]
    return [
        round(sum(size * Fraction(*share) for size, share in zip(sizes, shares, strict=True))) for shares in _shares(mixture)
    ]  # fmt: skip


def _records(mixture: Mixture) -> list[int]:
    counts = []
    for data, texts in zip(mixture.data, mixture.texts, strict=True):
        if data.startswith(PREPARED):
            count = len(prepare(data, None, **texts).train.begins)
        elif data.partition(":")[0] in MEDIA:
            count = len(split(open_tables(data))["train"])
        else:
            source = sources.resolve(data, texts.get("text_field"), texts.get("learn"))
            count = sum(row.begins and row.split == "train" for unit in source.units for row in source.rows(unit))
        if not count:
            raise UserError(f"{data} has no record to train on. Give more of it, or leave it out.")
        counts.append(count)
    return counts


def _tokens(mixture: Mixture, tokenizer: str | None) -> list[int]:
    corpora: list[Corpus] = []
    for data, texts in zip(mixture.data, mixture.texts, strict=True):
        if data.partition(":")[0] in MEDIA:
            raise UserError(f"{data} has no tokens. Mix images and sounds in records.")
        corpora.append(prepare(data, tokenizer, **texts))
        if corpora[-1].tokenizer_fingerprint != corpora[0].tokenizer_fingerprint:
            raise UserError(
                f"{data} has another tokeniser than {mixture.data[0]}, so their tokens cannot be mixed. Give all of them one that is "
                "not trained on each, such as the tokenizer.json of one of them, by --tokenizer."
            )
    return [len(corpus.train) for corpus in corpora]


def lines(found: dict[str, Any]) -> list[str]:
    """Returns what `described` found for a person."""
    unit, stages = found["unit"], found["stages"]
    shares = ["share"] if len(stages) == 1 else [f"share from {first:,}" for first in stages]
    head = ["source", *shares, unit, *(["drawn", "epochs"] if found["steps"] is not None else [])]
    rows = [
        [one["data"], *(f"{share:.2%}" for share in one["shares"]), one[unit], *([one["drawn"], one["epochs"]] if "drawn" in head else [])]
        for one in found["sources"]
    ]  # fmt: skip
    run = "" if found["steps"] is None else f", {found['steps']:,} steps"
    return [f"shares of {unit}{run}", "", *command_line.table(head, rows)]

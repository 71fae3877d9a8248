"""What a benchmark of training found: samples of tokens/s, the rows made of them, and how a person reads them."""

import dataclasses
import statistics
from collections.abc import Sequence
from typing import Any

from research.bench.process import Reply, Side, failed, tokens_per_second
from research.bench.shapes import Shape
from research.core.errors import UserError

OURS = "ours"
PEER_SETTINGS = ("attention", "adamw", "clipping")  # what the peer chose among PyTorch's implementations
PLANNED = ("planned_tokens_per_second", "planned_bytes")  # what research plan says of our side
BUSY, SPREAD = 0.15, 1.25  # from where on others on the machine, and rounds that differ, are worth a warning


@dataclasses.dataclass
class Sample:
    """What a side did at a shape: the reply to its building, and tokens/s of its rounds."""

    built: Reply
    rates: list[float] = dataclasses.field(default_factory=list)
    peak_bytes: int | None = None

    def add(self, reply: Reply, shape: Shape) -> None:
        if failed(reply):
            self.built = reply
        else:
            self.rates.append(tokens_per_second(reply, shape.tokens))
            self.peak_bytes = reply.get("peak_bytes")

    @property
    def median(self) -> float | None:
        return None if failed(self.built) else statistics.median(self.rates)


def expect(reply: Reply, side: Side, shape: Shape | None) -> Reply:
    """The reply, which our own side owes. Raises UserError where memory may have run out, RuntimeError for any other failure."""
    kind = failed(reply)
    if kind in ("out_of_memory", "died"):
        where = f" at {shape}" if shape else ""
        raise UserError(
            f"{side.name} cannot be measured{where} ({reply['text']}); where memory ran out, give --shapes a smaller batch"
        )
    if kind is not None:
        raise RuntimeError(
            f"{side.name} failed at {shape}: {reply['text']}" if shape else f"{side.name}: {reply['text']}"
        )
    return reply


def rows_of(
    shape: Shape, ours: Side, peers: Sequence[Side], samples: Sequence[Sample], note: str | None
) -> list[dict[str, Any]]:
    """One row for each peer, or one without, which says so in `note`. Raises RuntimeError when a peer is another model."""
    mine, *others = samples
    built = expect(mine.built, ours, shape)
    rate, of_peak = statistics.median(mine.rates), built["flops_per_token"] / built["peak_flops"]
    common = {
        "shape": str(shape), **dataclasses.asdict(shape), "params": built["params"], "ours_tokens_per_second": rate,
        "compile_seconds": built["compile_seconds"], "mfu": rate * of_peak, "peak": built["peak_source"], "ours_rounds": mine.rates,
        "peak_bytes": mine.peak_bytes, **{name: built.get(name) for name in PLANNED},
        **_peer_fields(None, None, rate, of_peak), "note": note,
    }  # fmt: skip
    rows = []
    for side, sample in zip(peers, others, strict=True):
        params = sample.built.get("params", built["params"])
        if params != built["params"]:
            raise RuntimeError(
                f"{side.name} has {params:,} parameters, ours {built['params']:,}; that is not the same model"
            )
        rows.append({**common, **_peer_fields(side, sample, rate, of_peak)})
    return rows or [common]


def _peer_fields(side: Side | None, sample: Sample | None, rate: float, of_peak: float) -> dict[str, Any]:
    """The part of a row that is the peer's: None throughout where there is none, but for name and reason where it failed."""
    name = side.name if side else None
    if sample is None or sample.median is None:
        note = f"{sample.built['error']}: {sample.built['text']}" if sample else None
        settings = compiled = rates = median = None
    else:
        note, median, rates, compiled = None, sample.median, sample.rates, sample.built["compile_seconds"]
        settings = {key: sample.built.get(key) for key in PEER_SETTINGS}
    return {
        "peer": name, "peer_tokens_per_second": median, "ratio": median and rate / median, "peer_mfu": median and median * of_peak,
        "peer_compile_seconds": compiled, "peer_rounds": rates, "peer_settings": settings, "note": note,
    }  # fmt: skip


def doubts(rows: Sequence[dict[str, Any]], busy: float) -> list[str]:
    """Why the figures may not be worth much, a line for each reason."""
    found = []
    if busy > BUSY:
        found.append(f"warning: {busy:.0%} of the processors were in use before the start; measure on an idle machine")
    for row in rows:
        for name, rates in ((OURS, row["ours_rounds"]), (row["peer"], row["peer_rounds"])):
            if rates and max(rates) > SPREAD * min(rates):
                between = f"between {min(rates):,.0f} and {max(rates):,.0f} tokens/s"
                found.append(f"warning: {row['shape']}: rounds of {name} lie {between}")
    return list(dict.fromkeys(found))


def lines(result: dict[str, Any]) -> list[str]:
    """The result for a person."""
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items() if version)
    peaks = sorted({row["peak"] for row in result["rows"]})
    table: list[tuple[str, ...]] = [("shape", "ours", "MFU", "compile", "peer", "its", "ratio")]
    notes: list[str] = []
    for row in result["rows"]:
        ours = (f"{row['ours_tokens_per_second']:,.0f}", f"{row['mfu']:.1%}", f"{row['compile_seconds']:.1f} s")
        its = ("", "") if row["ratio"] is None else (f"{row['peer_tokens_per_second']:,.0f}", f"{row['ratio']:.2f}")
        table.append((row["shape"], *ours, row["peer"] or "none", *its))
        notes += _beside_plan(row)
        if row["note"]:
            notes.append(f"{row['shape']}: {row['peer']} {row['note']}" if row["peer"] else row["note"])
    return [
        f"{result['device']}, {result['threads']} threads, {result['dtype']}; {versions}",
        f"tokens/s, median of {result['rounds']} rounds; MFU against the {', '.join(peaks)}",
        "", *aligned(table), *dict.fromkeys(notes),
    ]  # fmt: skip


def _beside_plan(row: dict[str, Any]) -> list[str]:
    """Our side's rate and memory beside what was planned, where anything was."""
    if row["planned_bytes"] is None:
        return []
    rate, planned, gib = row["ours_tokens_per_second"], row["planned_tokens_per_second"], 2**30
    taken = "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / gib:.2f} GiB in use at the peak, "
    return [
        f"{row['shape']}: {rate / planned:.2f} of the {planned:,.0f} tokens/s planned; {taken}{row['planned_bytes'] / gib:.2f} planned"
    ]


def aligned(table: Sequence[tuple[str, ...]]) -> list[str]:
    """Rows of text in columns; those of numbers to the right."""
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    right = [i > 0 and all(row[i][:1].isdigit() or not row[i] for row in table[1:]) for i in range(len(widths))]
    cells = [[c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True)] for row in table]
    return ["  ".join(row).rstrip() for row in cells]

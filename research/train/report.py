"""`report.html`: a run as one page. Curves, figures, exhibits, samples and config, in one file that refers to no other."""

import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from research.core import config as core_config
from research.data.files import write_atomically
from research.train import charts, rundir
from research.train.charts import Line
from research.train.console import duration
from research.train.exhibits import look, store
from research.train.markup import escaped

LARGEST = 1e100  # of what is drawn: NaN and infinity are not below it, and differences do not overflow
SMOOTH_FROM = 60  # points of the training loss from which it gets an average
SMALL = [  # split and key of the records, title, whether the axis may be logarithmic
    ("eval", "bits_per_byte", "Held-out bits per byte", False),
    ("eval", "accuracy", "Held-out accuracy", False),
    ("train", "learning_rate", "Learning rate", False),
    ("train", "grad_norm", "Gradient norm", True),
    ("train", "update_ratio", "Update ÷ weight", True),
    ("train", "tokens_per_second", "Tokens per second", False),
    ("train", "mfu", "Model FLOPs utilisation", False),
    ("train", "data_stall", "Share of the time that steps wait for data", False),
    ("train", "balance", "Load of the experts (even: the choices of a token)", False),
    ("train", "router_z", "Router z-loss", True),
]
FIGURES = {  # the result's fields that head the page, and how they are written
    "eval_loss": ("Held-out loss", lambda v: f"{v:.4f}"),
    "bits_per_byte": ("Bits per byte", lambda v: f"{v:.3f}"),
    "accuracy": ("Held-out accuracy", lambda v: f"{v:.2%}"),
    "train_loss": ("Training loss", lambda v: f"{v:.4f}"),
    "steps": ("Steps", lambda v: f"{v:,}"),
    "tokens": ("Tokens", lambda v: charts.label(float(f"{v:.3g}"))),
    "params": ("Parameters", lambda v: charts.label(float(f"{v:.3g}"))),
    "train_seconds": ("Training time", lambda v: duration(v)),
}


def write_report(path: str | Path) -> Path:
    """Writes `report.html` into a run directory, finished or not, and returns its path.

    Raises UserError when `path` is not a run directory or cannot be written.
    """
    path = Path(path)
    stored = rundir.read_config(path)
    metrics, samples, result = rundir.read_metrics(path), rundir.read_samples(path), rundir.read_result(path)
    page = render(path.absolute().name, stored, metrics, samples, result, store.sections(path))
    file = path / "report.html"
    write_atomically(file, page.encode())
    return file


def render(
    name: str,
    stored: dict,
    metrics: list[dict],
    samples: list[tuple[int, str]],
    result: dict | None,
    exhibits: Sequence[str] = (),
) -> str:
    """The page of a run, from what its directory holds."""
    figures = result or latest(metrics, stored)
    sections = [
        f"<header><h1>{html.escape(name)}</h1><p>{html.escape(subtitle(stored, metrics, result))}</p></header>",
        cards(figures),
        f'<section class="curves">{loss_chart(metrics)}<div class="small">{small_charts(metrics)}</div></section>',
        *exhibits,
        sample_section(samples),
        table("Result", result) if result else "",
        table("Config", core_config.flat(stored.get("config", {}))),
        table("Made with", made_with(stored)),
    ]
    style, script = (STYLE + look.STYLE, SCRIPT + look.SCRIPT) if exhibits else (STYLE, SCRIPT)
    return PAGE.format(title=html.escape(name), style=style, body="\n".join(filter(None, sections)), script=script)


def latest(metrics: list[dict], stored: dict) -> dict[str, Any]:
    """The head figures of a run that has no result yet."""
    train, held_out = by_split(metrics, "train"), by_split(metrics, "eval")
    found: dict[str, Any] = {}
    if metrics:
        found |= {"steps": metrics[-1]["step"], "train_seconds": metrics[-1].get("time")}
    if held_out:
        found |= {"eval_loss": held_out[-1].get("loss"), "bits_per_byte": held_out[-1].get("bits_per_byte")}
    if train:
        found |= {"train_loss": train[-1].get("loss"), "tokens": train[-1].get("tokens")}
    return found


def subtitle(stored: dict, metrics: list[dict], result: dict | None) -> str:
    """One line: what was trained, on what, and how far it got."""
    config, device = stored.get("config", {}), stored.get("device", {})
    step, steps = metrics[-1]["step"] if metrics else 0, config.get("steps")
    state = f"at step {step:,}" + (f" of {steps:,}" if steps else "")
    if result:
        reason = str(result.get("stopped_by", "steps")).replace("_", " ")
        state = "finished" if reason == "steps" else f"stopped by {reason}"
    parts = [state, str(config.get("data", "")), f"{device['count']} × {device['kind']}" if device else ""]
    return " · ".join(filter(None, parts))


def cards(figures: dict[str, Any]) -> str:
    """HTML of the figures that are there, a card each."""
    shown = [
        (title, text(figures[key])) for key, (title, text) in FIGURES.items() if finite(figures.get(key)) is not None
    ]
    items = "".join(f"<div><dt>{title}</dt><dd>{html.escape(value)}</dd></div>" for title, value in shown)
    return f'<dl class="cards">{items}</dl>' if items else ""


def loss_chart(metrics: list[dict]) -> str:
    """SVG of the training and held-out losses by step."""
    train, held_out = by_split(metrics, "train"), by_split(metrics, "eval")
    raw = line("training", train, "loss", "train")
    lines = [raw]
    if len(raw.xs) >= SMOOTH_FROM:
        average = Line("training, averaged", raw.xs, charts.smoothed(raw.ys, len(raw.xs) // 60), "train")
        lines = [Line("training", raw.xs, raw.ys, "train faint"), average]
    if held_out:
        lines.append(line("held out", held_out, "loss", "eval", dots=len(held_out) <= 60))
    return charts.chart("Loss by step, nats per token", lines, width=960, height=360)


def small_charts(metrics: list[dict]) -> str:
    """One small chart for each further number that the run logged."""
    found = []
    for split, key, title, may_be_log in SMALL:
        records = [record for record in by_split(metrics, split) if key in record]
        if any(finite(record[key]) is not None for record in records):
            one = line(title, records, key, split, dots=split == "eval" and len(records) <= 60)
            found.append(charts.chart(title, [one], width=470, height=190, log=None if may_be_log else False))
    return "".join(found)


def sample_section(samples: list[tuple[int, str]]) -> str:
    """What the model wrote, step by step."""
    if not samples:
        return ""
    items = "".join(f"<article><h3>step {step:,}</h3><pre>{escaped(text)}</pre></article>" for step, text in samples)
    return f"<section><h2>Samples as it learned</h2>{items}</section>"


def table(title: str, values: dict[str, Any]) -> str:
    """A folded table of names and values."""
    rows = "".join(
        f"<tr><th>{html.escape(str(name))}</th><td>{html.escape(value if isinstance(value, str) else json.dumps(value))}</td></tr>"
        for name, value in values.items()
    )
    return f"<details><summary>{html.escape(title)}</summary><table>{rows}</table></details>" if rows else ""


def made_with(stored: dict) -> dict[str, Any]:
    return {
        **stored.get("versions", {}),
        "git": stored.get("git"),
        **core_config.flat({"device": stored.get("device", {})}),
    }


def by_split(metrics: Sequence[dict], split: str) -> list[dict]:
    return [record for record in metrics if record.get("split") == split]


def line(name: str, records: Sequence[dict], key: str, style: str, dots: bool = False) -> Line:
    return Line(
        name, [record["step"] for record in records], [finite(record.get(key)) for record in records], style, dots
    )


def finite(value: Any) -> float | None:
    """`value` where it is a number that can be drawn."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return value if is_number and abs(value) < LARGEST else None


PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title} · Purestep</title>
<style>{style}</style>
</head>
<body>
<main>
{body}
</main>
<script>{script}</script>
</body>
</html>
"""

STYLE = """
:root {
  color-scheme: light dark;
  --page: #fbfbfa; --card: #fff; --ink: #1c1e21; --soft: #6b7078; --rule: #e6e6e3; --train: #2f6fde; --eval: #d9730d;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #15171a; --card: #1d2024; --ink: #e7e8ea; --soft: #9aa0a8; --rule: #2f3338; --train: #79a9ff; --eval: #ffa657;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1040px; margin: 0 auto; padding: 40px 20px 64px; }
header h1 { margin: 0; font-size: 28px; letter-spacing: -.01em; overflow-wrap: anywhere; }
header p { margin: 4px 0 24px; color: var(--soft); }
h2 { margin: 40px 0 12px; font-size: 18px; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(124px, 1fr)); gap: 10px; margin: 0 0 16px; }
.cards div, figure, article, details { background: var(--card); border: 1px solid var(--rule); border-radius: 10px; }
.cards div { padding: 10px 14px; }
.cards dt { color: var(--soft); font-size: 12.5px; }
.cards dd { margin: 0; font-size: 20px; font-weight: 600; font-variant-numeric: tabular-nums; }
figure { margin: 0; padding: 12px 14px 8px; }
figcaption { display: flex; flex-wrap: wrap; justify-content: space-between; gap: 0 16px; font-weight: 600; font-size: 14px; }
.legend { display: flex; flex-wrap: wrap; gap: 0 16px; font-weight: 400; color: var(--soft); }
.key::before {
  content: ""; display: inline-block; width: 16px; height: 3px; margin-right: 6px; border-radius: 2px;
  background: currentColor; vertical-align: middle;
}
.small { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); gap: 10px; margin-top: 10px; }
.plot { position: relative; margin-top: 6px; touch-action: pan-y; }
svg { display: block; width: 100%; height: auto; overflow: visible; }
.grid { stroke: var(--rule); }
.tick { fill: var(--soft); font: 11px system-ui, sans-serif; font-variant-numeric: tabular-nums; }
.line { fill: none; stroke-width: 1.8; stroke-linejoin: round; stroke-linecap: round; }
.line.train { stroke: var(--train); } .line.eval { stroke: var(--eval); }
.line.faint { opacity: .35; stroke-width: 1.2; }
circle.train { fill: var(--train); } circle.eval { fill: var(--eval); }
.key.train::before { background: var(--train); } .key.eval::before { background: var(--eval); } .key.faint::before { opacity: .35; }
.cursor { stroke: var(--soft); stroke-dasharray: 3 3; visibility: hidden; }
.readout {
  position: absolute; top: 8px; padding: 5px 9px; border: 1px solid var(--rule); border-radius: 6px; background: var(--card);
  box-shadow: 0 2px 8px #0002; font-size: 12.5px; line-height: 1.45; font-variant-numeric: tabular-nums; white-space: nowrap;
  pointer-events: none; visibility: hidden;
}
@media (max-width: 640px) { .wide .tick { font-size: 20px; } .wide .line { stroke-width: 3; } }
.none { color: var(--soft); }
article { margin-bottom: 10px; padding: 10px 14px; }
h3 { margin: 0 0 4px; font-size: 12.5px; font-weight: 600; color: var(--soft); }
pre {
  margin: 0; font: 13px/1.45 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; white-space: pre-wrap;
  overflow-wrap: anywhere; tab-size: 4;
}
details { margin-top: 10px; padding: 10px 14px; }
h2 + article { margin-top: 0; } article + details, section + details { margin-top: 32px; } details + details { margin-top: 10px; }
summary { cursor: pointer; font-weight: 600; }
table { margin-top: 8px; border-collapse: collapse; font-size: 13.5px; }
th, td { padding: 3px 24px 3px 0; text-align: left; vertical-align: top; font-weight: 400; overflow-wrap: anywhere; }
th { color: var(--soft); white-space: nowrap; }
"""

SCRIPT = """
for (const figure of document.querySelectorAll("figure.chart")) {
  const script = figure.querySelector("script");
  if (!script) continue;
  const { frame, series, x: unit = "step" } = JSON.parse(script.textContent);
  const along = frame.log ? Math.log10 : (x) => x, back = frame.log ? (x) => 10 ** x : (x) => x;
  const low = along(frame.low), high = along(frame.high);
  const told = (x) => Number.isInteger(x) ? x.toLocaleString("en") : String(Number(x.toPrecision(5)));
  const plot = figure.querySelector(".plot"), svg = plot.querySelector("svg");
  const cursor = plot.querySelector(".cursor"), readout = plot.querySelector(".readout");
  const nearest = (xs, x) => {
    let low = 0, high = xs.length - 1;
    while (high - low > 1) { const middle = (low + high) >> 1; if (xs[middle] > x) high = middle; else low = middle; }
    return x - xs[low] < xs[high] - x ? low : high;
  };
  const leave = () => { cursor.style.visibility = readout.style.visibility = "hidden"; };
  plot.addEventListener("pointerleave", leave);
  plot.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect(), at = (event.clientX - box.left) / box.width;
    const part = Math.min(1, Math.max(0, (at - frame.start) / (frame.end - frame.start)));
    const main = series.reduce((a, b) => (b.x.length > a.x.length ? b : a));
    const step = main.x[nearest(main.x, back(low + part * (high - low)))];
    const rows = series.filter((s) => s.x.length).map((s) => {
      const i = nearest(s.x, step), where = s.x[i] === step ? "" : ` (${unit} ${told(s.x[i])})`;
      return `${s.name} ${s.y[i] ?? "not finite"}${where}`;
    });
    readout.replaceChildren();
    for (const text of [`${unit} ${told(step)}`, ...rows]) {
      readout.append(Object.assign(document.createElement("div"), { textContent: text }));
    }
    const x = frame.start + (frame.end - frame.start) * (along(step) - low) / (high - low);
    const pixels = x * svg.viewBox.baseVal.width;
    cursor.setAttribute("x1", pixels); cursor.setAttribute("x2", pixels);
    const left = x * box.width, right = left + 12 + readout.offsetWidth > box.width;
    readout.style.left = `${right ? left - 12 - readout.offsetWidth : left + 12}px`;
    cursor.style.visibility = readout.style.visibility = "visible";
  });
}
"""

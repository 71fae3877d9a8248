"""Drawings of numbers: lines with bands, points, bars, and how far confidence is to be trusted."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from research.core.errors import UserError
from research.train import charts
from research.train.charts import Line
from research.train.exhibits.look import HUES, hues
from research.train.markup import escaped, left_out, note, shortened

LARGEST = 1e100  # of what is drawn: differences do not overflow
SERIES = 2 * HUES  # in one drawing: every hue, plain and dashed
POINTS = 4000  # of a scatter
BARS = 40
BAR = 24  # pixels from one bar to the next
WIDTH, HEIGHT = 960, 360
SIGNS = {  # of the points of a group, and their outline around where the pen is
    "●": "m-3.4,0a3.4,3.4 0 1,0 6.8,0a3.4,3.4 0 1,0 -6.8,0z",
    "■": "m-3,-3h6v6h-6z",
    "▲": "m0,-4l4,7h-8z",
    "◆": "m0,-4.4l4,4.4l-4,4.4l-4,-4.4z",
}


def curves(
    series: Mapping[str, Sequence[Any]], x: str, y: str, *, title: str = "", log_x: bool = False, log_y: bool = False
) -> str:
    """Returns HTML of one line for each name: `(xs, ys)`, or `(xs, ys, low, high)` with a band, sequences of one length. `x` and `y` are the
    titles of the axes, units included.

    Where a y is not finite, or not above 0 on a logarithmic axis, the line has a gap. The first 16 lines are drawn. Raises UserError for sequences
    of unequal length.
    """
    shown = list(series.items())[:SERIES]
    lines = [_line(name, parts, hues(i), log_x, log_y) for i, (name, parts) in enumerate(shown)]
    drawn = charts.chart(title or f"{y} by {x}", lines, width=WIDTH, height=HEIGHT, log=log_y, log_x=log_x, x=x, y=y)
    return drawn + note(left_out(len(shown), len(series), "lines"))


def scatter(groups: Mapping[str, Sequence[Any]], x: str, y: str, *, title: str = "") -> str:
    """Returns HTML of the points `(xs, ys)` of each name, told apart by colour and by shape. `x` and `y` are the titles of the axes.

    The first 16 groups are drawn, with 4,000 points together, every group thinned alike; points that are not finite are left out. Raises UserError
    for sequences of unequal length.
    """
    shown = dict(list(groups.items())[:SERIES])
    found = {name: np.stack(_same_length(name, parts, (2,)), axis=1) for name, parts in shown.items()}
    finite = {name: points[(np.abs(points) < LARGEST).all(axis=1)] for name, points in found.items()}
    total, there = sum(map(len, found.values())), sum(map(len, finite.values()))
    stride = max(1, math.ceil(there / POINTS))
    kept = {name: points[::stride] for name, points in finite.items()}
    count = sum(map(len, kept.values()))
    keys = [
        f'<span class="{hues(i)}"><b aria-hidden="true">{_sign(i)}</b> {escaped(name)}</span>'
        for i, name in enumerate(kept)
    ]
    caption = f'<figcaption>{escaped(title or f"{y} by {x}")}<span class="legend">{"".join(keys)}</span></figcaption>'
    notes = note(left_out(len(shown), len(groups), "groups"), left_out(count, total, "points"))
    if not count:
        return f'<figure class="chart">{caption}<p class="none">nothing to draw</p></figure>{notes}'
    every = np.concatenate(list(kept.values()))
    x_axis, y_axis = charts.axes(every[:, 0].tolist(), every[:, 1].tolist(), WIDTH, HEIGHT, titled=(bool(x), bool(y)))
    marks = [_marks(points, i, x_axis, y_axis) for i, points in enumerate(kept.values())]
    told = "; ".join(f"{name}: {len(points):,} points" for name, points in kept.items())
    said = f"{title}: {y} by {x}; {told}" if title else f"{y} by {x}; {told}"
    body = charts.grid(x_axis, y_axis, x, y) + "".join(marks)
    return f'<figure class="chart wide">{caption}{_svg(WIDTH, HEIGHT, said, body)}</figure>{notes}'


def bars(
    values: Mapping[str, float],
    x: str,
    y: str = "",
    *,
    title: str = "",
    intervals: Mapping[str, tuple[float, float]] | None = None,
) -> str:
    """Returns HTML of a bar from 0 to each value, one under the other in the order given, with names at their left and numbers at their ends. `x`
    is the title of the axis of values, unit included; `y` says what the names are. `intervals` are drawn over the bars of their names.

    The first 40 are drawn. Raises UserError for a value or an end of an interval that is not finite.
    """
    shown = list(values.items())[:BARS]
    ends = {name: tuple(map(float, pair)) for name, pair in (intervals or {}).items()}
    numbers = [0.0, *(float(v) for _, v in shown), *(v for name, _ in shown for v in ends.get(name, ()))]
    if not all(abs(v) < LARGEST for v in numbers):
        raise UserError(
            f"bars of {[v for v in numbers if not abs(v) < LARGEST][0]}; expected finite numbers: leave others out"
        )
    caption = f"<figcaption>{escaped(title or (f'{x} by {y}' if y else x))}</figcaption>"
    notes = note(left_out(len(shown), len(values), "bars"))
    if not shown:
        return f'<figure class="chart">{caption}<p class="none">nothing to draw</p></figure>{notes}'
    left = 26 + 7 * max(len(shortened(name)) for name, _ in shown)
    bottom = 10.0 + BAR * len(shown)
    x_axis = charts.axis(min(numbers), max(numbers), float(left), WIDTH - 64.0, count=6)
    rows = [_bar(i, str(name), float(v), ends.get(name), x_axis) for i, (name, v) in enumerate(shown)]
    names = charts.Axis(0.0, 1.0, bottom, 10.0, False, ())
    marks = [
        f'<line class="grid" x1="{x_axis(t):.1f}" x2="{x_axis(t):.1f}" y1="10" y2="{bottom}"/>' for t in x_axis.ticks
    ]
    told = ", ".join(f"{name} {charts.label(float(v))}" for name, v in shown)
    said = f"{title + ': ' if title else ''}{x}{f' by {y}' if y else ''}: {told}"
    body = "".join(marks) + charts.grid(x_axis, names, x, y) + "".join(rows)
    return f'<figure class="chart wide">{caption}{_svg(WIDTH, bottom + 26 + charts.TITLE, said, body)}</figure>{notes}'


def calibration(bins: Any, *, title: str = "Reliability") -> str:
    """Returns HTML of a reliability diagram of `bins` (k, 3): mean confidence, share of predictions that were right, and their number; bins of none
    are left out. Points lie on the diagonal where confidence can be trusted, and are the larger the more predictions they stand for.

    The caption has the expected calibration error, the mean distance from the diagonal over all predictions (Guo et al., arXiv 1706.04599,
    section 2). Raises UserError for another shape, shares outside [0, 1] and negative numbers.
    """
    array = np.asarray(bins, np.float64)
    if array.ndim != 2 or array.shape[1] != 3:
        raise UserError(f"bins have shape {array.shape}; expected (k, 3): mean confidence, share right, number")
    array = array[array[:, 2] != 0]
    if not ((array[:, :2] >= 0) & (array[:, :2] <= 1)).all() or not (array[:, 2] > 0).all():
        raise UserError(
            "bins have shares outside [0, 1] or negative numbers; expected mean confidence, share right, number"
        )
    total = array[:, 2].sum()
    error = float((np.abs(array[:, 0] - array[:, 1]) * array[:, 2]).sum() / total) if total else 0.0
    told = f"expected calibration error {error:.2%} over {total:,.0f} predictions" if total else "no predictions"
    caption = f'<figcaption>{escaped(title)}<span class="legend">{told}</span></figcaption>'
    x_axis, y_axis = charts.axes([0.0, 1.0], [0.0, 1.0], 470, 400, titled=(True, True))
    at = [(x_axis(c), y_axis(r), x_axis(c), y_axis(c), 3 + 8 * math.sqrt(n / total)) for c, r, n in array.tolist()]
    gaps = [
        f'<line class="gap series s1" x1="{x:.1f}" y1="{y:.1f}" x2="{u:.1f}" y2="{v:.1f}"/>' for x, y, u, v, _ in at
    ]
    dots = [f'<circle class="series s0" cx="{x:.1f}" cy="{y:.1f}" r="{r:.1f}"/>' for x, y, _, _, r in at]
    ideal = f'<line class="ideal" x1="{x_axis(0)}" y1="{y_axis(0)}" x2="{x_axis(1)}" y2="{y_axis(1)}"/>'
    each = "; ".join(f"confidence {c:.2f}, right {r:.2f}, {n:,.0f} predictions" for c, r, n in array.tolist())
    body = charts.grid(x_axis, y_axis, "mean confidence", "share right") + ideal + "".join(gaps + dots)
    drawn = _svg(470, 400, f"{title}: {told}; {each}", body)
    return f'<div class="small"><figure class="chart">{caption}{drawn}</figure></div>'


def _line(name: str, parts: Sequence[Any], style: str, log_x: bool, log_y: bool) -> Line:
    """A line of what can be drawn, from left to right where it was given from right to left."""
    xs, *bands = _same_length(name, parts, (2, 4))
    there = np.isfinite(xs) & (np.abs(xs) < LARGEST) & ((xs > charts.SMALLEST) | (not log_x))
    xs, bands = xs[there], [band[there] for band in bands]
    if len(xs) and xs[0] > xs[-1]:
        xs, bands = xs[::-1], [band[::-1] for band in bands]
    at = [int(v) if v == int(v) and abs(v) < 2**53 else float(f"{v:.7g}") for v in xs.tolist()]
    ys, *edges = [[_drawable(v, log_y) for v in band.tolist()] for band in bands]
    low, high = edges or (None, None)
    return Line(str(name), at, ys, style, dots=len(at) <= 30, low=low, high=high)


def _drawable(value: float, log: bool) -> float | None:
    return value if abs(value) < LARGEST and (value > charts.SMALLEST or not log) else None


def _same_length(name: str, parts: Sequence[Any], numbers: tuple[int, ...]) -> list[np.ndarray]:
    """Sequences as floats. Raises UserError where there are not as many as they may be, or of unequal length."""
    arrays = [np.asarray(part, np.float64) for part in parts]
    shapes = [array.shape for array in arrays]
    if len(arrays) not in numbers or any(len(shape) != 1 or shape != shapes[0] for shape in shapes):
        expected = " or ".join({2: "(xs, ys)", 4: "(xs, ys, low, high)"}[number] for number in numbers)
        raise UserError(f"{name!r} has parts of shapes {shapes}; expected {expected}, sequences of one length")
    return arrays


def _sign(number: int) -> str:
    return list(SIGNS)[number % len(SIGNS)]


def _marks(points: np.ndarray, number: int, x_axis: charts.Axis, y_axis: charts.Axis) -> str:
    outline = SIGNS[_sign(number)]
    path = "".join(f"M{x_axis(x):.1f} {y_axis(y):.1f}{outline}" for x, y in points.tolist())
    return f'<path class="mark {hues(number)}" d="{path}"/>'


def _bar(number: int, name: str, value: float, ends: tuple[float, ...] | None, x_axis: charts.Axis) -> str:
    """SVG of a bar, its name, its number and its interval."""
    top, middle = 14 + BAR * number, 10 + BAR * (number + 0.5)
    left, right = sorted((x_axis(0.0), x_axis(value)))
    end = max([right, *map(x_axis, ends or ())])
    whisker = ""
    if ends:
        low, high = (f"{x_axis(v):.1f}" for v in ends)
        path = f"M{low} {middle - 4}v8M{low} {middle}H{high}M{high} {middle - 4}v8"
        whisker = f'<path class="whisker" d="{path}"/>'
    return (
        f'<text class="tick" x="{x_axis.start - 8}" y="{middle}" dy=".32em" text-anchor="end">{escaped(shortened(name))}'
        f"<title>{escaped(name)}</title></text>"
        f'<rect class="mark series s0" x="{left:.1f}" y="{top}" width="{right - left:.1f}" height="{BAR - 8}"/>{whisker}'
        f'<text class="tick" x="{end + 6:.1f}" y="{middle}" dy=".32em">{charts.label(value)}</text>'
    )


def _svg(width: float, height: float, said: str, body: str) -> str:
    return f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escaped(said)}">{body}</svg>'

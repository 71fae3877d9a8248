"""Line charts as inline SVG: axes with round numbers, gaps where a value is missing, and the data for a hover readout.

Colours and fonts are CSS classes of the page (report.py), so that one chart serves light and dark.
"""

import bisect
import dataclasses
import itertools
import json
import math
from collections.abc import Callable, Sequence
from typing import Any

from research.train.markup import escaped

MAX_POINTS = 800  # per line; more are no more than the screen has pixels
LOG_FROM = 30.0  # highest over lowest value above which a logarithmic axis is clearer
SMALLEST = 1e-30  # on a logarithmic axis
TITLE = 18  # pixels of an axis's title


@dataclasses.dataclass(frozen=True)
class Line:
    """A named series. `ys` has None where there is no finite value; `style` is a CSS class; `dots` marks every point. Between `low` and
    `high`, where both are given, lies a band."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float | None]
    style: str
    dots: bool = False
    low: Sequence[float | None] | None = None
    high: Sequence[float | None] | None = None


@dataclasses.dataclass(frozen=True)
class Axis:
    """A range of values over a range of pixels, with the values to mark."""

    low: float
    high: float
    start: float
    end: float
    log: bool
    ticks: tuple[float, ...]

    def __call__(self, value: float) -> float:
        """The pixel of a value."""
        low, high, value = (math.log10(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (self.end - self.start) * (value - low) / (high - low)


def chart(
    title: str,
    lines: Sequence[Line],
    *,
    width: int,
    height: int,
    log: bool | None = False,
    log_x: bool = False,
    x: str = "",
    y: str = "",
) -> str:
    """A `<figure>` of the lines over steps, or with a note where there is nothing to draw. `log` None decides by the values.

    `x` and `y` name the axes, both or neither, where they are not steps and what the title says. Only lines whose xs all ascend have a hover readout.
    """
    lines = [thinned(line) for line in lines]
    points = [(at, v) for line in lines for at, v in zip(line.xs, line.ys, strict=True) if v is not None]
    caption = f"<figcaption>{escaped(title)}{_legend(lines)}</figcaption>"
    if not points:
        return f'<figure class="chart">{caption}<p class="none">nothing to draw yet</p></figure>'
    xs, ys = [at for at, _ in points], [v for _, v in points]
    ys += [v for line in lines for band in (line.low, line.high) for v in band or () if v is not None]
    if log is None:
        log = min(ys) > SMALLEST and max(ys) / min(ys) > LOG_FROM
    x_axis, y_axis = axes(xs, ys, width, height, log=log, log_x=log_x, titled=(bool(x), bool(y)))
    body = grid(x_axis, y_axis, x, y) + "".join(_path(line, x_axis, y_axis) for line in lines)
    wide = " wide" if width > 600 else ""
    said = described(title, lines, x, y) if x else f"{title} over steps"
    ascending = all(a <= b for line in lines for a, b in itertools.pairwise(line.xs))
    data = f'<script type="application/json">{_data(lines, x_axis, width, x)}</script>' if ascending else ""
    return (
        f'<figure class="chart{wide}">{caption}<div class="plot"><svg viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escaped(said)}">{body}<line class="cursor" y1="{y_axis.end}" y2="{y_axis.start}"/></svg>'
        f'<div class="readout"></div></div>{data}</figure>'
    )


def axes(
    xs: Sequence[float],
    ys: Sequence[float],
    width: int,
    height: int,
    *,
    log: bool = False,
    log_x: bool = False,
    titled: tuple[bool, bool] = (False, False),
) -> tuple[Axis, Axis]:
    """The axes of a drawing of `width` x `height` pixels over all the values, with room for marks and, where `titled`, for titles."""
    bottom = height - 26.0 - TITLE * titled[0]
    y_axis = axis(min(ys), max(ys), bottom, 10.0, log=log, count=max(3, height // 50))
    left = 14 + 7 * max(len(label(tick)) for tick in y_axis.ticks) + TITLE * titled[1]
    x_axis = axis(min(xs), max(xs), float(left), width - 14.0, log=log_x, count=max(3, width // 110), round_ends=False)
    return x_axis, y_axis


def described(title: str, lines: Sequence[Line], x: str, y: str) -> str:
    """What the lines show in words: the axes, and where each line begins, ends and lies."""
    head = f"{y} by {x}"
    told = [head if title == head else f"{title}: {head}"]
    for line in lines:
        there = [(at, value) for at, value in zip(line.xs, line.ys, strict=True) if value is not None]
        if there:
            values = [value for _, value in there]
            first, last, low, high = (label(v) for v in (values[0], values[-1], min(values), max(values)))
            ends = f"{first} at {label(there[0][0])} to {last} at {label(there[-1][0])}"
            told.append(f"{line.name}: {ends}, between {low} and {high}")
    return "; ".join(told)


def axis(low: float, high: float, start: float, end: float, *, log=False, count=5, round_ends=True) -> Axis:
    """An axis over `[low, high]`, widened where that is a single value and, with `round_ends`, to the next marks."""
    if log and low < high:
        ticks = log_ticks(low, high)
        return Axis(min(low, ticks[0]), max(high, ticks[-1]), start, end, True, ticks)
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        margin = abs(low) / 10 or 1.0
        low, high = low - margin, high + margin
    step = nice((high - low) / count)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple(i * step for i in range(first, last + 1))
    if round_ends:
        return Axis(ticks[0], ticks[-1], start, end, False, ticks)
    return Axis(low, high, start, end, False, tuple(t for t in ticks if low - step / 1e6 <= t <= high + step / 1e6))


def nice(value: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is at least `value`."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(power * m for m in (1, 2, 5, 10) if power * m >= value * (1 - 1e-9))


def log_ticks(low: float, high: float) -> tuple[float, ...]:
    """Marks around `[low, high]`: powers of ten, or 1, 2, 5 times them where these are few; at most about seven."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    if last - first <= 2:
        every = [m * 10.0**e for e in range(first, last + 1) for m in (1, 2, 5)]
        inside_from = max(0, bisect.bisect_right(every, low) - 1)
        return tuple(every[inside_from : bisect.bisect_left(every, high) + 1])
    stride = math.ceil((last - first) / 6)
    return tuple(10.0**e for e in range(first, last + stride, stride))


def label(value: float) -> str:
    """A mark's text: `0`, `0.25`, `1.5k`, `20M`, `3e-05`."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size * (1 - 1e-9):
            return f"{value / size:.6g}{unit}"
    return f"{value:.6g}"


def smoothed(ys: Sequence[float | None], radius: int) -> list[float | None]:
    """The mean over `radius` points on either side, fewer near the ends and as many on both, so that nothing lags."""
    out: list[float | None] = []
    for i, y in enumerate(ys):
        reach = min(radius, i, len(ys) - 1 - i)
        around = [v for v in ys[i - reach : i + reach + 1] if v is not None]
        out.append(None if y is None else math.fsum(around) / len(around))
    return out


def thinned(line: Line) -> Line:
    """At most `MAX_POINTS` points: the lowest and the highest of every stretch, so that no spike is lost."""
    if len(line.xs) <= MAX_POINTS:
        return line
    kept: list[int] = []
    stretches = MAX_POINTS // 2
    for i in range(stretches):
        stretch = range(len(line.xs) * i // stretches, len(line.xs) * (i + 1) // stretches)
        there = [j for j in stretch if line.ys[j] is not None]
        value: Callable[[int], float] = lambda j: line.ys[j] or 0.0  # noqa: E731
        kept += sorted({min(there, key=value), max(there, key=value)}) if there else [stretch[0]]
    low, high = (None if band is None else [band[j] for j in kept] for band in (line.low, line.high))
    return dataclasses.replace(line, xs=[line.xs[j] for j in kept], ys=[line.ys[j] for j in kept], low=low, high=high)


def grid(x_axis: Axis, y_axis: Axis, x: str = "", y: str = "") -> str:
    """SVG of the marks of two axes, lines across at those of the second, and the axes' titles."""
    parts = []
    for tick in y_axis.ticks:
        at = f"{y_axis(tick):.1f}"
        parts.append(f'<line class="grid" x1="{x_axis.start}" x2="{x_axis.end}" y1="{at}" y2="{at}"/>')
        parts.append(
            f'<text class="tick" x="{x_axis.start - 6}" y="{at}" dy=".32em" text-anchor="end">{label(tick)}</text>'
        )
    for tick in x_axis.ticks:
        at = f"{x_axis(tick):.1f}"
        parts.append(f'<text class="tick" x="{at}" y="{y_axis.start + 17}" text-anchor="middle">{label(tick)}</text>')
    return "".join(parts) + titles(x_axis, y_axis, x, y)


def titles(x_axis: Axis, y_axis: Axis, x: str, y: str) -> str:
    """SVG of the axes' titles: the first below its marks, the second upwards at the left edge."""
    parts = []
    if x:
        middle, below = (x_axis.start + x_axis.end) / 2, y_axis.start + 17 + TITLE
        parts.append(f'<text class="tick" x="{middle:.1f}" y="{below}" text-anchor="middle">{escaped(x)}</text>')
    if y:
        middle = (y_axis.start + y_axis.end) / 2
        turned = f'transform="rotate(-90)" x="{-middle:.1f}" y="12" text-anchor="middle"'
        parts.append(f'<text class="tick" {turned}>{escaped(y)}</text>')
    return "".join(parts)


def _path(line: Line, x_axis: Axis, y_axis: Axis) -> str:
    """The line as one path, lifted over gaps, on its band; points with no neighbour, and all where `dots`, as circles."""
    places = [None if y is None else (x_axis(x), y_axis(y)) for x, y in zip(line.xs, line.ys, strict=True)]
    path, circles = [], []
    for i, place in enumerate(places):
        if place is None:
            continue
        joined = i > 0 and places[i - 1] is not None
        path.append(f"{'L' if joined else 'M'}{place[0]:.1f} {place[1]:.1f}")
        if line.dots or not (joined or (i + 1 < len(places) and places[i + 1] is not None)):
            circles.append(f'<circle class="{line.style}" cx="{place[0]:.1f}" cy="{place[1]:.1f}" r="3"/>')
    return f'{_band(line, x_axis, y_axis)}<path class="line {line.style}" d="{"".join(path)}"/>' + "".join(circles)


def _band(line: Line, x_axis: Axis, y_axis: Axis) -> str:
    """The band of a line, one outline for each stretch where both its edges are there."""
    if line.low is None or line.high is None:
        return ""
    edges = list(zip(line.xs, line.low, line.high, strict=True))
    outlines = []
    for there, stretch in itertools.groupby(edges, key=lambda edge: edge[1] is not None and edge[2] is not None):
        if there:
            kept = [(x_axis(x), y_axis(low or 0.0), y_axis(high or 0.0)) for x, low, high in stretch]
            around = [(x, high) for x, _, high in kept] + [(x, low) for x, low, _ in reversed(kept)]
            outlines.append("M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in around) + "Z")
    return f'<path class="band {line.style}" d="{"".join(outlines)}"/>'


def _legend(lines: Sequence[Line]) -> str:
    if len(lines) < 2:
        return ""
    keys = (f'<span class="key {line.style}">{escaped(line.name)}</span>' for line in lines)
    return f'<span class="legend">{"".join(keys)}</span>'


def _data(lines: Sequence[Line], x_axis: Axis, width: int, x: str = "") -> str:
    """What the hover readout needs, safe inside a script element."""
    series = [
        {"name": line.name, "style": line.style, "x": list(line.xs), "y": [_short(y) for y in line.ys]}
        for line in lines
    ]
    frame: dict[str, Any] = {"low": x_axis.low, "high": x_axis.high, "start": x_axis.start / width, "end": x_axis.end / width}  # fmt: skip
    data: dict[str, Any] = {"frame": frame | ({"log": True} if x_axis.log else {}), "series": series}
    return json.dumps(data | ({"x": x} if x else {}), separators=(",", ":")).replace("<", "\\u003c")


def _short(y: float | None) -> float | None:
    return None if y is None else float(f"{y:.5g}")

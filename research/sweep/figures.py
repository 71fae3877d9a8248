"""What a sweep looks like: figures of its results, by matplotlib.

| figure | |
| --- | --- |
| by-FIELD | the loss against one field, the mean over the other trials at its value and their range as a band |
| curves | the losses of all members as they trained |
| map-A-B | the mean loss over two fields |
| parallel | a line for every trial through its fields to its loss |
| importance | the share of the losses' variance that each field explains by itself |
"""

import itertools
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from research.core.errors import UserError

Lines = Sequence[dict[str, Any]]
MAPS = 6  # pairs of fields, the most important first
COLOURS = "viridis"  # even in brightness, and told apart by the colour-blind; dark is good


def swept(lines: Lines) -> list[str]:
    """The fields in which trials differ, by importance; the seed is none."""
    names = dict.fromkeys(name for line in lines for name in line["fields"] if name != "seed")
    return sorted((n for n in names if len(values(lines, n)) > 1), key=lambda name: -importance(lines, name))


def values(lines: Lines, field: str) -> list[Any]:
    """The values of a field, in order."""
    found = {repr(line["fields"].get(field)): line["fields"].get(field) for line in lines}
    return sorted(found.values(), key=lambda value: (not _is_number(value), value if _is_number(value) else str(value)))


def finished(lines: Lines) -> list[dict[str, Any]]:
    """Those that have a loss."""
    return [line for line in lines if line["metric"] is not None]


def importance(lines: Lines, field: str) -> float:
    """The share of the variance of the losses that a field explains by itself: the variance of the mean losses at its values over that of all losses,
    in [0, 1] (the main effect of a functional analysis of variance, Hutter et al. 2014, of trials that form a grid). 0 where losses are equal."""
    known = finished(lines)
    losses = [line["metric"] for line in known]
    if len(losses) < 2 or statistics.pvariance(losses) == 0:
        return 0.0
    mean = statistics.fmean(losses)
    at = [[line["metric"] for line in known if line["fields"].get(field) == value] for value in values(known, field)]
    between = sum(len(one) * (statistics.fmean(one) - mean) ** 2 for one in at if one) / len(losses)
    return min(1.0, between / statistics.pvariance(losses))


def figures(lines: Lines) -> Iterator[tuple[str, str, Any]]:
    """Yields (name, title, matplotlib figure) of all that there is something to draw for."""
    known, fields = finished(lines), swept(lines)
    for field in fields if known else ():
        yield f"by-{field}", f"Held-out loss by {field}", _drawn(lambda axes, f=field: by_field(axes, known, f))
    if any(_points(line) for line in lines):
        yield "curves", "Losses as members trained", _drawn(lambda axes: curves(axes, lines))
    if len(fields) > 1 and known:
        for one, other in itertools.islice(itertools.combinations(fields, 2), MAPS):
            draw = _drawn(lambda axes, a=one, b=other: heat_map(axes, known, a, b))
            yield f"map-{one}-{other}", f"Mean held-out loss by {one} and {other}", draw
        yield (
            "parallel",
            "Fields and losses of all trials",
            _drawn(lambda axes: parallel(axes, known, fields), wide=True),
        )
        yield (
            "importance",
            "Share of the variance that a field explains by itself",
            _drawn(lambda axes: bars(axes, known, fields)),
        )


def save(folder: Path, name: str, figure: Any) -> str:
    """Writes a figure as PNG and SVG; returns the SVG's element."""
    import matplotlib

    stem = "".join(c if c.isalnum() or c in "-_." else "_" for c in name)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # it is laid out, and need not be for each format again
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "purestep"}):
        figure.savefig(folder / f"{stem}.png", dpi=160)
        figure.savefig(folder / f"{stem}.svg", metadata={"Date": None})
    text = (folder / f"{stem}.svg").read_text(encoding="utf-8")
    return text[text.index("<svg") :]


def written(path: Path, figure: Any) -> None:
    """Writes a figure that an option names. Raises UserError where it cannot be written."""
    try:
        figure.savefig(path, dpi=160)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot write --plot {path}: {error}; give a .png, .svg or .pdf") from error


def canvas(width: float, height: float, columns: int = 1) -> tuple[Any, Any]:
    """An empty (figure, axes), inches; with several columns axes are an array of that many."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(1, columns)
    for one in figure.axes:
        one.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _drawn(draw: Callable[[Any], None], wide: bool = False) -> Any:
    figure, axes = canvas(8.4 if wide else 6.0, 3.8)
    draw(axes)
    return figure


def by_field(axes: Any, lines: Lines, field: str) -> None:
    """The loss against a field: mean and range at each of its values."""
    at = values(lines, field)
    groups = [[line["metric"] for line in lines if line["fields"].get(field) == value] for value in at]
    places, log = _places(at)
    axes.set(xlabel=field, ylabel="held-out loss, nats a token", xscale="log" if log else "linear")
    axes.scatter(
        [x for x, group in zip(places, groups, strict=True) for _ in group],
        [y for g in groups for y in g],
        s=12,
        alpha=0.5,
    )
    if all(map(_is_number, at)):
        axes.fill_between(places, [min(g) for g in groups], [max(g) for g in groups], alpha=0.15, color="C0", lw=0)
        axes.plot(places, [statistics.fmean(g) for g in groups], marker="o", ms=4, color="C0")
    else:
        axes.set_xticks(places, [_short(value) for value in at])
        axes.margins(x=0.2)


def curves(axes: Any, lines: Lines) -> None:
    """Every member's losses by step: held-out ones where there are several, else those of training; diverged members are dashed."""
    known = [line["metric"] for line in finished(lines)]
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    for line in lines:
        points = _points(line)
        share = 1.0 if line["metric"] is None else (line["metric"] - low) / max(high - low, 1e-12)
        diverged = line["status"] == "diverged"
        colour = "#b00020" if diverged else _colour(share)
        axes.plot(
            [x for x, _ in points], [y for _, y in points], color=colour, lw=1, ls="--" if diverged else "-", alpha=0.8
        )
    axes.set(xlabel="step", ylabel="loss, nats a token")
    if known:  # what diverged or has just begun shall not press the rest together
        tops = sorted(y for line in finished(lines) for _, y in _points(line))
        axes.set_ylim(low - 0.05 * (high - low + 0.1), tops[int(0.95 * (len(tops) - 1))] if tops else None)


def heat_map(axes: Any, lines: Lines, one: str, other: str) -> None:
    """The mean loss at every pair of values."""
    xs, ys = values(lines, one), values(lines, other)

    def mean(x: Any, y: Any) -> float:
        found = [line["metric"] for line in lines if line["fields"].get(one) == x and line["fields"].get(other) == y]
        return statistics.fmean(found) if found else math.nan

    cells = [[mean(x, y) for x in xs] for y in ys]
    image = axes.imshow(cells, cmap=COLOURS, aspect="auto", origin="lower")
    axes.figure.colorbar(image, ax=axes, label="held-out loss")
    axes.set_xticks(range(len(xs)), [_short(x) for x in xs], rotation=45 if len(xs) > 6 else 0)
    axes.set_yticks(range(len(ys)), [_short(y) for y in ys])
    axes.set(xlabel=one, ylabel=other)


def parallel(axes: Any, lines: Lines, fields: Sequence[str]) -> None:
    """A line for every trial, its fields each on its own scale, the loss at the end."""
    losses = [line["metric"] for line in lines]
    low, high = min(losses), max(losses)
    scales = []
    for field in fields:
        at = values(lines, field)
        places, log = _places(at)
        numbers = [math.log(x) if log else float(x) for x in places]
        span = max(numbers) - min(numbers) or 1.0
        scales.append({repr(value): (x - min(numbers)) / span for value, x in zip(at, numbers, strict=True)})
        for value in at if len(at) <= 12 else (at[0], at[-1]):
            axes.text(len(scales) - 1, scales[-1][repr(value)], f" {_short(value)}", fontsize=7, va="center")
    for line in sorted(lines, key=lambda one: -one["metric"]):
        share = (line["metric"] - low) / max(high - low, 1e-12)
        heights = [scale[repr(line["fields"].get(field))] for field, scale in zip(fields, scales, strict=True)]
        axes.plot(range(len(fields) + 1), [*heights, share], color=_colour(share), lw=1, alpha=0.7)
    axes.set_xticks(range(len(fields) + 1), [*(field.rpartition(".")[2] for field in fields), "loss"])
    axes.set_yticks([])
    axes.text(len(fields), 0, f" {low:.4g}", fontsize=7, va="center")
    axes.text(len(fields), 1, f" {high:.4g}", fontsize=7, va="center")


def bars(axes: Any, lines: Lines, fields: Sequence[str]) -> None:
    """The importance of each field."""
    shares = [importance(lines, field) for field in fields]
    axes.barh(list(fields)[::-1], shares[::-1])
    axes.set(xlim=(0, 1), xlabel="share of the variance")


def _points(line: dict[str, Any]) -> list[tuple[int, float]]:
    curve = line["curve"]
    chosen = curve["eval"] if len(curve["eval"]) > 2 else curve["train"]
    return [(step, loss) for step, loss in chosen if loss is not None]


def _places(at: Sequence[Any]) -> tuple[list[float], bool]:
    """Where values stand on an axis, and whether it is logarithmic: numbers that span more than a factor of 20."""
    if not all(map(_is_number, at)):
        return [float(n) for n in range(len(at))], False
    return [float(x) for x in at], min(at) > 0 and max(at) / min(at) >= 20


def _colour(share: float) -> Any:
    from matplotlib import colormaps

    return colormaps["viridis"](0.9 * min(max(share, 0.0), 1.0))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)

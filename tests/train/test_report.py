"""The report is one whole page that refers to no other, whatever the run directory holds; its charts lose nothing."""

import json
import math
import re

import pytest
from html_pages import Page
from hypothesis import given
from hypothesis import strategies as st

from research.core.errors import UserError
from research.train import charts, report
from research.train.charts import Line, axis, chart, label, log_ticks, smoothed, thinned
from research.train.rundir import RunDir


def train_record(step, **values):
    return {"step": step, "split": "train", "loss": 3 / step, "grad_norm": 1.0, "learning_rate": 1e-3, "update_ratio": 1e-3,
            "tokens": step * 64, "time": step / 10, "tokens_per_second": 5e4, "mfu": 0.5, **values}  # fmt: skip


def eval_record(step, **values):
    return {"step": step, "split": "eval", "loss": 3.1 / step, "bits_per_byte": 2.0, "time": step / 10, **values}


@pytest.fixture
def make(tmp_path):
    def page(metrics=(), samples=(), result=None, config=None):
        with RunDir.open(
            tmp_path / "a <b> & c", {"steps": 100, "data": "text:x", "deep": {"rate": 0.1}, **(config or {})}, {}
        ) as run:
            for record in metrics:
                run.write_metrics(record)
            for step, text in samples:
                run.write_sample(step, text)
            if result is not None:
                run.finish(result, {})
            file = report.write_report(run.path)
        assert file == run.path / "report.html"
        text = file.read_text(encoding="utf-8")
        return text, Page(text)

    return page


CASES = {
    "nothing yet": {},
    "one point": {"metrics": [train_record(1)]},
    "one evaluation": {"metrics": [eval_record(1)]},
    "half done": {"metrics": [train_record(s) for s in range(1, 30)], "samples": [(0, "x")]},
    "all missing": {"metrics": [train_record(s, loss=float("nan"), grad_norm=float("inf"), mfu=None) for s in (1, 2)]},
    "some missing": {"metrics": [train_record(s, loss=float("nan") if s % 3 == 0 else 1.0) for s in range(1, 200)]},
    "all the same": {"metrics": [train_record(s, loss=0.0, grad_norm=0.0) for s in (1, 2, 3)]},
    "bare records": {"metrics": [{"step": 1, "split": "train", "loss": 1.0}, {"step": 2}]},
    "extremes": {"metrics": [train_record(1, loss=1e308), train_record(2, loss=-1e308), train_record(3, grad_norm=5e-324)]},
    "finished": {
        "metrics": [r for s in range(1, 100) for r in (train_record(s), eval_record(s))],
        "samples": [(0, "a"), (99, "b\n\tc")],
        "result": {"steps": 99, "tokens": 6336, "train_loss": 0.03, "eval_loss": 0.031, "params": 1_118_912,
                   "train_seconds": 431.0, "stopped_by": "target_loss", "extra": [1, None]},
    },
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_whatever_the_run_holds_the_page_is_whole_and_stands_alone(make, case):
    text, page = make(**CASES[case])
    assert page.references == [] and "url(" not in text and "@import" not in text and "link" not in page.tags
    assert not re.search(r"\b(nan|inf)\b", re.sub(r"<script.*?</script>", "", text, flags=re.S))
    for data in page.data[:-1]:
        drawn = json.loads(data, parse_constant=pytest.fail)
        assert all(len(series["x"]) == len(series["y"]) for series in drawn["series"])
    assert page.texts.count("nothing to draw yet") == (case in ("nothing yet", "all missing"))


def test_the_figures_at_the_head(make):
    _, page = make(**CASES["finished"])
    for word in (
        "0.0310",
        "1.12M",
        "6.34k",
        "7m11s",
        "stopped by target loss · text:x · 1 × cpu",
        "deep.rate",
        "[1, null]",
    ):
        assert word in page.texts or any(word in text for text in page.texts), word


def test_an_unfinished_run_shows_how_far_it_is(make):
    _, page = make(**CASES["half done"])
    assert any("at step 29 of 100" in text for text in page.texts) and "0.1034" in page.texts


def test_what_the_model_wrote_is_text_and_nothing_else(make):
    hostile = "</pre><script>alert(1)</script>&lt;\x00\x1b\x0c\r\n\t<img src=x onerror=y>"
    text, page = make([train_record(1)], [(1, hostile)], config={"data": "</script><b>"})
    shown = "".join(page.texts)
    assert "</pre><script>alert(1)</script>&lt;\u2400\u241b\u240c\u240d\n\t<img src=x onerror=y>" in shown
    assert page.references == [] and page.tags.count("script") == 1 + text.count('type="application/json"')
    assert "a <b> & c" in page.texts and "a <b> & c · Purestep" in page.texts and "</script><b>" in page.texts


def test_a_series_name_cannot_end_the_script():
    page = Page(chart("t", [Line("</script><b>", [1, 2], [1, 2], "train")], width=300, height=100))
    assert json.loads(page.data[0])["series"][0]["name"] == "</script><b>" and "b" not in page.tags


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(UserError, match=r"not a run directory: it has no config\.json"):
        report.write_report(tmp_path)


def test_gaps_lift_the_line_and_lone_points_are_dots():
    svg = chart("t", [Line("a", range(7), [1, 2, None, 3, None, 4, 5], "train")], width=300, height=100)
    (path,) = re.findall(r' d="([^"]*)"', svg)
    assert re.sub(r"[\d. -]+", "", path) == "MLMML" and svg.count("<circle") == 1


def test_a_wide_range_is_logarithmic_where_that_is_left_open():
    lines = [Line("a", [1, 2, 3], [1.0, 100.0, 10000.0], "train")]
    ys = [y for _, y in re.findall(r"[ML]([\d.]+) ([\d.]+)", chart("t", lines, width=300, height=100, log=None))]
    assert math.isclose(float(ys[0]) - float(ys[1]), float(ys[1]) - float(ys[2]), abs_tol=0.2)
    ys = [y for _, y in re.findall(r"[ML]([\d.]+) ([\d.]+)", chart("t", lines, width=300, height=100))]
    assert float(ys[1]) - float(ys[2]) > 20 * (float(ys[0]) - float(ys[1]))


values = st.floats(-1e9, 1e9).filter(lambda v: v == 0 or abs(v) > 1e-9)


@given(values, values, st.integers(3, 12), st.booleans())
def test_linear_axes_hold_their_range_and_mark_it_roundly(a, b, count, round_ends):
    low, high = min(a, b), max(a, b)
    made = axis(low, high, 0.0, 100.0, count=count, round_ends=round_ends)
    assert -1e-6 <= made(low) <= made(high) <= 100 + 1e-6
    assert 1 <= len(made.ticks) <= count + 2 and list(made.ticks) == sorted(made.ticks)
    assert all(-1e-3 <= made(tick) <= 100.001 for tick in made.ticks)


@given(st.floats(-12, 12), st.floats(0.01, 20))
def test_logarithmic_axes_hold_their_range_with_few_marks(exponent, decades):
    low, high = 10.0**exponent, 10.0 ** (exponent + decades)
    made = axis(low, high, 0.0, 100.0, log=True)
    assert made.ticks == log_ticks(low, high) and 2 <= len(made.ticks) <= 9
    assert made.ticks[0] <= low * (1 + 1e-9) and made.ticks[-1] >= high * (1 - 1e-9)
    assert -1e-6 <= made(low) <= made(high) <= 100 + 1e-6


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.25, "0.25"),
        (1500, "1.5k"),
        (20_000_000, "20M"),
        (3e-5, "3e-05"),
        (-2000, "-2k"),
        (0.1 + 0.2, "0.3"),
    ],
)
def test_marks_are_short(value, text):
    assert label(value) == text


series = st.lists(st.none() | st.floats(-1e6, 1e6), max_size=3000)


@given(series)
def test_thinning_keeps_the_extremes_and_the_order(ys):
    line = Line("a", list(range(len(ys))), ys, "train")
    thin = thinned(line)
    assert len(thin.xs) <= charts.MAX_POINTS and list(thin.xs) == sorted(set(thin.xs))
    assert all(ys[x] == y for x, y in zip(thin.xs, thin.ys, strict=True))
    there = [y for y in ys if y is not None]
    if there:
        kept = [y for y in thin.ys if y is not None]
        assert (min(kept), max(kept)) == (min(there), max(there))


def test_thinning_a_long_line():
    ys: list[float | None] = [math.sin(i / 1000) for i in range(50_000)]
    ys[31_415], ys[27_182], ys[10_000:10_500] = 9.0, -9.0, [None] * 500
    thin = thinned(Line("a", list(range(50_000)), ys, "train"))
    assert charts.MAX_POINTS / 2 < len(thin.xs) <= charts.MAX_POINTS and {9.0, -9.0, None} <= set(thin.ys)


def test_thinning_keeps_the_band_with_its_line():
    xs = list(range(5000))
    line = thinned(Line("a", xs, [math.sin(x) for x in xs], "train", low=[-x for x in xs], high=[2 * x for x in xs]))
    assert len(line.xs) == charts.MAX_POINTS
    assert line.low == [-x for x in line.xs] and line.high == [2 * x for x in line.xs]


def test_a_band_is_an_outline_around_its_line_for_every_stretch_it_has():
    line = Line("a", [0, 1, 2, 3, 4], [1, 1, 1, 1, 1], "train", low=[0, 0, None, 0, 0], high=[2, 2, 2, 4, 3])
    band, path = re.findall(r' d="([^"]*)"', chart("t", [line], width=300, height=200))
    outlines = [[tuple(map(float, p.split())) for p in o.split("L")] for o in re.findall(r"M([^Z]*)Z", band)]
    assert [len(outline) for outline in outlines] == [4, 4] and path.count("L") == 4
    (x0, y2), (x1, _), (x1_back, y0), (x0_back, _) = outlines[0]
    assert (
        (x0, x1) == (x0_back, x1_back) and x0 < x1 and outlines[1][0][1] == 10.0
    )  # the highest is at the top: axes hold bands
    assert math.isclose((y0 + y2) / 2, float(path.split("L")[0].split()[1]), abs_tol=0.1)


def test_axes_are_named_and_the_lines_are_told_where_x_is_no_step():
    page = Page(
        chart("t", [Line("a", [1, 10, 100], [4, 2, 3], "train")], width=300, height=200, log_x=True, x="x <s>", y="y")
    )
    assert page.texts.count("x <s>") == 1 and page.texts.count("y") == 1
    lows = sorted({float(text["y"]) for text in page.of("text", "tick") if "transform" not in text})
    assert lows[-1] == 200 - 9 and lows[-1] - lows[-2] == charts.TITLE  # below the marks, and within the drawing
    (svg,) = page.of("svg")
    assert svg["aria-label"] == "t: y by x <s>; a: 4 at 1 to 3 at 100, between 2 and 4"
    drawn = json.loads(page.data[0])
    assert drawn["x"] == "x <s>" and drawn["frame"]["log"] is True
    ends = [float(x) for x in re.findall(r"[ML]([\d.]+)", page.of("path", "line")[0]["d"])]
    assert math.isclose(ends[1] - ends[0], ends[2] - ends[1], abs_tol=0.11)


def test_lines_that_go_back_have_no_readout():
    page = Page(chart("t", [Line("a", [1, 2, 1.5], [1, 2, 3], "train")], width=300, height=200, x="x", y="y"))
    assert page.data == [] and page.of("path", "line")[0]["d"].count("L") == 2


def test_averaging_does_not_lag_and_leaves_gaps():
    straight = [float(i) for i in range(50)]
    assert smoothed(straight, 7) == pytest.approx(straight)
    assert smoothed([1.0, None, 3.0, 8.0, 1.0], 1) == [1.0, None, 5.5, 4.0, 1.0]
    assert smoothed([], 3) == []

"""Exhibits say what they were given, all of it or how much is left out, and text in them is never more than text."""

import html
import json
import math
import re
import time

import numpy as np
import pytest
from html_pages import Page
from hypothesis import given, settings
from hypothesis import strategies as st

from research.core.errors import UserError
from research.train import exhibits as ex
from research.train.exhibits import games, plots, tables

BOXES = [[[0, 0, 2, 2]], []]
# Every exhibit of one text in every place that takes one.
WITH = {
    "confusion": lambda t: ex.confusion([[1, 2], [0, 3]], [t, "b"]),
    "gallery": lambda t: ex.gallery(np.zeros((2, 3, 2)), [t, t], [True, False]),
    "clips": lambda t: ex.clips(np.zeros((1, 2, 3, 4, 3)), [t]),
    "sounds": lambda t: ex.sounds([np.zeros(400)], 8000, [t]),
    "table": lambda t: ex.table([[t, 1], [None, True]], ["a", t]),
    "pairs": lambda t: ex.pairs([t, t], [t, "x"], ["x", t]),
    "curves": lambda t: ex.curves({t: ([1, 2], [3, 4]), "b": ([1], [2], [1], [3])}, t, t, title=t),
    "scatter": lambda t: ex.scatter({t: ([1, 2], [3, 4])}, t, t, title=t),
    "bars": lambda t: ex.bars({t: 1.0}, t, t, title=t, intervals={t: (0.5, 2)}),
    "calibration": lambda t: ex.calibration([[0.5, 0.4, 3]], title=t),
    "board_game": lambda t: ex.board_game([t, "x"], [t, t]),
    "levels": lambda t: ex.levels([t], [t]),
    "scenes": lambda t: ex.scenes([np.zeros((4, 4, 3)), np.zeros((2, 2))], BOXES, [[t], []], [[0.5], []]),
    "subtitles": lambda t: ex.subtitles([(0, 1, t)]),
}  # fmt: skip
HOSTILE = "\"'></td></svg></script><script>alert(1)</script><img src=http://x onerror=alert(1)>&amp;\x00\x1b\ud800\r"


def safe(fragment):
    """The page of a fragment, with nothing in it that a text could have brought."""
    page = Page(fragment)
    assert set(page.tags) <= {
        "figure", "figcaption", "img", "picture", "source", "div", "p", "span", "b", "small", "table", "caption", "thead", "tbody", "tr", "th", "td",
        "svg", "g", "line", "path", "circle", "rect", "text", "title", "image", "script", "audio", "ol", "li", "pre", "del", "ins",
    }  # fmt: skip
    assert all(attributes["type"] == "application/json" for attributes in page.of("script"))
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert all(reference.startswith("data:") for reference in page.references)
    fragment.encode()
    return page


@pytest.mark.parametrize("kind", WITH)
def test_hostile_text_is_text(kind):
    page = safe(WITH[kind](HOSTILE))
    told = page.text + "".join(str(v) for _, attributes in page.elements for v in attributes.values())
    shown = told.replace("\u2400", "\0").replace("\u241b", "\x1b").replace("\u240d", "\r").replace("?", "\ud800")
    assert "onerror=alert(1)>&amp;\x00\x1b\ud800\r" in shown
    assert [tag for tag in page.tags if tag in ("svg", "script", "img")] == [
        tag for tag in safe(WITH[kind]("plain")).tags if tag in ("svg", "script", "img")
    ]


@settings(max_examples=25)
@given(st.text(min_size=1, max_size=40))
@pytest.mark.parametrize("kind", sorted(WITH.keys() - {"clips", "sounds", "gallery", "scenes"}))
def test_any_text_leaves_the_page_whole(kind, text):
    safe(WITH[kind](text))


@pytest.mark.parametrize("kind", WITH)
def test_what_is_drawn_is_told_in_words_and_what_scrolls_can_be_reached(kind):
    page = Page(WITH[kind]("name"))
    assert all(svg["role"] == "img" and svg["aria-label"] for svg in page.of("svg"))
    assert all(image["alt"] for image in page.of("img")) and all(one["aria-label"] for one in page.of("audio"))
    assert all(
        one["tabindex"] == "0" and one["role"] == "region" and one["aria-label"] for one in page.of("div", "scrolled")
    )


EMPTY = {
    "gallery": lambda: ex.gallery(np.zeros((0, 4, 4)), []),
    "clips": lambda: ex.clips(np.zeros((0, 4, 4, 4, 3)), []),
    "sounds": lambda: ex.sounds([], 8000, []),
    "scenes": lambda: ex.scenes([], [], []),
    "confusion": lambda: ex.confusion(np.zeros((0, 0)), []),
    "table": lambda: ex.table([], ["a"]),
    "pairs": lambda: ex.pairs([], [], []),
    "subtitles": lambda: ex.subtitles([]),
    "curves": lambda: ex.curves({}, "x", "y"),
    "curves of nothing finite": lambda: ex.curves({"a": ([1, 2], [math.nan, math.inf])}, "x", "y"),
    "scatter": lambda: ex.scatter({"a": ([], [])}, "x", "y"),
    "bars": lambda: ex.bars({}, "x"),
    "calibration": lambda: ex.calibration(np.zeros((0, 3))),
    "calibration of no predictions": lambda: ex.calibration([[0.5, 0.5, 0]]),
    "board_game": lambda: ex.board_game([]),
    "levels": lambda: ex.levels([]),
}


@pytest.mark.parametrize("kind", EMPTY)
def test_nothing_to_show_is_no_error(kind):
    assert not re.search(r"\b(nan|inf)\b", safe(EMPTY[kind]()).text)


WRONG = {
    "confusion of another shape": (lambda: ex.confusion(np.zeros((2, 3)), ["a", "b"]), r"shape \(2, 3\) for 2 classes"),
    "confusion of no counts": (lambda: ex.confusion([[0.5]], ["a"]), "no counts"),
    "negative confusion": (lambda: ex.confusion([[-1]], ["a"]), "no counts"),
    "too short a row": (lambda: ex.table([[1]], ["a", "b"]), "row 0 of a table has 1 values"),
    "an unknown column": (lambda: ex.table([{"c": 1}], ["a"]), r"unknown columns \['c'\]"),
    "fewer outputs": (lambda: ex.pairs(["a"], [], ["a"]), "0 outputs for 1 sources"),
    "a backward subtitle": (lambda: ex.subtitles([(2, 1, "x")]), "subtitle 0"),
    "a subtitle of two parts": (lambda: ex.subtitles([(2, "x")]), "subtitle 0"),  # pyright: ignore
    "a curve of unequal parts": (lambda: ex.curves({"a": ([1, 2], [1])}, "x", "y"), "'a' has parts"),
    "a curve with half a band": (lambda: ex.curves({"a": ([1], [1], [1])}, "x", "y"), "'a' has parts"),
    "a scatter with a band": (lambda: ex.scatter({"a": ([1], [1], [1], [1])}, "x", "y"), "'a' has parts"),
    "an infinite bar": (lambda: ex.bars({"a": math.inf}, "x"), "bars of inf"),
    "bins of two columns": (lambda: ex.calibration([[0.5, 0.5]]), "shape"),
    "bins in percent": (lambda: ex.calibration([[50, 50, 1]]), "outside"),
    "fewer moves": (lambda: ex.board_game(["a"], []), "0 captions for 1 boards"),
    "no colour": (lambda: ex.levels(["a"], colours={"a": "red;}"}), "the colour of 'a'"),
    "a colour of two characters": (lambda: ex.levels(["a"], colours={"ab": "red"}), "the colour of 'ab'"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_bad_input_is_one_clear_line(kind):
    act, message = WRONG[kind]
    with pytest.raises(UserError, match=message):
        act()


def test_confusions_are_counts_with_shares_of_their_rows():
    page = Page(ex.confusion([[3, 1, 0], [0, 0, 0], [1, 1, 1998]], ["cat", "dog", "owl"]))
    cells = re.findall(r"<td class=\"([^\"]*)\" style=\"--share:([\d.]*)\">([\d,]+)(?:<small>([^/]*)<)?", ex.confusion(
        [[3, 1, 0], [0, 0, 0], [1, 1, 1998]], ["cat", "dog", "owl"]))  # fmt: skip
    assert [(count, html.unescape(share)) for _, _, count, share in cells] == [
        ("3", "75%"), ("1", "25%"), ("0", ""), ("0", ""), ("0", ""), ("0", ""), ("1", "<1%"), ("1", "<1%"), ("1,998", "100%"),
    ]  # fmt: skip
    assert [i for i, (style, *_) in enumerate(cells) if "hit" in style] == [0, 4, 8]
    assert float(cells[0][1]) == 0.75 and "2,000" in page.texts
    assert any(text == "99.85% of 2,004 right." for text in page.texts)


def test_of_many_classes_those_with_the_most_mistakes_are_shown():
    counts = np.eye(100, dtype=int) * 5
    counts[np.arange(90, 100), np.arange(50, 60)] = 7
    page = Page(ex.confusion(counts, [f"class {i}" for i in range(100)]))
    names = [f"class {i}" for i in (*range(10), *range(50, 60), *range(90, 100))]
    assert [text for text in page.texts if text.startswith("class ")] == names * 2
    assert any("70 of 100 classes left out, those with the fewest mistakes" in text for text in page.texts)


def test_numbers_stand_at_the_right_of_their_columns():
    rows = [["a", 1234567, np.float32(0.5)], {"name": "b", "loss": math.nan}, ["c", None, True]]
    page = Page(ex.table(rows, ["name", "params", "loss"]))
    assert page.texts[:3] == ["name", "params", "loss"]
    assert page.texts[3:] == ["a", "1,234,567", "0.5", "b", "nan", "c", "yes"]
    assert [("number" in (h.get("class") or "")) for h in page.of("th")] == [False, True, True]
    assert len(page.of("td", "number")) == 3 and len(page.of("td")) == 9


def test_what_is_too_much_is_counted():
    for fragment, words in (
        (ex.table([[i] for i in range(201)], ["a"]), "1 of 201 rows left out."),
        (ex.pairs(["a"] * 52, ["a"] * 52, ["b"] * 52), "2 of 52 texts left out."),
        (ex.subtitles([(i, i, "a") for i in range(1300)]), "1,000 of 1,300 subtitles left out."),
        (ex.curves({str(i): ([1, 2], [1, 2]) for i in range(17)}, "x", "y"), "1 of 17 lines left out."),
        (ex.scatter({str(i): ([1, 2], [1, 2]) for i in range(17)}, "x", "y"), "1 of 17 groups left out."),
        (ex.bars({str(i): i for i in range(41)}, "x"), "1 of 41 bars left out."),
        (ex.board_game(["a"] * 401), "1 of 401 boards left out."),
        (ex.levels(["a"] * 61), "1 of 61 levels left out."),
    ):
        assert any(text.endswith(words) for text in Page(fragment).texts), words


def test_differences_of_translations_are_marked():
    page = ex.pairs(["s"], ["The house is very green."], ["The big house is green!"])
    assert re.findall(r"<(del|ins)>(.*?)</", page) == [("del", "very"), ("del", "."), ("ins", "big"), ("ins", "!")]
    page = ex.pairs(["s", "t"], ["私は学生だ", "same"], ["私は先生だ", "same"])
    assert re.findall(r"<(del|ins)>(.*?)</", page) == [("del", "学"), ("ins", "先")]
    assert "1 of 2 outputs are their reference" in page


@given(st.text(alphabet="ab ,.<é学\n", max_size=30), st.text(alphabet="ab ,.<é学\n", max_size=30))
def test_marks_of_differences_change_no_text(output, reference):
    left, right = tables._compared(output, reference)
    assert [html.unescape(re.sub(r"</?(del|ins)>", "", side)) for side in (left, right)] == [output, reference]
    gone = html.unescape(re.sub(r"<del>.*?</del>", "", left, flags=re.DOTALL))
    come = html.unescape(re.sub(r"<ins>.*?</ins>", "", right, flags=re.DOTALL))
    assert "".join(gone.split()) == "".join(come.split())


def test_a_long_text_that_repeats_itself_is_compared_at_once_and_cut():
    start = time.process_time()
    page = Page(ex.pairs(["s"] * 50, ["a b " * 5000] * 50, ["the a " * 200] * 50))
    assert time.process_time() - start < 10  # a minute where every word may match everywhere
    assert sum("… 18,500 more characters" in text for text in page.texts) == 50


@given(st.integers(0, 10**8))
def test_times_of_subtitles_are_exact_to_the_millisecond(milliseconds):
    parts = [float(part) for part in tables.clock(milliseconds / 1000).split(":")]
    assert round(sum(part * 60**i for i, part in enumerate(reversed(parts))) * 1000) == milliseconds
    assert 2 <= len(parts) <= 3 and all(part < 60 for part in parts[1:])


def test_lines_go_through_their_points_and_lift_over_what_cannot_be_drawn():
    page = Page(ex.curves({"a": ([4, 3, 2, 1], [1, math.nan, 2, 1])}, "x", "y"))
    assert json.loads(page.data[0])["series"][0]["x"] == [1, 2, 3, 4]  # from left to right, for the readout
    assert json.loads(page.data[0])["series"][0]["y"] == [1, 2, None, 1]
    assert re.sub(r"[\d. -]+", "", page.of("path", "line")[0]["d"]) == "MLM"
    page = Page(ex.curves({"a": ([0, 1, 10, 100], [1, 0, 10, 1000])}, "x", "y", log_x=True, log_y=True))
    assert json.loads(page.data[0])["series"][0]["x"] == [1, 10, 100]
    assert json.loads(page.data[0])["series"][0]["y"] == [None, 10, 1000]


def test_lines_are_told_apart_by_hue_and_then_by_dashes():
    page = Page(ex.curves({str(i): ([1, 2], [i, i]) for i in range(16)}, "x", "y"))
    styles = [line["class"] for line in page.of("path", "line")]
    assert len(set(styles)) == 16 and [" dashed" in style for style in styles] == [False] * 8 + [True] * 8


def test_every_point_of_a_scatter_is_there_in_the_shape_of_its_group():
    page = Page(ex.scatter({"a": ([1, 2, math.nan], [1, 2, 3]), "b": ([3], [0])}, "x", "y"))
    first, second = (path["d"] for path in page.of("path", "mark"))
    circle, square = list(plots.SIGNS.values())[:2]
    assert first.count(circle) == first.count("M") == 2 and second.count(square) == second.count("M") == 1
    places = [tuple(map(float, at)) for at in re.findall(r"M([\d.]+) ([\d.]+)", first + second)]
    assert math.isclose(places[1][0] - places[0][0], places[2][0] - places[1][0], abs_tol=0.11)
    assert math.isclose(places[0][1] - places[1][1], places[2][1] - places[0][1], abs_tol=0.11)  # upwards
    assert any(text == "1 of 4 points left out." for text in page.texts)


def test_large_groups_of_points_are_thinned_alike():
    page = Page(ex.scatter({"a": np.arange(12_000).reshape(2, -1), "b": np.arange(4000).reshape(2, -1)}, "x", "y"))
    counts = [path["d"].count("M") for path in page.of("path", "mark")]
    assert counts == [3000, 1000] and "4,000 of 8,000 points left out." in page.texts


def test_bars_reach_from_zero_to_their_values():
    page = Page(ex.bars({"a": 2.0, "b": -1.0, "c": 0.5}, "x", intervals={"a": (1, 3)}))
    marks = [(float(r["x"]), float(r["width"])) for r in page.of("rect", "mark")]
    zero = marks[0][0]
    assert marks[2][0] == zero and math.isclose(marks[1][0] + marks[1][1], zero, abs_tol=0.11)
    assert [round(width / marks[0][1], 2) for _, width in marks] == [1, 0.5, 0.25]
    low, high = map(float, re.findall(r"M([\d.]+) [\d.]+v8", page.of("path", "whisker")[0]["d"]))
    assert [(at - zero) / marks[0][1] for at in (low, high)] == pytest.approx([0.5, 1.5], abs=0.01)
    assert page.of("svg")[0]["aria-label"] == "x: a 2, b -1, c 0.5"


def test_reliability_lies_where_it_should_and_its_error_is_the_mean_distance():
    page = Page(ex.calibration([[0.0, 0.1, 30], [0.5, 0.2, 60], [1.0, 1.0, 10], [0.7, 0.1, 0]]))
    assert "expected calibration error 21.00% over 100 predictions" in page.texts
    places = [(float(c["cx"]), float(c["cy"])) for c in page.of("circle")]
    first, middle, (right, top) = places
    left, bottom = first[0], first[1] + (first[1] - top) / 9
    assert ((middle[0] - left) / (right - left), (middle[1] - bottom) / (top - bottom)) == pytest.approx(
        (0.5, 0.2), abs=0.01
    )
    radii = [float(c["r"]) for c in page.of("circle")]
    assert radii[2] < radii[0] < radii[1]


def test_a_game_is_there_whole_where_no_script_runs():
    page = Page(ex.board_game(["x.\n..", "x.\n.o"], ["x a2", "o b1"]))
    assert page.texts == ["x.\n..", "x a2", "x.\n.o", "o b1"]
    assert [item["aria-label"] for item in page.of("li")] == ["board 1 of 2", "board 2 of 2"]
    assert not any("hidden" in attributes for _, attributes in page.elements) and not page.of("button")


def test_boards_may_be_fragments():
    page = Page(ex.board_game(["<svg></svg>", "<b>x</b>"], as_html=True))
    assert page.tags == ["ol", "li", "svg", "li", "b"]


@given(st.text(alphabet="#@$.<& \n", min_size=1, max_size=60))
def test_fields_of_a_level_keep_their_letters(text):
    page = Page(ex.levels([text]))
    assert page.text == text.strip("\n")
    coloured = {c for c in page.text if c in games.COLOURS}
    assert {span["style"] for span in page.of("span")} == {f"background:{games.COLOURS[c]}" for c in coloured}


def test_fields_of_a_level_have_the_colours_they_are_given():
    page = ex.levels(["aab\nca"], colours={"a": "#0f0", "b": "navy"})
    assert re.findall(r'<span style="background:(\S+)">(\w+)</span>', page) == [
        ("#0f0", "aa"),
        ("navy", "b"),
        ("#0f0", "a"),
    ]

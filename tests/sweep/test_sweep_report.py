"""The report of a sweep: whatever the results are, one page that refers to no other, with the figures that there is something to draw for."""

import html.parser
import json
import math
import re

import pytest

from research.sweep import figures, report


def line(number, fields, metric, status="complete", **more):
    return {
        "trial": number, "status": status, "fields": fields, "metric": metric, "train_loss": metric, "steps": 20, "seconds": 0.5,
        "curve": {"train": [[10, 4.0], [20, metric]], "eval": [[20, metric]]}, "rungs": [[20, metric]], **more,
    }  # fmt: skip


GRID = [
    line(n, {"optimizer.learning_rate": rate, "optimizer.kind": kind, "seed": seed}, 3 + abs(math.log10(rate) + 2) + 0.01 * seed)
    for n, (rate, kind, seed) in enumerate((r, k, s) for r in (1e-4, 1e-3, 1e-2, 1e-1) for k in ("adamw", "sgd") for s in (0, 1))
]  # fmt: skip


def written(folder, lines):
    described = {"experiment": "lm_tiny_text", "space": {"optimizer.learning_rate": [1, 2]}}
    (folder / "sweep.json").write_text(json.dumps(described))
    (folder / "results.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    return report.write_report(folder).read_text()


def parsed(page):
    """The page's text by tag. Every reference is into the page itself."""
    seen = []

    class Parser(html.parser.HTMLParser):
        def handle_starttag(self, tag, attrs):
            seen.append(tag)
            for name, value in attrs:
                if name in ("src", "href", "xlink:href"):
                    assert value.startswith("#") or value.startswith("data:"), value

    Parser().feed(page)
    assert not re.search(r"url\((?!#)", page)
    return seen


def test_a_grid_has_every_figure_and_its_best_trial_as_a_command(tmp_path):
    page = written(tmp_path, GRID)
    tags = parsed(page)
    names = {path.stem for path in (tmp_path / "figures").glob("*.png")}
    assert names == {path.stem for path in (tmp_path / "figures").glob("*.svg")} == {
        "by-optimizer.learning_rate", "by-optimizer.kind", "curves", "map-optimizer.learning_rate-optimizer.kind", "parallel", "importance",
    }  # fmt: skip
    assert tags.count("svg") == 6 and tags.count("tr") >= 17
    assert "research train lm_tiny_text --optimizer.learning-rate 0.01 --optimizer.kind adamw --seed 0" in page
    assert "Best: trial 8, held-out loss 3.0000" in page and "16 trials: 16 complete" in page


@pytest.mark.parametrize(
    "lines",
    [
        [],
        GRID[:1],
        [line(0, {"a": 1}, None, "diverged"), line(1, {"a": 2}, None, "diverged")],
        [line(0, {"a": None}, 3.0), line(1, {"a": 0.5}, 2.0), line(2, {"a": True}, 2.5), line(3, {"a": "x"}, None, "diverged")],
        [line(0, {"<script>alert(1)</script>": "<b>", "b": 1}, 3.0), line(1, {"<script>alert(1)</script>": "&", "b": 2}, 2.0)],
        [line(n, {"a": n}, 3.0) for n in range(300)],
        [line(0, {"a": 1}, 3.0, curve={"train": [], "eval": []}), line(1, {"a": 2}, 3.0, curve={"train": [[1, None]], "eval": []})],
    ],
)  # fmt: skip
def test_whatever_there_is_makes_a_page(tmp_path, lines):
    page = written(tmp_path, lines)
    parsed(page)
    assert "<script>alert" not in page and "<b>" not in page
    assert page.count("<tr>") >= len(lines)


def test_importance_is_the_share_of_the_variance_between_the_values_of_a_field():
    assert (
        figures.importance(GRID, "optimizer.learning_rate") > 0.99 and figures.importance(GRID, "optimizer.kind") < 1e-9
    )
    assert figures.swept(GRID) == ["optimizer.learning_rate", "optimizer.kind"]
    both = [line(n, {"a": n % 2, "b": n // 2}, 1.0 + n % 2 + n // 2) for n in range(4)]
    assert figures.importance(both, "a") == pytest.approx(0.5) == figures.importance(both, "b")
    assert figures.importance(GRID[:1], "optimizer.kind") == 0.0

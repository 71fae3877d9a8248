"""docs/foundations.md: its code runs, its numbers hold, its links lead to the functions that they name."""

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parent.parent / "docs" / "foundations.md"
TEXT = PAGE.read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
LINKS = sorted(set(re.findall(r"\[`(\w+)`\]\(([^)]+)\)", TEXT)))


def test_every_block_runs():
    """In order and in one namespace, as a reader would type them. Line numbers in a traceback are those of the page."""
    assert len(BLOCKS) == TEXT.count("```python") >= 7
    namespace: dict[str, object] = {"__name__": "foundations"}
    for block in BLOCKS:
        line = TEXT[: TEXT.index(block)].count("\n")
        exec(compile("\n" * line + block, str(PAGE), "exec"), namespace)


def test_its_check_can_fail():
    namespace: dict[str, object] = {}
    exec(BLOCKS[0], namespace)
    with pytest.raises(AssertionError):
        namespace["is_close"](0.2231, 0.2233)  # pyright: ignore[reportCallIssue]


@pytest.mark.parametrize(("name", "target"), LINKS)
def test_links_lead_to_the_function_they_name(name, target):
    source = (PAGE.parent / target).resolve().read_text(encoding="utf-8")
    assert re.search(rf"^(def|class) {name}\b", source, re.MULTILINE), f"{target} defines no {name}"


@pytest.mark.parametrize(
    "value", ["0.2231", "0.1$", "1.05", "2.1", "1.09998", "2.31613", "(0.5, 1.1)", "(0.75, 1.5)", "0.22."]
)
def test_the_page_states_the_value(value):
    assert value in TEXT


def test_the_loop_is_a_flow_chart():
    assert "```mermaid\nflowchart" in TEXT and len({name for name, _ in LINKS}) >= 15

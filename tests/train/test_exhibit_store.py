"""Exhibits are kept with their run, whole and in the order first shown, and stand on its page once each."""

import os

import numpy as np
import pytest
from html_pages import Page
from hypothesis import given
from hypothesis import strategies as st

from research.core.errors import UserError
from research.train import exhibits as ex
from research.train import report
from research.train.exhibits import look, store
from research.train.rundir import RunDir


@pytest.fixture
def run(tmp_path):
    with RunDir.open(tmp_path / "run", {"steps": 2}, {"a": 1}) as run:
        run.write_metrics({"step": 1, "split": "train", "loss": 1.0})
        run.write_sample(1, "a sample")
        yield run


def page_of(path):
    return report.write_report(path).read_text(encoding="utf-8")


def names(path):
    return sorted(file.name for file in (path / "exhibits").iterdir())


def test_exhibits_stand_between_the_curves_and_the_samples_in_order_and_once(run):
    for title in ("Zebras", "Apes", "<b>Bees</b> & \"ants'"):
        ex.show(run.path, title, f"<p>{len(title)} first</p>")
    ex.show(str(run.path), "  Apes ", "<p>4 second</p>")
    assert names(run.path) == ["01-zebras.html", "02-apes.html", "03-b-bees-b-ants.html"]
    text = page_of(run.path)
    page = Page(text)
    headings = [
        text for text in page.texts if text in ("Zebras", "Apes", "<b>Bees</b> & \"ants'", "Samples as it learned")
    ]
    assert headings == ["Zebras", "Apes", "<b>Bees</b> & \"ants'", "Samples as it learned"]
    assert [text for text in page.texts if text.endswith((" first", " second"))] == ["6 first", "4 second", "20 first"]
    assert text.index("Loss by step") < text.index("Zebras") and len(page.of("section", "exhibit")) == 3


def test_a_page_without_exhibits_is_what_it_was(run):
    before = page_of(run.path)
    assert "exhibit" not in before and look.STYLE not in before and look.SCRIPT not in before
    file = ex.show(run.path, "t", ex.board_game(["a", "b"]))
    during = page_of(run.path)
    assert look.STYLE in during and look.SCRIPT in during
    file.unlink()
    assert page_of(run.path) == before


def test_every_kind_of_exhibit_fits_on_one_page_that_stands_alone(run):
    ex.show(run.path, "Pictures", ex.gallery(np.zeros((2, 4, 4)), ["a", "b"]))
    ex.show(run.path, "Sounds", ex.sounds([np.zeros(100)], 8000, ["a"]))
    ex.show(run.path, "Lines", ex.curves({"a": ([1, 2], [1, 2])}, "x", "y") + ex.bars({"a": 1}, "x"))
    text = page_of(run.path)
    page = Page(text)
    assert page.references and all(reference.startswith("data:") for reference in page.references)
    assert "url(" not in text and "@import" not in text and "link" not in page.tags


def test_a_run_that_goes_on_keeps_its_exhibits_and_a_fresh_one_has_none(run):
    ex.show(run.path, "t", "<p>x</p>")
    run.cut_back(-1)
    run.close()
    with RunDir.open(run.path, {"steps": 3}, {"a": 1}):
        assert names(run.path) == ["01-t.html"]
    with RunDir.open(run.path, {"steps": 3}, {"a": 2}, fresh=True):
        assert not (run.path / "exhibits").exists()


def test_numbers_go_on_and_their_order_is_that_of_numbers(run):
    (run.path / "exhibits").mkdir()
    (run.path / "exhibits" / "99-old.html").write_text('<section class="exhibit"><h2>old</h2>\n</section>\n')
    (run.path / "exhibits" / "notes.txt").write_text("mine")
    (run.path / "exhibits" / ".02-torn.html.1-2").write_text("torn")
    assert ex.show(run.path, "new", "").name == "100-new.html"
    assert [text for text in Page(page_of(run.path)).texts if text in ("old", "new")] == ["old", "new"]


def test_titles_whose_names_are_alike_are_two_exhibits(run):
    for title in ("é", "è", "x" * 90, "x" * 91):
        ex.show(run.path, title, "")
    assert names(run.path) == ["01-exhibit.html", "02-exhibit.html", f"03-{'x' * 40}.html", f"04-{'x' * 40}.html"]


@given(st.lists(st.text(min_size=1, max_size=8).filter(str.strip), min_size=1, max_size=6))
def test_any_titles_are_found_again(tmp_path_factory, titles):
    path = tmp_path_factory.mktemp("run")
    RunDir.open(path, {}, {}).close()
    first = [ex.show(path, title, "<hr>") for title in titles]
    assert [ex.show(path, title, "<i></i>") for title in titles] == first
    page = Page("".join(store.sections(path)))
    assert len(set(first)) == len(store.fragments(path)) == len(page.of("i")) == len(page.of("h2")) and not page.of(
        "hr"
    )


def test_interrupted_while_it_is_replaced_an_exhibit_is_the_one_before(run, monkeypatch):
    ex.show(run.path, "t", "<p>before</p>")
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(UserError, match="No space left"):
            ex.show(run.path, "t", "<p>after</p>")
    assert names(run.path) == ["01-t.html"] and "before" in Page(page_of(run.path)).texts


def test_exhibits_beyond_the_size_of_a_page_stay_files_and_are_named(run, monkeypatch):
    monkeypatch.setattr(store, "LARGEST", 1000)
    for title, size in (("one", 600), ("two", 600), ("three", 100)):
        ex.show(run.path, title, f"<p>{'x' * size}</p>")
    page = Page(page_of(run.path))
    assert [text for text in page.texts if text in ("one", "two", "three")] == ["one", "two", "three"]
    assert "x" * 100 in page.texts and page.text.count("x" * 600) == 1
    assert any(text.startswith("exhibits/02-two.html has 0.0 MiB, too much") for text in page.texts)


def test_of_several_processes_the_first_writes(run, monkeypatch):
    monkeypatch.setattr(store.hosts, "is_first", lambda: False)
    assert ex.show(run.path, "t", "") == run.path / "exhibits" / "01-t.html"
    assert not (run.path / "exhibits").exists()


def test_a_folder_that_is_no_run_and_a_title_that_is_none(run, tmp_path):
    with pytest.raises(UserError, match="not a run directory"):
        ex.show(tmp_path, "t", "")
    with pytest.raises(UserError, match="empty title"):
        ex.show(run.path, " \n", "")
    (run.path / "exhibits").write_text("a file")
    with pytest.raises(UserError, match="cannot write"):
        ex.show(run.path, "t", "")

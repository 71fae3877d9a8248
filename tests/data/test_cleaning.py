"""Cleaning: each step and its count, the presets on whole texts, idempotence, and counts that add up."""

import dataclasses
import json
import unicodedata
from pathlib import Path

import hypothesis
import pytest
from hypothesis import strategies as st

from research.core.errors import UserError
from research.data.cleaning import (
    PRESETS,
    Cleaned,
    Config,
    Counts,
    clean,
    require_kept,
    tally,
    threshold_table,
)
from research.data.quality import THRESHOLDS, Rule

ENGLISH = (
    "The ship left the harbour at dawn, and by noon it had reached the first of the islands that the captain knew from his youth. "
    "Nobody on board had seen the lighthouse before, though many of them had heard their parents speak about it.\n\n"
    "They rowed ashore in two small boats with water, bread and rope. A path between the rocks led to a door that stood open. "
    "Inside, somebody had left a table, four chairs and a letter which began with the name of their vessel.\n"
    "What the letter said is not known. Have patience; the keeper will be back when the wind turns!"
)
WORDS = ENGLISH.split()
SHORT_LINES = "\n".join(" ".join(WORDS[start : start + 4]) + "." for start in range(0, len(WORDS), 4))
CHINESE = (
    "黎明时分，船离开了港口，到中午已经到达船长年轻时就熟悉的第一座岛屿。岸上的人们早已在等候，孩子们挥着手跑向沙滩。\n"
    "船员们把水、面包和绳子搬上两只小艇，慢慢划向岸边。石头之间有一条小路，通向一扇敞开的门。\n"
    "屋里摆着一张桌子、四把椅子，还有一封信，信的开头写着这条船的名字。没有人知道信里说了什么。等风向变了，守塔人就会回来！"
)


@pytest.mark.parametrize(
    ("text", "expected", "changes"),
    [
        ("a\r\nb\rc\u2028d\x0ce", "a\nb\nc\nd\ne", {"line_endings": 4}),
        ("a\x00b\u200bc\ufeff\td\n\x1b\u202ee\ud800", "abc\td\ne", {"control_characters": 6}),
        ("می\u200cخواهم 👩\u200d🚀", "می\u200cخواهم 👩\u200d🚀", {}),
        ("e\u0301", "é", {"normalised": 1}),
        ("e\u200b\u0301", "é", {"control_characters": 1, "normalised": 1}),
        ("ﬁ", "ﬁ", {}),
        ("a@b.example, c@d.example", "<EMAIL>, <EMAIL>", {"masked email": 2}),
        ("plain\n text ", "plain\n text ", {}),
    ],
)
def test_repairs_and_their_counts(text, expected, changes):
    assert clean(text) == Cleaned(expected, None, changes)


def test_a_placeholder_never_composes_with_what_follows():
    """ ">" and a combining solidus are one character in NFC, so a number with one behind it is left as it is."""
    once = clean("13800001234\u0338 13800001234")
    assert once.text == "13800001234\u0338 <PHONE>"
    assert clean(once.text) == Cleaned(once.text, None, {})


def test_normal_forms():
    assert clean("ﬁ １３８００００１２３４", Config(normalisation="NFKC")).text == "fi <PHONE>"
    assert clean("e\u0301", Config(normalisation="none")).text == "e\u0301"


@pytest.mark.parametrize("text", ["", " \n\t", "\x00\u200b", "\r\n"])
def test_blank_texts_are_dropped(text):
    cleaned = clean(text)
    assert (cleaned.text, cleaned.dropped_by) == (None, "empty")


def test_lines_are_filtered_and_paragraphs_stay_apart():
    text = "Home | About\n\nThis line is a sentence.  \n\n\nmenu\n\nPlease enable JavaScript to read this page.\nThis is another good line."
    config = Config(rules=tuple(rule for rule in THRESHOLDS["c4"] if rule.of == "line"))
    cleaned = clean(text, config)
    assert cleaned.text == "This line is a sentence.\n\nThis is another good line."
    assert cleaned.changes == {"line terminal_lines >= 1": 2, "line javascript <= 0": 1}


@pytest.mark.parametrize("preset", PRESETS)
def test_prose_passes_every_preset(preset):
    assert clean(ENGLISH, PRESETS[preset]).text == ENGLISH


@pytest.mark.parametrize("preset", PRESETS)
def test_chinese_prose_passes_the_rules_of_every_preset(preset):
    config = dataclasses.replace(PRESETS[preset], languages=("zh",))
    assert clean(CHINESE, config).text == CHINESE


@pytest.mark.parametrize(
    ("preset", "text", "dropped_by"),
    [
        ("gopher", "Too short.", "words >= 50"),
        ("gopher", ENGLISH.replace(" ", ""), "words >= 50"),
        ("gopher", "of to be the " * 20, "mean_word_length >= 3"),
        ("gopher", ENGLISH + " #hash" * 20, "hash_ratio <= 0.1"),
        ("gopher", "\n".join([ENGLISH.replace("\n", " ")] * 3), "duplicate_lines <= 0.3"),
        ("gopher", ENGLISH + " deep blue" * 20, "top_2gram <= 0.2"),
        ("c4", ENGLISH + "\nThe code if (a) { b } is not.", "curly_brackets <= 0"),
        ("c4", "Only one sentence is in here.", "language"),
        ("c4", "This is one sentence and that is all there is to it.", "sentences >= 3"),
        ("c4", CHINESE, "language"),
        ("fineweb", ENGLISH.replace(". ", " ").replace(".", "") + " lorem ipsum", "lorem_ipsum <= 0"),
        (
            "fineweb",
            ENGLISH + "\n\nWhat the letter said is known.\nWhat the letter said is known.",
            "duplicate_line_characters <= 0.01",
        ),
        ("fineweb", SHORT_LINES, "short_lines <= 0.67"),
    ],
)
def test_what_each_preset_drops(preset, text, dropped_by):
    assert clean(text, PRESETS[preset]).dropped_by == dropped_by


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"normalisation": "NFD"}, "'NFD'.*none, NFC, NFKC"),
        ({"personal": ("phone", "name")}, r"\['name'\].*email, iban"),
        ({"languages": ("en", "sv")}, r"\['sv'\].*en, de"),
        ({"min_confidence": 1.5}, "1.5.*between 0 and 1"),
    ],
)
def test_configs_that_cannot_be_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        Config(**fields)


CASES = [
    json.loads(line)["text"]
    for line in Path(__file__).with_name("personal_cases.jsonl").read_text("utf-8").splitlines()
]
TEXTS = st.lists(
    st.one_of(
        st.sampled_from(CASES),
        st.sampled_from(ENGLISH.split("\n") + CHINESE.split("\n") + ["Home", "{", "\n\n", "\r", " \u3000"]),
        st.text(max_size=6),
        st.text("e\u0301\u0338\u200b\u200d>\r\n\x00 ﬁ１3-.@", max_size=10),
    ),
    max_size=8,
).flatmap(lambda parts: st.sampled_from(["", " ", "\n"]).map(lambda between: between.join(parts)))
LOOSE = Config(
    "NFKC", languages=("en", "zh"), min_confidence=0.1, rules=tuple(r for r in THRESHOLDS["c4"] if r.of == "line")
)
CONFIGS = st.sampled_from(
    [*PRESETS.values(), LOOSE, Config("NFKC"), Config("none", ()), Config(personal=("phone",), local_ips=True)]
)


@hypothesis.settings(deadline=None, max_examples=200)
@hypothesis.given(TEXTS, CONFIGS)
def test_cleaning_is_idempotent(text, config):
    cleaned = clean(text, config)
    assert (cleaned.text is None) == (cleaned.dropped_by is not None)
    assert all(count > 0 for count in cleaned.changes.values())
    if cleaned.text is not None:
        assert cleaned.text.strip()
        assert clean(cleaned.text, config) == Cleaned(cleaned.text, None, {})


@hypothesis.settings(deadline=None)
@hypothesis.given(st.text(st.characters(exclude_categories=["Cc", "Cf", "Cs", "Cn", "Zl", "Zp"]), min_size=1))
def test_without_control_characters_the_default_is_normalisation(text):
    hypothesis.assume(text.strip())
    cleaned = clean(text, Config(personal=()))
    normal = unicodedata.normalize("NFC", text)
    assert cleaned == Cleaned(normal, None, {"normalised": 1} if normal != text else {})


def counted(texts: list[str], config: Config) -> Counts:
    return tally((text, clean(text, config)) for text in texts)


def test_counts_of_a_few_records():
    texts = ["a@b.example\r\n", "", "two\nlines here", "\x00"]
    config = Config(rules=(Rule("words", "<=", 2, "test"),))
    assert counted(texts, config).to_json() == {
        "records": 4,
        "kept": 1,
        "characters_in": 28,
        "characters_out": 8,
        "dropped": {"empty": 2, "words <= 2": 1},
        "changed": {"control_characters": 1, "line_endings": 1, "masked email": 1},
    }


@hypothesis.settings(deadline=None)
@hypothesis.given(st.lists(TEXTS, max_size=4), st.lists(TEXTS, max_size=4), st.lists(TEXTS, max_size=4), CONFIGS)
def test_counts_of_parts_add_up_in_any_grouping(first, second, third, config):
    a, b, c = (counted(texts, config) for texts in (first, second, third))
    whole = counted(first + second + third, config)
    assert (a + b) + c == a + (b + c) == whole == Counts() + whole
    assert whole.records == whole.kept + sum(whole.dropped.values())
    assert json.loads(json.dumps(whole.to_json())) == whole.to_json() == (c + b + a).to_json()


def test_nothing_left_is_an_error_that_names_the_rules():
    counts = counted(["Short.", "Also short.", ""], PRESETS["gopher"])
    with pytest.raises(
        UserError, match="zero records of web.jsonl .* of 3, 'words >= 50' dropped 2, 'empty' dropped 1"
    ):
        require_kept(counts, "web.jsonl")
    with pytest.raises(UserError, match="web.jsonl has no records"):
        require_kept(Counts(), "web.jsonl")
    kept = counted([ENGLISH], PRESETS["gopher"])
    assert require_kept(kept, "web.jsonl") is kept


def test_the_table_has_a_row_for_every_threshold():
    rows = threshold_table().splitlines()
    assert len(rows) == 2 + sum(map(len, THRESHOLDS.values()))
    assert (
        "| gopher_quality | document | words >= 50 | Rae et al. 2021, arXiv 2112.11446, appendix A.1.1, quality filtering |"
        in rows
    )

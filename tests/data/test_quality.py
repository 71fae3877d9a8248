"""Statistics of documents by hand and by brute force, and rules at their thresholds."""

import hypothesis
import pytest
from hypothesis import strategies as st

from research.core.errors import UserError
from research.data.quality import STATISTICS, THRESHOLDS, Document, Rule, first_broken, keeps, measure, ngram_fractions

CHINESE = (
    "黎明时分，船离开了港口，到中午已经到达船长年轻时就熟悉的第一座岛屿。岸上的人们早已在等候，孩子们挥着手跑向沙滩。"
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Two words, (here).", ["Two", "words,", "(here)."]),
        ("  spaced\n\tout  ", ["spaced", "out"]),
        ("你好，世界。", ["你", "好，", "世", "界。"]),
        ("用GPT-4写的 code", ["用", "GPT-4", "写", "的", "code"]),
        ("食べました", ["食", "べました"]),
        ("", []),
    ],
)
def test_words(text, words):
    assert Document(text).words == words


@pytest.mark.parametrize(
    ("statistic", "text", "value"),
    [
        ("words", "a b  c", 3),
        ("mean_word_length", "a bcd", 2),
        ("hash_ratio", "# a b #c", 0.5),
        ("ellipsis_ratio", "wait... what… no.", 2 / 3),
        ("bullet_lines", "- a\n\n • b\nc\nd", 0.5),
        ("ellipsis_lines", "a...\nb…\nc\n", 2 / 3),
        ("alphabetic_words", "a 1 2 b3", 0.5),
        ("alphabetic_words", "漢字 1", 2 / 3),
        ("stop_words", "The cat, and the dog (of) old.", 3),
        ("duplicate_lines", "a\nb\na\n\na", 0.5),
        ("duplicate_line_characters", "aaa\nb\naaa", 3 / 7),
        ("duplicate_paragraphs", "a\nb\n\nc\n \na\nb", 1 / 3),
        ("duplicate_paragraph_characters", "aa\n\nb\n\naa", 2 / 5),
        ("terminal_lines", "One.\nTwo\n三。\n\u201cFour?\u201d", 0.75),
        ("short_lines", "x" * 29 + "\n" + "x" * 30, 0.5),
        ("sentences", "One. Two! (Three?) four\nfive", 5),
        ("sentences", "Version 1.5 is out.", 1),
        ("sentences", "一。二！三？", 3),
        ("javascript", "Please enable JavaScript.", 1),
        ("policy", "See our Privacy Policy", 1),
        ("lorem_ipsum", "Lorem Ipsum dolor", 1),
        ("curly_brackets", "{", 1),
        ("curly_brackets", "()", 0),
    ],
)
def test_statistics_by_hand(statistic, text, value):
    assert STATISTICS[statistic](Document(text)) == pytest.approx(value)


def test_an_empty_text_has_every_statistic():
    assert set(measure("")) == set(STATISTICS)
    assert set(measure("").values()) == {0.0}


def brute_force(words: list[str]) -> dict[str, float]:
    total = sum(map(len, words)) or 1
    fractions = {}
    for n in range(2, 11):
        grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
        if n <= 4:
            most = max(map(grams.count, grams), default=0)
            of_most = [gram for gram in grams if grams.count(gram) == most]
            top = max(of_most, key=lambda gram: len("".join(gram))) if most > 1 else None
            starts = [i for i, gram in enumerate(grams) if gram == top]
        else:
            starts = [i for i, gram in enumerate(grams) if gram in grams[:i]]
        covered = {i + offset for i in starts for offset in range(n)}
        fractions[f"{'top' if n <= 4 else 'duplicate'}_{n}gram"] = sum(len(words[i]) for i in covered) / total
    return fractions


@hypothesis.settings(deadline=None)
@hypothesis.given(
    st.lists(st.sampled_from(["a", "bb", "ccc", "dd"]), max_size=12).flatmap(
        lambda phrase: st.lists(st.sampled_from([phrase, phrase[:6], ["a"], ["eeee"]]), max_size=4).map(
            lambda parts: sum(parts, [])
        )
    )
)
def test_ngram_fractions_against_brute_force(words):
    assert ngram_fractions(words) == pytest.approx(brute_force(words))


def test_repeated_phrases_are_seen():
    phrase = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    assert ngram_fractions(phrase)["duplicate_10gram"] == ngram_fractions(phrase)["top_2gram"] == 0
    assert ngram_fractions(phrase * 2)["duplicate_10gram"] == pytest.approx(0.5)
    assert ngram_fractions(["a", "b"] * 10)["top_2gram"] == 1


@pytest.mark.parametrize(("bound", "at"), [(">=", True), ("<=", True), (">", False), ("<", False)])
def test_rules_at_their_threshold(bound, at):
    assert keeps(Rule("words", bound, 2, "test"), Document("two words")) == at
    assert keeps(Rule("words", bound, 2, "test"), Document("now three words")) == (bound[0] == ">")


def test_word_length_and_stop_words_pass_over_text_without_spaces():
    rules = (Rule("mean_word_length", ">=", 3, "test"), Rule("stop_words", ">=", 2, "test"))
    assert first_broken(rules, Document(CHINESE)) is None
    assert first_broken(rules, Document("ab cd ef")) == rules[0]
    assert first_broken(rules, Document("abcd efgh")) == rules[1]
    assert first_broken(rules, Document("an English text and one word: 漢字")) is not None
    assert first_broken(rules, Document("เรือออกจากท่าเรือตอนรุ่งสาง")) is None


def test_chinese_prose_passes_gopher():
    assert first_broken(THRESHOLDS["gopher_quality"] + THRESHOLDS["gopher_repetition"], Document(CHINESE)) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"statistic": "wrods"}, "statistic is 'wrods'.*words"),
        ({"bound": "=="}, "bound is '=='.*>="),
        ({"of": "page"}, "of is 'page'.*document, line"),
    ],
)
def test_rules_that_cannot_be_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        Rule(**{"statistic": "words", "bound": ">=", "value": 1, "source": "test", **changes})


def test_the_published_values():
    """The thresholds once more, typed from the papers: Rae et al. 2021, appendix A.1.1 and table A1; Raffel et al. 2020, section 2.2 (final
    version); Penedo et al. 2024, table 2."""
    written = {name: {str(rule) for rule in rules} for name, rules in THRESHOLDS.items()}
    grams = [(2, 0.2), (3, 0.18), (4, 0.16), (5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.1)]
    assert written["gopher_repetition"] == {
        *("duplicate_lines <= 0.3", "duplicate_paragraphs <= 0.3"),
        *("duplicate_line_characters <= 0.2", "duplicate_paragraph_characters <= 0.2"),
        *(f"{'top' if n <= 4 else 'duplicate'}_{n}gram <= {value}" for n, value in grams),
    }
    assert written["gopher_quality"] == {
        *("words >= 50", "words <= 100000", "mean_word_length >= 3", "mean_word_length <= 10"),
        *("hash_ratio <= 0.1", "ellipsis_ratio <= 0.1", "bullet_lines <= 0.9", "ellipsis_lines <= 0.3"),
        *("alphabetic_words >= 0.8", "stop_words >= 2"),
    }
    flags = {"javascript <= 0", "policy <= 0", "lorem_ipsum <= 0", "curly_brackets <= 0"}
    assert written["c4"] == {"terminal_lines >= 1", "words >= 5", "sentences >= 3", *flags}
    assert written["fineweb_c4"] == {"words >= 3", "sentences >= 5", *flags}
    assert written["fineweb"] == {"terminal_lines >= 0.12", "duplicate_line_characters <= 0.01", "short_lines <= 0.67"}
    assert all(rule.source for rules in THRESHOLDS.values() for rule in rules)


@hypothesis.settings(deadline=None)
@hypothesis.given(st.text("ab .\n!…-#你。", max_size=60))
def test_fractions_are_fractions(text):
    for name, value in measure(text).items():
        assert value >= 0
        if name not in ("words", "mean_word_length", "hash_ratio", "ellipsis_ratio", "sentences", "stop_words"):
            assert value <= 1

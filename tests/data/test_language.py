"""The language filter: scripts, function words, and how sure it is."""

import hypothesis
import pytest
from hypothesis import strategies as st

from research.data.language import FUNCTION_WORDS, language, letters_by_script

SENTENCES = {
    "en": "The ship left the harbour at dawn, and by noon it had reached the first of the islands that the captain knew.",
    "de": "Das Schiff verließ den Hafen bei Sonnenaufgang, und gegen Mittag hatte es die erste der Inseln erreicht.",
    "fr": "Le navire quitta le port à l'aube et, vers midi, il avait atteint la première des îles que le capitaine connaissait.",
    "es": "El barco dejó el puerto al amanecer y, hacia el mediodía, había llegado a la primera de las islas que conocía.",
    "it": "La nave lasciò il porto all'alba e verso mezzogiorno aveva raggiunto la prima delle isole che il capitano conosceva.",
    "pt": "O navio deixou o porto ao amanhecer e, por volta do meio-dia, já tinha chegado à primeira das ilhas que conhecia.",
    "nl": "Het schip verliet de haven bij zonsopgang en tegen de middag had het het eerste van de eilanden bereikt.",
    "zh": "黎明时分，船离开了港口，到中午已经到达船长年轻时就熟悉的第一座岛屿。",
    "ja": "夜明けに船は港を離れ、正午には船長が若いころから知っている最初の島に着いた。",
    "ko": "새벽에 배는 항구를 떠났고 정오에는 첫 번째 섬에 닿았다.",
    "ru": "На рассвете корабль покинул гавань и к полудню достиг первого из островов.",
    "ar": "غادرت السفينة الميناء عند الفجر",
    "el": "Το πλοίο έφυγε από το λιμάνι την αυγή",
    "hi": "जहाज भोर में बंदरगाह से निकल गया",
    "th": "เรือออกจากท่าเรือตอนรุ่งสาง",
    "he": "הספינה עזבה את הנמל עם שחר",
}


@pytest.mark.parametrize("code", SENTENCES)
def test_a_sentence_is_told(code):
    found, confidence = language(SENTENCES[code])
    assert found == code
    assert confidence > 0.5


@pytest.mark.parametrize(
    "text",
    [
        "Fartyget lämnade hamnen i gryningen och vid middagstid hade det nått den första av de öar som kaptenen kände.",  # Swedish
        "Statek opuścił port o świcie, a w południe dotarł do pierwszej z wysp, które kapitan znał z młodości.",  # Polish
        "Gemi şafakta limandan ayrıldı ve öğlene doğru kaptanın bildiği adaların ilkine ulaştı.",  # Turkish
        "Anna Berg, Paul Klein, Maria Sanchez, John Smith",
    ],
)
def test_other_languages_and_names_are_not_taken_for_one_we_know(text):
    assert language(text)[1] < 0.2


def test_nothing_to_tell_from():
    assert language("") == language("12 + 34 = 46 !!") == ("und", 0.0)
    assert language("Xylophon") == ("und", 0.0)


def test_a_few_foreign_names_do_not_turn_a_chinese_text():
    code, confidence = language("他在 GitHub 上发布了 Python 程序，许多开发者都在使用这个程序，并且提出了改进的意见。")
    assert code == "zh"
    assert 0.5 < confidence < 1


def test_more_evidence_gives_more_confidence():
    confidences = [language(" ".join([SENTENCES["en"]] * count))[1] for count in (1, 2, 8)]
    assert confidences == sorted(confidences)
    assert confidences[0] < confidences[-1] < 1


def test_confidence_by_hand():
    assert language("the they") == ("en", 2 / 3)  # two hits, none for another language
    assert language("is") == ("en", pytest.approx(0.5 / 2))  # half a hit for English, half for Dutch
    assert language("the " + "xx " * 19) == ("en", pytest.approx(1 / 2 * (1 / 20) / 0.15))
    assert language("the they жж жж") == ("en", pytest.approx(2 / 3 * 7 / 11))


def test_letters_are_counted_by_script():
    assert {name: count for name, count in letters_by_script("Abc 漢字かなカナ жд 12").items() if count} == {
        "Han": 2,
        "Kana": 4,
        "Latin": 3,
        "Cyrillic": 2,
    }


@hypothesis.settings(deadline=None)
@hypothesis.given(st.text())
def test_confidence_is_a_fraction(text):
    code, confidence = language(text)
    assert 0 <= confidence <= 1
    assert code in {*SENTENCES, "und"}
    assert (confidence == 0) == (code == "und")


def test_function_words_are_single_lower_case_words():
    assert all(word == word.lower() and word.isalpha() for words in FUNCTION_WORDS.values() for word in words)

"""Which language a text is in, told from Unicode scripts and frequent function words: no model, nothing to download.

What to expect of it. It is a filter for whole documents, not a classifier of single sentences.

- A script that one large language owns decides at once: Kana is Japanese, Hangul Korean, Greek Greek, Thai Thai, Hebrew Hebrew, and Han
  without Kana Chinese. Simplified and traditional characters, Mandarin and Cantonese are one code, `zh`.
- A script that several languages share gets the code of the largest: Cyrillic is `ru` (so Ukrainian, Bulgarian and Serbian are too), Arabic
  `ar` (so Persian and Urdu are), Devanagari `hi` (so Marathi and Nepali are).
- Latin script is told apart by function words for the languages of `FUNCTION_WORDS`. A language outside it usually has few of those words,
  and so a low confidence, but a close relative may pass: Catalan for Spanish, Afrikaans for Dutch. Program code may pass for English.
- Texts of fewer than about ten words, lists of names and tables give low confidence or `und` (undetermined).
"""

import re
from collections import Counter
from collections.abc import Mapping

UNDETERMINED = "und"

# Ranges of letters by script, from the blocks of the Unicode Standard (Blocks.txt).
SCRIPTS: Mapping[str, str] = {
    "Han": "\u3005\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af",
    "Kana": "\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\uff66-\uff9d",
    "Hangul": "\u1100-\u11ff\u3131-\u318e\uac00-\ud7a3",
    "Latin": "A-Za-z\u00aa\u00ba\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u1e00-\u1eff\uff21-\uff3a\uff41-\uff5a",
    "Cyrillic": "\u0400-\u0481\u048a-\u052f",
    "Arabic": "\u0620-\u064a\u066e-\u06d3\u06fa-\u06ff\u0750-\u077f\ufb50-\ufdff\ufe70-\ufefc",
    "Greek": "\u0370-\u03ff\u1f00-\u1fff",
    "Devanagari": "\u0900-\u0963\u0971-\u097f",
    "Thai": "\u0e01-\u0e3a\u0e40-\u0e4e",
    "Hebrew": "\u05d0-\u05ea\u05ef-\u05f2",
}

_LANGUAGE_OF_SCRIPT = {
    "Hangul": "ko",
    "Cyrillic": "ru",
    "Arabic": "ar",
    "Greek": "el",
    "Devanagari": "hi",
    "Thai": "th",
    "Hebrew": "he",
}

# The most frequent articles, pronouns, prepositions, conjunctions and auxiliaries; elided forms (l', d', qu') without the apostrophe.
FUNCTION_WORDS: Mapping[str, frozenset[str]] = {
    code: frozenset(words.split())
    for code, words in {
        "en": "the of and to in is that it for was on are as with his they at be this have from or had by but not what all were we when your "
        "can said there an which she do how their if will would about he you has been its who my our than them these into could no a i",
        "de": "der die und in den von zu das mit sich des auf für ist im dem nicht ein eine als auch es an werden aus er hat dass sie nach "
        "wird bei einer um am sind noch wie einem über einen so zum war haben nur oder aber vor zur bis mehr durch man sein wurde ich wir",
        "fr": "de la le et les des en un du une que est pour qui dans a par plus pas au sur ne se ce il sont avec ou son mais comme on lui "
        "nous sa aux elle y cette tout ont été ses être fait leur même ces d l qu n s c j je vous deux sans entre où aussi",
        "es": "de la que el en y a los se del las un por con no una su para es al lo como más o pero sus le ha me si sin sobre este ya entre "
        "cuando todo esta ser son dos también fue había era muy años hasta desde está mi porque qué sólo han yo hay nos",
        "it": "di che e la il un a è per in una mi sono non si ha con i da lo le ho del della gli al nel dei ma come più alla se anche "
        "questo dal suo delle sua nella ci era essere ed stato tra o quando molto su degli cosa l d dell all ne",
        "pt": "de a o que e do da em um para é com não uma os no se na por mais as dos como mas foi ao ele das tem à seu sua ou ser quando "
        "muito há nos já está eu também só pelo pela até isso ela entre era depois sem mesmo aos são você",
        "nl": "de van een het en in is dat op te zijn met voor niet aan er om ook als die dan bij of uit nog naar heeft hij ik maar door over "
        "ze wordt zich was worden deze kan tot je hebben meer we wel geen zo dit werd deze haar al wat men hun",
    }.items()
}
_FULL_COVERAGE = 0.15  # running text has at least this share of its language's function words; English has about 0.4

_LETTERS = {script: re.compile(f"[{ranges}]+") for script, ranges in SCRIPTS.items()}
_LANGUAGES_OF_WORD = {
    word: tuple(code for code, words in FUNCTION_WORDS.items() if word in words)
    for word in sorted(frozenset().union(*FUNCTION_WORDS.values()))
}


def letters_by_script(text: str) -> dict[str, int]:
    """Returns how many letters of each script of `SCRIPTS` the text has, in the table's order."""
    return {script: sum(map(len, pattern.findall(text))) for script, pattern in _LETTERS.items()}


def language(text: str) -> tuple[str, float]:
    """Returns (ISO 639-1 code, confidence in [0, 1]) of the language that most of the text is in; ("und", 0.0) where nothing tells.

    The confidence is the share of letters in the language's scripts. For Latin script it is multiplied by best / (best + second + 1), the
    counts of function words of the two likeliest languages (a word of k languages counts 1/k for each), and by how far the best
    language's share of all words reaches 0.15. It orders texts; it is not a probability.
    """
    letters = letters_by_script(text)
    total = sum(letters.values())
    if total == 0:
        return UNDETERMINED, 0.0
    shares = {"cjk": letters.pop("Han") + letters["Kana"], **letters}
    kana = shares.pop("Kana")
    script = max(shares, key=lambda name: shares[name])
    share = shares[script] / total
    if script == "cjk":  # running Japanese is about half Kana; Chinese has a few in names
        return ("ja" if kana > 0.1 * shares["cjk"] else "zh"), share
    if script == "Latin":
        code, confidence = _latin_language(text)
        return code, share * confidence
    return _LANGUAGE_OF_SCRIPT[script], share


def _latin_language(text: str) -> tuple[str, float]:
    words = _LETTERS["Latin"].findall(text.lower())
    scores = dict.fromkeys(FUNCTION_WORDS, 0.0)
    for word, count in Counter(words).items():
        codes = _LANGUAGES_OF_WORD.get(word, ())
        for code in codes:
            scores[code] += count / len(codes)
    first, second = sorted(scores, key=lambda code: -scores[code])[:2]  # a stable sort: ties go to the table's order
    if scores[first] == 0:
        return UNDETERMINED, 0.0
    certainty = scores[first] / (scores[first] + scores[second] + 1)
    return first, certainty * min(1.0, scores[first] / len(words) / _FULL_COVERAGE)

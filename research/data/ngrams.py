"""Words of a text and 64-bit hashes of its n-grams: the units in which texts are compared for near duplicates and overlap.

A word is what whitespace delimits, without case and without punctuation (Brown et al. 2020, arXiv 2005.14165, appendix C).
In scripts that are written without spaces (Chinese, Japanese, Thai, Lao, Tibetan, Burmese, Khmer) every character is a
word, so an n-gram there is n characters. That holds for each character, not for each document: a text of two scripts is cut
alike wherever it stands, and a small edit cannot change how the rest of a document is cut.

Case, punctuation and compatibility forms are those of Python's Unicode tables: a character that a later version of Unicode
adds can make another word in a later Python. None of those of Unicode 14 (Python 3.11) differs in 15.1 (Python 3.13).
"""

import functools
import re
import sys
import unicodedata
from collections.abc import Sequence
from hashlib import blake2b

import numpy as np

from research.data.permutation import mix

_UNSPACED = re.compile(
    "["
    "\u0e00-\u0eff"  # Thai, Lao
    "\u0f00-\u0fff"  # Tibetan
    "\u1000-\u109f"  # Burmese
    "\u1780-\u17ff"  # Khmer
    "\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff"  # iteration marks, Hiragana, Katakana
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Han
    "]"
)


def words(text: str) -> list[str]:
    """Returns the words of `text` in order: compatibility forms unified (NFKC), case folded, punctuation and symbols
    (Unicode's categories P and S) deleted, split at whitespace; each character of a script without spaces is a word."""
    folded = unicodedata.normalize("NFKC", text).casefold().translate(_punctuation())
    if not folded.isascii():
        folded = _UNSPACED.sub(r" \g<0> ", folded)
    return folded.split()


def ngram_hashes(tokens: Sequence[str], n: int) -> np.ndarray:
    """Returns a 64-bit hash of every run of n words, in order: uint64, [max(len(tokens) - n + 1, 0)].

    A word is hashed by BLAKE2b, an n-gram by mixing the hashes of its words in order. Equal n-grams have equal hashes in
    every process and on every machine; different ones collide with probability about 2^-64.
    """
    hashes = np.fromiter(map(_word_hash, tokens), np.uint64, len(tokens))
    count = max(len(tokens) - n + 1, 0)
    result = hashes[:count]
    for offset in range(1, n):
        result = mix(result) ^ hashes[offset : offset + count]
    return result


@functools.cache
def _punctuation() -> dict[int, None]:
    return {code: None for code in range(sys.maxunicode + 1) if unicodedata.category(chr(code))[0] in "PS"}


@functools.lru_cache(maxsize=1 << 16)  # the frequent words of a corpus; about 10 MB when full
def _word_hash(word: str) -> int:
    return int.from_bytes(blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")

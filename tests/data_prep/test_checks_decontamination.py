"""Decontamination against a naive search, and what becomes of pairs and texts that hold evaluation tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_prep.checks import check
from data_prep.checks.corpus import decontaminate
from data_prep.checks.decontamination import Units, fields_of, index_tasks, judge
from data_prep.checks.languages import fold, is_unspaced
from data_prep.errors import UserError
from data_prep.readers import read_jsonl, write_jsonl
from data_prep.records import AugmentedText, Chain, Pair
from data_prep.settings import CheckSettings, DecontaminateSettings, RenderSettings, TaskSettings
from data_prep.templates.render import render

QUESTION = "In which year did the keeper of the lighthouse at Skarsund first wind the clock by hand?"
SHORT = "Who kept the light at Skarsund?"
PASSAGE = "the tower stood on a rock and the rock stood in the sea for a hundred years or more"
CHINESE = "斯卡松德灯塔的看守人每天晚上给时钟上发条并记录过往船只"


def write_tasks(path: Path, *rows: dict[str, Any]) -> CheckSettings:
    write_jsonl(path, rows)
    return CheckSettings(checks=("decontamination",), decontaminate=(path,))


def verdicts(of: CheckSettings, *parts: tuple[str, str, str]) -> list[str | None]:
    """Of (text, question, answer) each."""
    reason = judge(of, Path())
    return [reason(Pair(question, answer), AugmentedText("d", text)) for text, question, answer in parts]


def test_thirteen_words_in_a_row_are_a_hit_and_twelve_are_none(tmp_path: Path):
    of = write_tasks(tmp_path / "tasks.jsonl", {"question": QUESTION, "answer": PASSAGE})
    words = QUESTION.split()
    got = verdicts(
        of,
        ("A text.", "Say, " + " ".join(words[2:15]).upper() + "!", "a"),
        ("A text.", " ".join(words[2:14]), "a"),
        ("A text.", "Why?", "Because " + PASSAGE.replace(" ", ", ")),
        ("Once " + PASSAGE + ".", "Why?", "a"),
        ("A text.", " ".join(reversed(words)), "a"),
        ("A text.", " ".join([*words[1:13], words[0], *words[13:]]), "a"),
    )
    assert got == ["question_overlap", None, "answer_overlap", "raw_text_overlap", None, None]


def test_a_shorter_field_is_met_where_it_is_a_whole_sentence_or_line(tmp_path: Path):
    of = write_tasks(tmp_path / "tasks.jsonl", {"question": SHORT, "answer": "Dahl. She did, with Olsen's help."})
    got = verdicts(
        of,
        ("A text.", "who kept the light, at SKARSUND", "a"),
        ("A text.", f"{SHORT}\nOptions:\n- Dahl\n- Olsen", "a"),
        ("A text.", "Tell me who kept the light at Skarsund then", "a"),
        ("A text.", "q", "dahl she did with olsens help"),
        ("A text.", "q", "It was Dahl. She did, with Olsen's help."),
        ("A text.", "q", "Dahl! She did, with Olsen\N{RIGHT SINGLE QUOTATION MARK}s help! And so on."),
        (f"A text. {SHORT} It asks.", "q", "a"),
        ("A text asks who kept the light at Skarsund then.", "q", "a"),
        ("A text. Who kept the light at Skarsund then?", "q", "a"),
        ("A text. Then who kept the light at Skarsund?", "q", "a"),
    )
    over = ["question_overlap", "question_overlap", None, None, None, "answer_overlap", "raw_text_overlap"]
    assert got == [*over, None, None, None]


def test_chinese_is_compared_by_characters(tmp_path: Path):
    of = write_tasks(tmp_path / "tasks.jsonl", {"question": CHINESE})
    asked = [("文", CHINESE[3:23], "a"), ("文", CHINESE[3:22], "a"), (f"前。{CHINESE}后", "q", "a")]
    assert verdicts(of, *asked) == ["question_overlap", None, "raw_text_overlap"]
    assert verdicts(of.model_copy(update={"decontaminate_characters": 10}), ("文", CHINESE[5:15], "a")) != [None]


def test_files_keys_and_counts(tmp_path: Path):
    rows = [{"question": QUESTION, "choices": {"text": ["Yes", SHORT]}, "id": 3, "none": None}]
    write_jsonl(tmp_path / "tasks.jsonl.gz", rows)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "tasks.parquet")
    for name in ("tasks.jsonl.gz", "tasks.parquet"):
        of = CheckSettings(checks=("decontamination",), decontaminate=(tmp_path / name,))
        assert index_tasks(of).counts == {"tasks": 1, "fields": 3, "too_short": 1}
        keyed = of.model_copy(update={"decontaminate_keys": ("choices",)})
        assert list(fields_of(rows[0], keyed.decontaminate_keys)) == ["Yes", SHORT]
        assert verdicts(keyed, ("A text.", QUESTION, "a"), ("A text.", SHORT, "a")) == [None, "question_overlap"]
        with pytest.raises(UserError, match="no row has a string under answer"):
            index_tasks(of.model_copy(update={"decontaminate_keys": ("answer",)}))


def test_settings_that_do_not_go_together_are_told(tmp_path: Path):
    write_jsonl(tmp_path / "in.jsonl", [])
    for of, told in (
        (CheckSettings(checks=("decontamination",)), "no task file"),
        (CheckSettings(decontaminate=(tmp_path / "in.jsonl",)), "not among the checks"),
    ):
        with pytest.raises(UserError, match=told):
            check(of, tmp_path / "in.jsonl", tmp_path / "out.jsonl")


def test_a_text_that_holds_a_task_is_trained_on_nowhere(tmp_path: Path):
    of = write_tasks(tmp_path / "tasks.jsonl", {"question": QUESTION})
    bodies = {"clean": "Nothing to see.", "dirty": f"Before. {QUESTION} After.", "bare": f"{QUESTION}"}
    documents = [{"id": name, "text": body * 2} for name, body in bodies.items()]
    write_jsonl(tmp_path / "documents.jsonl", documents)

    def text(name: str, pairs: tuple[Pair, ...], second: bool = False) -> AugmentedText:
        start = len(bodies[name]) * second
        return AugmentedText(name, bodies[name], pairs, start, start + len(bodies[name]))

    good, bad = Pair("Is it seen?", "It is not."), Pair(QUESTION, "1874")
    texts = (text("clean", (good, bad)), text("dirty", (good, good)), text("bare", (Pair("", "x"),)))
    write_jsonl(
        tmp_path / "in.jsonl", [Chain("c", texts).to_json(), Chain("e", (text("clean", (bad,), True),)).to_json()]
    )
    of = of.model_copy(update={"checks": ("form", "decontamination")})
    summary = check(of, tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    assert summary["dropped"] == {
        "form": {"empty_question": 1},
        "decontamination": {"question_overlap": 2, "raw_text_overlap": 2},
    }
    # The text whose pairs a cheaper check took is withheld all the same.
    withheld = [row["document_id"] for row in read_jsonl(tmp_path / "out.jsonl.withheld.jsonl")]
    assert withheld == ["dirty", "bare"]
    assert (summary["in"], summary["kept"], summary["withheld_texts"], summary["leftover_texts"]) == (6, 1, 2, 1)
    rendered = render(
        RenderSettings(),
        tmp_path / "out.jsonl",
        tmp_path / "out.jsonl.leftover.jsonl",
        tmp_path / "documents.jsonl",
        tmp_path / "text",
        [tmp_path / "out.jsonl.withheld.jsonl"],
    )
    parts = ("chain_characters", "raw_characters", "blank_characters", "withheld_characters")
    assert rendered["characters"] == sum(rendered[name] for name in parts)
    assert rendered["withheld_characters"] == summary["withheld_characters"] == len(bodies["dirty"] + bodies["bare"])
    # The other half of each document was not synthesized, so it was not checked: it goes on.
    raw = {row["id"]: row["text"] for row in read_jsonl(tmp_path / "text" / "raw.jsonl")}
    assert raw["clean:15-30"] == bodies["clean"]
    assert [identifier for identifier in raw if identifier.startswith(("dirty", "bare"))] == [
        "dirty:103-206",
        "bare:88-176",
    ]


def test_documents_that_hold_a_task_are_set_apart_before_anything_else(tmp_path: Path):
    of = write_tasks(tmp_path / "tasks.jsonl", {"question": QUESTION, "answer": "Dahl"})
    texts = {"clean": "Nothing to see.", "dirty": f"Before. {QUESTION}", "name": "Dahl"}
    rows = [{"id": name, "text": text, "source": "s", "metadata": {"k": 1}} for name, text in texts.items()]
    write_jsonl(tmp_path / "documents.jsonl", rows)
    (tmp_path / "bad.jsonl").write_text('{"text": 3}\n')
    told = DecontaminateSettings.model_validate(of.model_dump(include=set(TaskSettings.model_fields)))
    inputs = [tmp_path / "documents.jsonl", tmp_path / "bad.jsonl"]
    summary = decontaminate(told, inputs, tmp_path / "out.jsonl")
    assert [row["id"] for row in read_jsonl(tmp_path / "out.jsonl")] == ["clean", "name"]
    assert list(read_jsonl(tmp_path / "out.jsonl")) == [rows[0], rows[2]]
    assert list(read_jsonl(tmp_path / "out.jsonl.withheld.jsonl")) == [{**rows[1], "reason": "raw_text_overlap"}]
    counts = {"rows": 4, "documents": 3, "kept": 2, "withheld": 1, "withheld_characters": len(texts["dirty"])}
    dropped = {"text_not_a_string": 1}
    assert summary == {**counts, "dropped": dropped, "tasks": {"tasks": 1, "fields": 2, "too_short": 1}}
    (row,) = read_jsonl(tmp_path / "out.jsonl.dropped.jsonl")
    assert (row["reason"], row["where"]) == ("text_not_a_string", f"{tmp_path / 'bad.jsonl'}:1")
    for within in (tmp_path, tmp_path / "out.jsonl"):  # what it wrote would be read as documents the next time
        with pytest.raises(UserError, match=r"which is read|is one of the inputs"):
            decontaminate(told, [within], tmp_path / "out.jsonl")


WORDS = st.lists(st.sampled_from(["a", "b", "A", "c.", "\n", "塔", "灯", "b,", "?"]), max_size=24)


def naive(text: str, field: str, words: int, characters: int, least: int) -> bool:
    """The rule in plain loops, over lists of words."""

    def parse(of: str) -> list[tuple[str, int]]:
        found, sentence = [], 0
        for sign in fold(of):
            if sign in "\n.!?":
                sentence += 1
            elif is_unspaced(sign) or sign.isalnum():
                found.append((sign, sentence))
        return found

    have, want = parse(text), parse(field)
    unspaced = sum(is_unspaced(unit) for unit, _ in want) * 2 > len(want)
    n = characters if unspaced else words
    names = [unit for unit, _ in want]
    if len(want) >= n:
        grams = [names[at : at + n] for at in range(len(names) - n + 1)]
        return any([unit for unit, _ in have[at : at + n]] in grams for at in range(len(have) - n + 1))
    if len(want) < least:
        return False
    for at in range(len(have) - len(want) + 1):
        end = at + len(want)
        opens = at == 0 or have[at - 1][1] != have[at][1]
        closes = end == len(have) or have[end][1] != have[end - 1][1]
        if opens and closes and [unit for unit, _ in have[at:end]] == names:
            return True
    return False


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(WORDS, st.lists(WORDS, min_size=1, max_size=3), st.integers(1, 6), st.integers(1, 6), st.integers(1, 4))
def test_as_a_naive_search(
    tmp_path: Path, text: list[str], tasks: list[list[str]], n: int, characters: int, least: int
):
    fields = [" ".join(words) for words in tasks]
    of = write_tasks(tmp_path / "tasks.jsonl", *({"question": field} for field in fields))
    numbers = {"decontaminate_words": n, "decontaminate_characters": characters, "decontaminate_min_units": least}
    index = index_tasks(of.model_copy(update=numbers))
    body = " ".join(text)
    assert index.meets(body) == any(naive(body, field, n, characters, least) for field in fields)


def test_windows_differ_where_units_do():
    text = "a b c d a b c e"
    found = Units(text).windows(3)
    assert len(found) == 6
    assert len({int(value) for value in found}) == 5  # a b c twice
    assert len(Units(text).windows(9)) == 0

"""General instructions as training text: plain as in the paper, or in a tokenizer's own chat template."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from templates_data import covers, said
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from data_prep.errors import UserError
from data_prep.readers import read_jsonl, write_jsonl
from data_prep.records import TrainingText
from data_prep.settings import InstructionSettings
from data_prep.templates import render_instructions

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# As Llama 3's: a BOS of its own, and blanks around a content are taken off.
TRIMMING = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start|>' + m['role'] + '<|stop|>\\n\\n' + m['content'] | trim"
    " + '<|eot|>' }}{% endfor %}"
)
# As Qwen 3's: reasoning in a content is taken out.
REWRITING = (
    "{% for m in messages %}{{ '<|im_start|>' + m['content'].split('</think>')[-1] + '<|im_end|>' }}{% endfor %}"
)
NO_SYSTEM = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{{ m['content'] }}{% endfor %}"
)
FORGETFUL = "{{ messages[0]['content'] }}"

ROWS = [
    {"id": "a", "question": "What ends with <|im_end|>?", "response": "A turn: <|im_start|> opens it."},
    {"id": 7, "system": "Be brief.", "question": "  Who? ", "response": " I.\n", "source": "talks"},
    {"question": "Why {question}?", "response": "{answer}\n\nbecause"},
]


def tokenizer(folder: Path, template: str | None, bos: str = "<|bos|>") -> Path:
    """A byte-level tokenizer directory with control tokens and a chat template."""
    base = Tokenizer(
        models.BPE({letter: place for place, letter in enumerate(pre_tokenizers.ByteLevel.alphabet())}, [])
    )
    special = ["<|im_start|>", "<|im_end|>", "<|start|>", "<|stop|>", "<|eot|>"]
    fast = PreTrainedTokenizerFast(
        tokenizer_object=base, bos_token=bos, eos_token="<|im_end|>", additional_special_tokens=special
    )
    fast.chat_template = template
    fast.save_pretrained(folder)
    return folder


def written(tmp_path: Path, rows: list[dict], **changes: object) -> tuple[list[TrainingText], dict]:
    write_jsonl(tmp_path / "rows.jsonl", rows)
    summary = render_instructions(InstructionSettings(**changes), [tmp_path / "rows.jsonl"], tmp_path / "out.jsonl")
    texts = [TrainingText.from_json(row) for row in read_jsonl(tmp_path / "out.jsonl")]
    assert all(covers(text.spans, len(text.text)) for text in texts)
    return texts, summary


def test_plain_as_in_the_paper(tmp_path: Path) -> None:
    texts, summary = written(tmp_path, ROWS)
    assert [text.text for text in texts] == [
        "What ends with <|im_end|>? A turn: <|im_start|> opens it.",
        "Be brief.   Who?   I.\n",
        "Why {question}? {answer}\n\nbecause",
    ]
    assert [text.id for text in texts] == ["a", "7", "rows.jsonl:3"]
    assert [said(text, "question", 0) for text in texts] == [
        ROWS[0]["question"],
        "Be brief.   Who? ",
        "Why {question}?",
    ]
    assert [said(text, "answer", 0) for text in texts] == [row["response"].lstrip(" ") for row in ROWS]
    assert [(text.origins[0].document_id, text.origins[0].source) for text in texts] == [
        ("a", "rows"),
        ("7", "talks"),
        ("rows.jsonl:3", "rows"),
    ]
    assert (summary["rows"], summary["written"], {text.template for text in texts}) == (3, 3, {"instruction"})
    assert json.loads((tmp_path / "out.jsonl.summary.json").read_text()) == summary


def test_other_keys_parquet_and_blanks(tmp_path: Path) -> None:
    rows = [
        {"prompt": "One?", "output": "1", "sys": None},
        {"prompt": "Two?", "output": "\n ", "sys": "S"},
        {"prompt": "\t", "output": "3", "sys": "S"},
        {"prompt": "Four?", "output": "4", "sys": "S"},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    keys = InstructionSettings(question_key="prompt", response_key="output", system_key="sys")
    summary = render_instructions(keys, [tmp_path / "rows.parquet"], tmp_path / "out.jsonl.zst")
    assert [row["text"] for row in read_jsonl(tmp_path / "out.jsonl.zst")] == ["One? 1", "S Four? 4"]
    assert (summary["blank_question"], summary["blank_response"], summary["written"]) == (1, 1, 2)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('{"question": "q"}', r"rows.jsonl:2: expected a string under 'response', there is none; its keys: question"),
        ('{"question": 3, "response": "r"}', r"rows.jsonl:2: expected a string under 'question', found int"),
        (
            '{"question": "q", "response": "r", "system": []}',
            r"rows.jsonl:2: expected a string under 'system', found list",
        ),
        ('{"question": "q", "response": "r", "id": "a"}', r"rows.jsonl:2: the id 'a' stands at .*rows.jsonl:1 already"),
        ('{"question": "q", "response": "r", "id": true}', r"rows.jsonl:2: 'id' is of type bool"),
        ('{"question": "\\ud800", "response": "r"}', r"rows.jsonl:2: not JSON"),
        ("[]", r"rows.jsonl:2: expected a JSON object"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, line: str, told: str) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROWS[0]) + "\n" + line + "\n")
    with pytest.raises(UserError, match=told):
        render_instructions(InstructionSettings(), [tmp_path / "rows.jsonl"], tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


def control_tokens(text: TrainingText) -> list[str]:
    return [text.text[span.start : span.end] for span in text.spans if span.kind == "control"]


def test_a_chat_template_marks_its_own_control_tokens_and_no_others(tmp_path: Path) -> None:
    folder = tokenizer(tmp_path / "chatml", CHATML)
    texts, summary = written(tmp_path, ROWS, chat_template=folder)
    assert summary["written"] == 3 and summary["template"].startswith("chat@")
    oracle = AutoTokenizer.from_pretrained(folder)
    for text, row in zip(texts, ROWS, strict=True):
        roles = [("system", "system"), ("user", "question"), ("assistant", "response")]
        messages = [{"role": role, "content": row[key]} for role, key in roles if key in row]
        assert text.text == oracle.apply_chat_template(messages, tokenize=False)
        assert control_tokens(text) == ["<|im_start|>", "<|im_end|>"] * len(messages)
        contents = [row[key].lstrip(" ") for key in ("system", "question") if key in row]
        assert said(text, "question", 0) == "\x00".join(contents) and said(text, "answer", 0) == row["response"].lstrip(
            " "
        )
    assert "<|im_end|>" in said(texts[0], "question", 0) and "<|im_start|>" in said(texts[0], "answer", 0)


def test_a_leading_bos_is_left_to_indexing_and_trimming_is_followed(tmp_path: Path) -> None:
    folder = tokenizer(tmp_path / "trimming", TRIMMING)
    texts, _ = written(tmp_path, [{"question": "<|bos|> what? ", "response": " <|bos|>\n"}], chat_template=folder)
    wanted = "<|start|>user<|stop|>\n\n<|bos|> what?<|eot|><|start|>assistant<|stop|>\n\n<|bos|><|eot|>"
    assert texts[0].text == wanted
    assert control_tokens(texts[0]) == ["<|start|>", "<|stop|>", "<|eot|>"] * 2


def test_a_bos_that_opens_each_turn_stays(tmp_path: Path) -> None:
    """SmolLM2's BOS is `<|im_start|>`; without the first one the first turn would be cut open."""
    texts, _ = written(tmp_path, ROWS[:1], chat_template=tokenizer(tmp_path / "t", CHATML, "<|im_start|>"))
    assert texts[0].text.startswith("<|im_start|>user\n") and control_tokens(texts[0])[0] == "<|im_start|>"


def test_a_content_that_the_template_rewrites_is_left_out_and_counted(tmp_path: Path) -> None:
    folder = tokenizer(tmp_path / "rewriting", REWRITING)
    rows = [{"question": "q", "response": "<think>x</think>r"}, {"question": "q", "response": "r"}]
    texts, summary = written(tmp_path, rows, chat_template=folder)
    assert [text.text for text in texts] == ["<|im_start|>q<|im_end|><|im_start|>r<|im_end|>"]
    assert (summary["rewritten_by_template"], summary["written"]) == (1, 1)


@pytest.mark.parametrize(
    ("template", "rows", "told"),
    [
        (None, ROWS, "the tokenizer has no chat template"),
        (NO_SYSTEM, ROWS, r"refuses system, user, assistant \(no system\)"),
        (FORGETFUL, ROWS, "does not write user, assistant once and in order"),
        ("{% for %}", ROWS, "refuses user, assistant"),
    ],
)
def test_a_template_that_does_not_fit_is_told_in_one_line(tmp_path: Path, template, rows, told: str) -> None:
    folder = tokenizer(tmp_path / "t", template)
    with pytest.raises(UserError, match=told) as error:
        written(tmp_path, rows, chat_template=folder)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="no such directory"):
        written(tmp_path, rows, chat_template=tmp_path / "none")


PIECES = st.lists(
    st.sampled_from(["<|im_end|>", "<|im_start|>", "<|bos|>", "{{", "\n", "\ue0f0u\ue0f1", "é", "x", " "]), min_size=1
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(PIECES, PIECES, PIECES), min_size=1, max_size=3))
def test_no_content_becomes_a_control_token_or_loses_a_character(tmp_path: Path, contents) -> None:
    folder = tmp_path / "chatml"
    if not folder.exists():
        tokenizer(folder, CHATML)
    rows = [dict(zip(("system", "question", "response"), map("".join, row), strict=True)) for row in contents]
    kept = [row for row in rows if row["question"].strip() and row["response"].strip()]
    texts, _ = written(tmp_path, rows, chat_template=folder)
    for text, row in zip(texts, kept, strict=True):
        assert control_tokens(text) == ["<|im_start|>", "<|im_end|>"] * 3
        asked = [part.lstrip(" ") for part in (row["system"], row["question"]) if part]
        assert said(text, "question", 0) == "\x00".join(asked)
        assert said(text, "answer", 0) == row["response"].lstrip(" ")

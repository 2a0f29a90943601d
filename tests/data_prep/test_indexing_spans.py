"""The class of each token is that of its first byte: held against a loop over the tokenizers library's offsets."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers_for_tests import llama3_like, metaspace, wordpiece

from data_prep.errors import UserError
from data_prep.indexing import index
from data_prep.indexing.reader import IndexedDatasetReader
from data_prep.indexing.spans import CLASSES, SpansReader
from data_prep.indexing.tokenizer import TextTokenizer, load_tokenizer
from data_prep.readers import write_jsonl
from data_prep.records import Origin, Span, TrainingText
from data_prep.settings import IndexSettings

KINDS = ("text", "question", "answer", "template")
KINDS_OF_TOKENIZER = {
    "byte level": llama3_like,
    "byte level, NFC": lambda folder: llama3_like(folder, nfc=True),
    "byte level, a byte missing": lambda folder: llama3_like(folder, lacking="Ā"),
    "metaspace": metaspace,
    "wordpiece": wordpiece,
}


@pytest.fixture(scope="module", params=KINDS_OF_TOKENIZER)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return KINDS_OF_TOKENIZER[request.param](tmp_path_factory.mktemp("tokenizer"))


CHARACTERS = st.one_of(st.characters(codec="utf-8"), st.sampled_from("  ab\né数🙂e\u0301\x00'"))
PIECES = st.text(CHARACTERS, min_size=1, max_size=9)
TEXTS = st.lists(st.lists(st.tuples(PIECES, st.sampled_from(KINDS)), min_size=1, max_size=6), min_size=1, max_size=4)


def training_text(name: str, parts: list[tuple[str, str]]) -> TrainingText:
    spans: list[Span] = []
    for place, (piece, kind) in enumerate(parts):
        start = spans[-1].end if spans else 0
        of = place if kind in KINDS[:3] else -1
        spans.append(Span(start, start + len(piece), kind, of))  # type: ignore[arg-type]
    origins = tuple(Origin(f"d{place}", checks=("",)) for place in range(len(parts)))
    return TrainingText(name, "".join(piece for piece, _ in parts), origins, "t", 1, tuple(spans))


def expected_classes(tokenizer: TextTokenizer, text: TrainingText) -> list[tuple[str, int]]:
    """(class, of) of each token, by the offsets [characters] of the tokenizers library."""
    found = [("control", -1)] * tokenizer.identity.prepend_bos
    for start, _ in tokenizer.encoder.encode(text.text, add_special_tokens=False).offsets:
        span = next(span for span in text.spans if span.start <= start < span.end)
        found.append((span.kind, span.of))
    return [*found, ("control", -1)]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(TEXTS)
def test_every_token_has_the_class_of_its_first_byte(tmp_path: Path, folder: Path, raw: list) -> None:
    texts = [training_text(f"t{number}", parts) for number, parts in enumerate(raw)]
    tokenizer = load_tokenizer(folder, IndexSettings())
    kept = [text for text in texts if not text.text.isspace() and tokenizer.encoder.encode(text.text).ids]
    if not any(len(text.spans) > 1 for text in texts) or not kept:
        return
    write_jsonl(tmp_path / "in.jsonl", [text.to_json() for text in texts])
    manifest = index(IndexSettings(), [tmp_path / "in.jsonl"], folder, tmp_path / "d")
    if manifest.spans is None:
        return
    reader, spans = IndexedDatasetReader(tmp_path / "d"), SpansReader(tmp_path / "d")
    spans.check(reader.document_lengths())
    assert reader.documents == spans.documents == len(kept)
    for number, text in enumerate(kept):
        found = [(kind, of) for start, end, kind, of in spans.document(number) for _ in range(start, end)]
        assert found == expected_classes(tokenizer, text)


@pytest.mark.parametrize("kind", ["byte level", "byte level, NFC", "metaspace"])
def test_texts_that_are_spelled_out_need_no_second_tokenization(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = KINDS_OF_TOKENIZER[kind](tmp_path / "tokenizer")
    parts = [("Zwölf Boxkämpfer.", "text"), (" Wie viele?\n", "question"), ("12 数据 🙂", "answer")]
    write_jsonl(tmp_path / "in.jsonl", [training_text("t", parts).to_json()])
    monkeypatch.setattr("data_prep.indexing.offsets.TokenOffsets._slow", None)
    assert index(IndexSettings(), [tmp_path / "in.jsonl"], folder, tmp_path / "d").spans is not None


def test_plain_and_classed_texts_share_a_dataset(tmp_path: Path) -> None:
    folder = llama3_like(tmp_path / "tokenizer")
    rows = [{"id": f"raw {number}", "text": "plain words"} for number in range(3)]
    classed = training_text("t", [("A text. ", "text"), ("What?", "question"), (" ", "template"), ("That.", "answer")])
    write_jsonl(tmp_path / "in.jsonl", [*rows, classed.to_json(), *rows])
    shards = IndexSettings(batch_size=1, shard_mib=0.0001, prepend_bos=False, workers=0)
    index(shards, [tmp_path / "in.jsonl"], folder, tmp_path / "d")
    spans = SpansReader(tmp_path / "d")
    classes = [[kind for _, _, kind, _ in spans.document(number)] for number in range(7)]
    plain = ["text", "control"]
    assert classes == [plain] * 3 + [["text", "question", "template", "answer", "control"]] + [plain] * 3


def test_spans_are_left_out_on_demand(tmp_path: Path) -> None:
    folder = llama3_like(tmp_path / "tokenizer")
    classed = training_text("t", [("A text. ", "text"), ("That.", "answer")])
    write_jsonl(tmp_path / "in.jsonl", [classed.to_json()])
    assert index(IndexSettings(), [tmp_path / "in.jsonl"], folder, tmp_path / "d").spans is not None
    assert index(IndexSettings(spans=False), [tmp_path / "in.jsonl"], folder, tmp_path / "d").spans is None
    assert not (tmp_path / "d.spans").exists()


def test_control_spans_become_the_tokens_they_spell_and_nothing_else_does(tmp_path: Path) -> None:
    folder = llama3_like(tmp_path / "tokenizer")
    parts = [("<|turn|>", "control"), ("é <|turn|> ask", "question"), ("<|end|>", "control"), ("<|end|>", "answer")]
    write_jsonl(tmp_path / "in.jsonl", [{"id": "0", "text": "plain"}, training_text("chat", parts).to_json()])
    index(IndexSettings(), [tmp_path / "in.jsonl"], folder, tmp_path / "d")
    tokenizer = load_tokenizer(folder, IndexSettings())
    ids = tokenizer.control
    tokens = IndexedDatasetReader(tmp_path / "d").document(1).tolist()
    asked, answered = (tokenizer.encoder.encode(part).ids for part in ("é <|turn|> ask", "<|end|>"))
    assert tokens == [ids["<|begin|>"], ids["<|turn|>"], *asked, ids["<|end|>"], *answered, ids["<|end|>"]]
    runs = [(end - start, kind) for start, end, kind, _ in SpansReader(tmp_path / "d").document(1)]
    assert runs == [
        (1, "control"),
        (1, "control"),
        (len(asked), "question"),
        (1, "control"),
        (len(answered), "answer"),
        (1, "control"),
    ]


def test_a_control_span_of_another_tokenizer_is_refused(tmp_path: Path) -> None:
    folder = llama3_like(tmp_path / "tokenizer")
    write_jsonl(tmp_path / "in.jsonl", [training_text("c", [("<|im_start|>", "control"), ("x", "text")]).to_json()])
    with pytest.raises(UserError, match=r"in.jsonl:1: '<\|im_start\|>' is no control token of this tokenizer"):
        index(IndexSettings(), [tmp_path / "in.jsonl"], folder, tmp_path / "d")


def test_the_classes_in_the_file_are_those_of_the_records() -> None:
    assert (*KINDS, "control") == CLASSES

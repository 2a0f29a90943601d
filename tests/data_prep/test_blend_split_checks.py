"""A split that cannot hold sources together by the ids of their documents says so, or is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from small_dataset import save_tokenizer, training_text, write_rows

from data_prep.blend import plan
from data_prep.errors import UserError
from data_prep.indexing import index
from data_prep.records import AugmentedText, Chain, Pair
from data_prep.settings import BlendSettings, IndexSettings

TEXTS = [AugmentedText(f"doc-{number}", f"Wand {number}. " * 5, (Pair("Was?", "Das."),)) for number in range(60)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`raw` and `lines`: documents 0 to 49, without ids in `lines`; `copies` of 40 to 59, `others` of 50 to 59."""
    folder = tmp_path_factory.mktemp("split_checks")
    save_tokenizer(folder / "tokenizer")
    chains = [training_text(Chain(f"c{n}", (TEXTS[n],)), seed=1).to_json() for n in range(40, 60)]
    texts = [{"id": text.document_id, "text": text.text} for text in TEXTS[:50]]
    unmade = [{**chain, "origins": [], "spans": _frame(chain["text"])} for chain in chains[:3]]
    rows: dict[str, list[dict[str, Any]]] = {
        "raw": texts,
        "lines": [{"text": row["text"]} for row in texts],
        "copies": chains,
        "others": chains[10:],
        "unmade": [*chains, *unmade],
    }
    for name, lines in rows.items():
        settings = IndexSettings(encoder="tokenizers")
        index(settings, [write_rows(folder / f"{name}.jsonl", lines)], folder / "tokenizer", folder / name)
    return folder


def _frame(text: str) -> dict[str, Any]:
    return {"ends": [len(text)], "kinds": ".", "of": [-1]}


def notes(folder: Path, raw: str, augmented: str, split: bool = True, **of: Any) -> list[str]:
    sources = {raw: {"prefix": raw, "weight": 1}, augmented: {"prefix": augmented, "kind": "augmented", **of}}
    sources[augmented]["weight"] = 1
    values: dict[str, Any] = {"sources": sources, "seq_length": 32, "period": 8, "allow": ["copies"]}
    if split:
        values["split"] = {"validation": 0.3}
    told = plan(BlendSettings.model_validate(values), folder / "out", folder).notes
    return [note for note in told if note.startswith("split: ")]


def test_sources_that_share_their_documents_pass(folder: Path) -> None:
    assert notes(folder, "raw", "copies") == notes(folder, "raw", "copies", copy_of="raw") == []


def test_an_augmented_source_of_no_raw_document_of_the_blend_is_told_of(folder: Path) -> None:
    (note,) = notes(folder, "raw", "others")
    assert note.startswith("split: no raw document of 'others' is in a raw source by its id: right if its texts are")
    assert notes(folder, "raw", "others", split=False) == []


def test_rows_without_an_id_are_told_of(folder: Path) -> None:
    lines, apart = notes(folder, "lines", "copies")
    assert lines.startswith(
        "split: 50 documents of 'lines' have no id but their file and line: a copy in another source"
    )
    assert apart.startswith("split: no raw document of 'copies' is in a raw source by its id")


def test_a_declared_copy_that_shares_no_id_is_refused(folder: Path) -> None:
    told = r"sources\.copies\.copy_of: no raw document of it is in 'lines' by its id, so .*; give each row the `id`"
    with pytest.raises(UserError, match=told):
        notes(folder, "lines", "copies", copy_of="lines")
    assert notes(folder, "lines", "copies", split=False, copy_of="lines") == []


def test_training_texts_that_name_no_raw_document_are_told_of(folder: Path) -> None:
    (note,) = notes(folder, "raw", "unmade")
    assert note.startswith("split: 3 documents of 'unmade' name no raw document, and are trained on")

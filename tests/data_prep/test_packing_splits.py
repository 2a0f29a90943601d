"""Splits: by raw document, in every dataset alike; what is of both sides is on neither."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small_dataset import save_tokenizer, training_text, write_rows

from data_prep.errors import UserError
from data_prep.indexing import index
from data_prep.indexing.lineage import read_lineage
from data_prep.manifest import read_manifest
from data_prep.packing import PackSpec, pack
from data_prep.packing.splits import MIXED, is_validation, sides_of
from data_prep.records import AugmentedText, Chain, Pair
from data_prep.settings import IndexSettings, SplitSettings

SPLIT = SplitSettings(validation=0.2, seed=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`raw`: 200 documents; `augmented`: chains of one and of two of them."""
    folder = tmp_path_factory.mktemp("splits")
    save_tokenizer(folder / "tokenizer")
    pair = (Pair("Was?", "Das."),)
    texts = [AugmentedText(f"doc-{number}", "Die Wand. " * 3, pair) for number in range(200)]
    chains = [Chain(f"one-{n}", (text,)) for n, text in enumerate(texts)]
    chains += [Chain(f"two-{n}", (texts[n], texts[n + 1])) for n in range(0, 200, 2)]
    write_rows(folder / "raw.jsonl", [{"id": text.document_id, "text": text.text} for text in texts])
    write_rows(folder / "augmented.jsonl", [training_text(chain, seed=1).to_json() for chain in chains])
    for name in ("raw", "augmented"):
        settings = IndexSettings(encoder="tokenizers")
        index(settings, [folder / f"{name}.jsonl"], folder / "tokenizer", folder / name)
    return folder


def raw_ids(prefix: Path, documents: set[int]) -> set[str]:
    origins = read_lineage(prefix)["origins"].to_pylist()
    return {origin["document_id"] for document in documents for origin in origins[document]}


def test_augmented_copies_are_on_the_side_of_their_raw_text(folder: Path) -> None:
    found: dict[str, dict[str, set[str]]] = {}
    for name in ("raw", "augmented"):
        manifest = read_manifest(folder / name)
        documents = {}
        for side in ("train", "validation"):
            table = pack(folder / name, manifest, PackSpec(64, 1, "chains", SPLIT, side))
            documents[side] = {piece.document for n in range(table.sequences) for piece in table.pieces(n)}
            dropped = table.report.dropped
            assert len(documents[side]) + sum(dropped.values()) == manifest.documents
        found[name] = {side: raw_ids(folder / name, these) for side, these in documents.items()}
    assert not found["raw"]["train"] & found["augmented"]["validation"]
    assert not found["raw"]["validation"] & found["augmented"]["train"]
    assert found["raw"]["train"] | found["raw"]["validation"] == {f"doc-{number}" for number in range(200)}
    assert 20 <= len(found["raw"]["validation"]) <= 60  # 0.2 of 200, four standard deviations


def test_a_chain_of_both_sides_is_on_neither(folder: Path) -> None:
    validation = [is_validation(f"doc-{number}", SPLIT) for number in range(200)]
    sides = sides_of(folder / "augmented", SPLIT)
    expected = [int(side) for side in validation]
    expected += [MIXED if validation[n] != validation[n + 1] else int(validation[n]) for n in range(0, 200, 2)]
    assert sides.tolist() == expected and MIXED in expected


def test_another_seed_is_another_split_and_sides_are_pinned(folder: Path) -> None:
    assert not np.array_equal(
        sides_of(folder / "raw", SPLIT), sides_of(folder / "raw", SplitSettings(validation=0.2, seed=4))
    )
    # Pinned: another value here would move documents between training and validation of existing runs.
    assert [number for number in range(30) if is_validation(f"doc-{number}", SplitSettings(validation=0.2))] == [
        0,
        4,
        7,
        16,
        21,
    ]


def test_a_side_without_a_document_is_refused(folder: Path) -> None:
    spec = PackSpec(64, 1, split=SplitSettings(validation=1e-9), side="validation")
    with pytest.raises(UserError, match="nothing to predict on the validation side of the split"):
        pack(folder / "raw", read_manifest(folder / "raw"), spec)


def test_a_document_of_no_raw_document_is_trained_on(tmp_path: Path) -> None:
    """Among such that are not."""
    save_tokenizer(tmp_path / "tokenizer")
    name = next(f"doc-{n}" for n in range(200) if is_validation(f"doc-{n}", SPLIT))
    apart = training_text(Chain("c", (AugmentedText(name, "Die Wand.", (Pair("Was?", "Das."),)),)), seed=1).to_json()
    none = {**apart, "id": "none", "origins": [], "spans": {"ends": [1], "kinds": ".", "of": [-1]}, "text": "."}
    source = write_rows(tmp_path / "rows.jsonl", [none, apart, none, none, apart, none])
    index(IndexSettings(encoder="tokenizers"), [source], tmp_path / "tokenizer", tmp_path / "d")
    assert sides_of(tmp_path / "d", SPLIT).tolist() == [0, 1, 0, 0, 1, 0]

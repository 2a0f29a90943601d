"""`inspect` against counts made from the texts themselves."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from small_dataset import save_tokenizer, training_text, write_rows
from tokenizers import Tokenizer

from data_prep.errors import UserError
from data_prep.indexing import index
from data_prep.indexing.inspect import OTHER_SOURCES, inspect
from data_prep.records import AugmentedText, Chain, Pair, TrainingText
from data_prep.settings import IndexSettings

SOURCES = ["wiki", "", "wiki"]
SETTINGS = IndexSettings(prepend_bos=True, encoder="tokenizers")


def texts() -> list[TrainingText]:
    """Chains of one or two texts of several sources, and of very different lengths."""
    chains = []
    for number in range(40):
        parts = tuple(
            AugmentedText(f"{number}-{k}", "Wörter! " * (2 ** (number % 9)), (Pair("Was?", "Das."),), source=SOURCES[k])
            for k in range(number % 3 + 1)
        )
        chains.append(Chain(str(number), parts))
    return [training_text(chain) for chain in chains]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inspect")
    save_tokenizer(folder / "tokenizer")
    rows = [text.to_json() for text in texts()] + [{"text": " "}]
    index(SETTINGS, [write_rows(folder / "in.jsonl", rows)], folder / "tokenizer", folder / "d")
    return folder


def tokens_of(folder: Path, text: str) -> list[int]:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer" / "tokenizer.json"))
    return tokenizer.encode(text, add_special_tokens=False).ids


def test_counts_are_those_of_the_texts(folder: Path) -> None:
    found = inspect(folder / "d")
    lengths = np.array([len(tokens_of(folder, text.text)) + 2 for text in texts()])
    assert (found.documents, found.tokens, found.dropped) == (40, lengths.sum(), {"empty": 1})
    assert found.text_bytes == sum(len(text.text.encode()) for text in texts())
    assert found.bytes_per_token == found.text_bytes / found.tokens
    assert found.documents_by_source == {"wiki": 40, "": 26}
    assert sum(found.tokens_by_class.values()) == found.tokens
    assert found.tokens_by_class["control"] == 80
    assert set(found.tokens_by_class) == {"text", "question", "answer", "template", "control"}
    for percent in (50, 95, 100):
        expected = np.percentile(lengths, percent, method="inverted_cdf")
        assert found.percentiles[percent] == expected
    assert found.percentiles[0] == lengths.min()
    assert [each.low for each in found.histogram][1:] == [each.high for each in found.histogram][:-1]
    for each in found.histogram:
        inside = lengths[(lengths >= each.low) & (lengths < each.high)]
        assert (each.documents, each.tokens) == (len(inside), inside.sum())
    assert sum(each.documents for each in found.histogram) == 40


def test_a_dataset_of_one_class_has_its_policy(tmp_path: Path, folder: Path) -> None:
    source = write_rows(tmp_path / "in.jsonl", [{"id": "1", "text": "ab"}, {"id": "2", "text": "a"}])
    index(SETTINGS, [source], folder / "tokenizer", tmp_path / "d")
    found = inspect(tmp_path / "d")
    assert found.tokens_by_class == {"text": 3, "control": 4}
    assert [[part.kind for part in sample.parts] for sample in found.samples] == [["control", "text", "control"]] * 2


def test_samples_are_the_texts_and_depend_on_the_seed(folder: Path) -> None:
    found = inspect(folder / "d", samples=5, seed=2, tokenizer_dir=folder / "tokenizer", sample_tokens=10**6)
    assert [sample.document for sample in found.samples] == sorted(random.Random(2).sample(range(40), 5))
    for sample in found.samples:
        text = texts()[sample.document]
        assert sample.id == text.id
        assert "".join(part.text or "" for part in sample.parts) == f"<s>{text.text}<|end|>"
        assert [token for part in sample.parts for token in part.ids] == [1, *tokens_of(folder, text.text), 0]
    assert found.samples == inspect(folder / "d", 5, 2, folder / "tokenizer", 10**6).samples
    assert found.samples != inspect(folder / "d", 5, 3, folder / "tokenizer", 10**6).samples


def test_a_long_document_is_cut_and_without_a_tokenizer_only_ids_are_known(folder: Path) -> None:
    for sample in inspect(folder / "d", samples=40, sample_tokens=11).samples:
        assert sum(len(part.ids) for part in sample.parts) == min(11, sample.tokens)
        assert all(part.text is None for part in sample.parts)
        assert sample.tokens == len(tokens_of(folder, texts()[sample.document].text)) + 2
    assert inspect(folder / "d", samples=0).samples == []


def test_too_many_sources_are_counted_together(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_prep.indexing.inspect._SOURCES", 1)
    found = inspect(folder / "d").documents_by_source
    assert sum(found.values()) == 66
    assert OTHER_SOURCES in found and len(found) == 2


def test_another_tokenizer_is_refused(folder: Path, tmp_path: Path) -> None:
    other = save_tokenizer(tmp_path)
    (other / "tokenizer.json").write_text((other / "tokenizer.json").read_text().replace('"ĠW"', '"ĠX"'))
    with pytest.raises(UserError, match="was written with another tokenizer"):
        inspect(folder / "d", tokenizer_dir=other)

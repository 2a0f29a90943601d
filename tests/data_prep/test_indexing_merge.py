"""`merge`: the bytes of indexing everything at once, as Megatron's own builder merges; unlike datasets are refused."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from small_dataset import files_of, save_tokenizer, training_text, vouch, write_rows

from data_prep.errors import UserError
from data_prep.indexing import index
from data_prep.indexing.lineage import read_lineage
from data_prep.indexing.merge import merge
from data_prep.indexing.parts import DatasetWriter
from data_prep.indexing.spans import SpansReader
from data_prep.indexing.verify import verify
from data_prep.manifest import read_manifest
from data_prep.records import AugmentedText, Chain, Pair
from data_prep.settings import IndexSettings

SETTINGS = IndexSettings(encoder="tokenizers")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`one` and `three` of training texts, `two` of raw ones, and `all`, indexed at once."""
    folder = tmp_path_factory.mktemp("merge")
    save_tokenizer(folder / "tokenizer")
    sources = []
    for number, name in enumerate(("one", "two", "three")):
        if name == "two":
            rows = [{"id": str(i), "text": "Der Weg. " * i} for i in range(30)]
        else:
            pair = (Pair("Was?", "Das."),)
            chains = [Chain(f"{name}-{i}", (AugmentedText(str(i), "Die Wand" * (i + 1), pair),)) for i in range(20)]
            rows = [training_text(chain, seed=number).to_json() for chain in chains]
        sources.append(write_rows(folder / f"{name}.jsonl", rows))
        index(SETTINGS, [sources[-1]], folder / "tokenizer", folder / name)
    index(SETTINGS, sources, folder / "tokenizer", folder / "all")
    return folder


def test_merging_gives_the_bytes_of_indexing_at_once(folder: Path, tmp_path: Path) -> None:
    manifest = merge([folder / name for name in ("one", "two", "three")], tmp_path / "m")
    for kind in ("bin", "idx", "spans", "lineage"):
        assert files_of(tmp_path / "m")[kind].read_bytes() == files_of(folder / "all")[kind].read_bytes()
    whole = read_manifest(folder / "all")
    assert manifest == verify(tmp_path / "m")
    assert manifest.dropped == whole.dropped == {"empty": 1}
    assert (manifest.inputs, manifest.text_bytes) == (whole.inputs, whole.text_bytes)
    assert manifest.data_hash == whole.data_hash


def test_megatrons_builder_merges_to_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("megatron.core")
    megatron = importlib.import_module("megatron.core.datasets.indexed_dataset")
    builder = megatron.IndexedDatasetBuilder(str(tmp_path / "theirs.bin"), dtype=megatron.DType.optimal_dtype(300))
    for name in ("three", "one"):
        builder.add_index(str(folder / name))
    builder.finalize(str(tmp_path / "theirs.idx"))
    merge([folder / "three", folder / "one"], tmp_path / "ours")
    for suffix in ("bin", "idx"):
        assert (tmp_path / f"ours.{suffix}").read_bytes() == (tmp_path / f"theirs.{suffix}").read_bytes()


def test_a_dataset_without_spans_gets_those_of_plain_text(folder: Path, tmp_path: Path) -> None:
    assert read_manifest(folder / "two").spans is None
    merge([folder / "two", folder / "one"], tmp_path / "m")
    spans = SpansReader(tmp_path / "m")
    lengths = read_lineage(tmp_path / "m")["tokens"].to_pylist()
    assert list(spans.document(0)) == [(0, lengths[0] - 1, "text", 0), (lengths[0] - 1, lengths[0], "control", -1)]
    assert list(spans.document(29)) == list(SpansReader(folder / "one").document(0))
    merge([folder / "two", folder / "two"], tmp_path / "plain")
    assert not files_of(tmp_path / "plain")["spans"].exists()


def test_classes_that_were_not_recorded_are_not_made_up(folder: Path, tmp_path: Path) -> None:
    settings = IndexSettings(encoder="tokenizers", spans=False)
    index(settings, [folder / "three.jsonl"], folder / "tokenizer", tmp_path / "d")
    with pytest.raises(UserError, match=r"d: it was indexed without spans.*; index it again with spans"):
        merge([folder / "one", tmp_path / "d"], tmp_path / "m")
    merge([tmp_path / "d", tmp_path / "d"], tmp_path / "m")


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"prepend_bos": True}, "its prepend_bos is True, and that of"),
        ({"append_eod": False}, "its append_eod is False, and that of"),
        ({"eod_token": "<s>"}, "its tokenizer's fingerprint is"),
    ],
)
def test_another_policy_is_refused(folder: Path, tmp_path: Path, settings: dict[str, object], told: str) -> None:
    source = folder / "two.jsonl"
    index(IndexSettings(encoder="tokenizers", **settings), [source], folder / "tokenizer", tmp_path / "d")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=told):
        merge([folder / "two", tmp_path / "d"], tmp_path / "m")
    assert not files_of(tmp_path / "m")["bin"].exists()


def test_another_tokenizer_or_dtype_is_refused(tmp_path: Path, write_dataset) -> None:
    write_dataset(tmp_path / "a", [[1, 2, 0]])
    write_dataset(tmp_path / "b", [[1, 2, 0]], fingerprint="g")
    write_dataset(tmp_path / "c", [[1, 2, 0]], vocab_size=70_000)
    with pytest.raises(UserError, match=r"b: its tokenizer's fingerprint is g, and that of .*a is f; index both"):
        merge([tmp_path / "a", tmp_path / "b"], tmp_path / "m")
    with pytest.raises(UserError, match=r"c: its dtype is int32, and that of .*a is uint16"):
        merge([tmp_path / "a", tmp_path / "c"], tmp_path / "m")


def test_two_merges_do_not_write_one_dataset(folder: Path, tmp_path: Path) -> None:
    merge([folder / "one"], tmp_path / "m")
    before = files_of(tmp_path / "m")["bin"].read_bytes()
    with (
        DatasetWriter(tmp_path / "m", 300),
        pytest.raises(UserError, match="m: another run is writing this dataset; wait for it, or end it"),
    ):
        merge([folder / "one", folder / "two"], tmp_path / "m")
    verify(tmp_path / "m")
    assert files_of(tmp_path / "m")["bin"].read_bytes() == before
    assert not list(tmp_path.glob("*.partial"))


def test_a_damaged_dataset_is_refused_and_nothing_written(folder: Path, tmp_path: Path) -> None:
    merge([folder / "one"], tmp_path / "d")
    path = files_of(tmp_path / "d")["spans"]
    path.write_bytes(path.read_bytes()[:-1] + b"\3")
    with pytest.raises(UserError, match=r"d\.spans: block 0"):
        merge([folder / "one", tmp_path / "d"], tmp_path / "m")
    vouch(tmp_path / "d")
    with pytest.raises(UserError, match=r"d\.bin: token \d+ of document 19 is 0, a control token where a text is"):
        merge([folder / "one", tmp_path / "d"], tmp_path / "m")
    assert not files_of(tmp_path / "m")["bin"].exists()
    with pytest.raises(UserError, match="it is one of the datasets to merge"):
        merge([folder / "one", tmp_path / "d"], tmp_path / "." / "d")
    with pytest.raises(UserError, match="there is nothing to merge"):
        merge([], tmp_path / "m")

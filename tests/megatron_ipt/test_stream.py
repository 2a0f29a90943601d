"""Sample i is a function of i: every label once an epoch, the same from any process, stale data refused."""

from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from data_prep.blend import plan
from data_prep.errors import UserError
from data_prep.settings import BlendSettings
from megatron_ipt.data.stream import BlendStream, Sample, SequentialStream

SEQ_LENGTH = 16
LARGE = [[10 + i, *range(200, 200 + i % 23), 0] for i in range(100)]
SMALL = [[7, 8, 0], [9, 0]]


@pytest.fixture
def blend_path(tmp_path: Path, write_dataset) -> Path:
    write_dataset(tmp_path / "large", LARGE)
    write_dataset(tmp_path / "small", SMALL)
    sources = {"large": {"prefix": "large", "weight": 0.7}, "small": {"prefix": "small", "weight": 0.3}}
    plan(
        BlendSettings(sources=sources, seq_length=SEQ_LENGTH, period=100, allow=("short_source",)),
        tmp_path / "out",
        tmp_path,
    )
    return tmp_path / "out/blend.json"


def check_shapes(sample: Sample) -> None:
    for array, dtype in (
        (sample.tokens, np.int64),
        (sample.labels, np.int64),
        (sample.loss_mask, np.float32),
        (sample.position_ids, np.int64),
    ):
        assert (array.shape, array.dtype) == ((SEQ_LENGTH,), dtype)


def labels_of(sample: Sample) -> list[tuple[int, int]]:
    """(document, offset) of each label that counts."""
    places = [(piece.document, piece.offset + i) for piece in sample.pieces for i in range(piece.length)]
    assert len(places) == int(sample.loss_mask.sum()) + 1
    return places[1:]


def test_an_epoch_of_a_source_is_every_label_once(blend_path: Path) -> None:
    stream = BlendStream(blend_path)
    sequences = stream.blend.sources[0].sequences
    drawn = [sample for sample in map(stream.sample, range(400)) if sample.source == "large"]
    everywhere = Counter((d, i) for d, document in enumerate(LARGE) for i in range(len(document)))
    orders = []
    for epoch in range(3):
        samples = drawn[epoch * sequences : (epoch + 1) * sequences]
        seen = Counter(label for sample in samples for label in labels_of(sample))
        assert max(seen.values()) == 1
        assert (everywhere - seen).total() == 1
        orders.append([sample.pieces for sample in samples])
    assert orders[0] != orders[1]


def test_tokens_are_those_of_the_documents(blend_path: Path) -> None:
    stream = BlendStream(blend_path)
    documents = {"large": LARGE, "small": SMALL}
    for index in (0, 1, 7, 99, 10**12):
        sample = stream.sample(index)
        check_shapes(sample)
        expected = [
            token
            for piece in sample.pieces
            for token in documents[sample.source][piece.document][piece.offset : piece.offset + piece.length]
        ]
        real = len(expected) - 1
        assert sample.tokens[: len(expected)].tolist() == expected[:SEQ_LENGTH]
        assert sample.labels[:real].tolist() == expected[1:]
        assert sample.loss_mask.tolist() == [1.0] * real + [0.0] * (SEQ_LENGTH - real)
        assert sample.position_ids.tolist() == list(range(SEQ_LENGTH))


def test_samples_depend_on_their_number_only(blend_path: Path) -> None:
    first, second = BlendStream(blend_path), BlendStream(blend_path)
    indices = random.Random(0).sample(range(10**12), 50) + list(range(50))
    there = {index: first.sample(index) for index in indices}
    for index in reversed(indices):
        again = second.sample(index)
        assert (again.source, again.pieces) == (there[index].source, there[index].pieces)
        assert np.array_equal(again.tokens, there[index].tokens)
    assert first.blend_hash == second.blend_hash
    with pytest.raises(IndexError):
        first.sample(-1)


def test_shares_hold_at_every_prefix(blend_path: Path) -> None:
    drawn = Counter[str]()
    stream = BlendStream(blend_path)
    for index in range(250):
        drawn[stream.sample(index).source] += 1
        assert abs(drawn["large"] - 0.7 * (index + 1)) < 1 + 1e-9


def test_changing_a_sample_changes_nothing_else(blend_path: Path) -> None:
    stream = BlendStream(blend_path)
    sample = stream.sample(3)
    labels = sample.labels.copy()
    sample.tokens[:] = -1
    assert np.array_equal(sample.labels, labels)
    assert stream.sample(3).tokens.min() >= 0


def test_data_written_again_at_the_same_prefix_is_refused(blend_path: Path, write_dataset) -> None:
    folder = blend_path.parents[1]
    write_dataset(folder / "small", [[9, 0], [7, 8, 0]])
    with pytest.raises(UserError, match="small: the dataset was written again after the blend was planned"):
        BlendStream(blend_path)


@pytest.mark.parametrize("name", ["small.bin", "small.idx", "small.manifest.json"])
def test_a_missing_file_is_named(blend_path: Path, name: str) -> None:
    (blend_path.parents[1] / name).unlink()
    with pytest.raises(UserError, match=name):
        BlendStream(blend_path)


def test_a_missing_pack_table_is_named(blend_path: Path) -> None:
    next(blend_path.parents[1].glob("small.pack-*")).unlink()
    with pytest.raises(UserError, match=r"small\.pack-.*: no such pack table"):
        BlendStream(blend_path)


def test_validation_reads_a_dataset_in_order(tmp_path: Path, write_dataset) -> None:
    manifest = write_dataset(tmp_path / "held_out", LARGE)
    stream = SequentialStream(tmp_path / "held_out", SEQ_LENGTH)
    tokens = [token for document in LARGE for token in document]
    labels: list[int] = []
    for index in range(len(stream)):
        sample = stream.sample(index)
        check_shapes(sample)
        real = int(sample.loss_mask.sum())
        start = index * SEQ_LENGTH
        assert sample.tokens[:real].tolist() == tokens[start : start + real]
        assert len(labels_of(sample)) == real
        labels += sample.labels[:real].tolist()
    assert labels == tokens[1:]
    assert (stream.text_bytes, stream.tokens) == (manifest.text_bytes, len(tokens))
    with pytest.raises(IndexError):
        stream.sample(len(stream))


def test_a_dataset_of_one_token_cannot_validate(tmp_path: Path, write_dataset) -> None:
    write_dataset(tmp_path / "d", [[1]])
    with pytest.raises(UserError, match="nothing to predict"):
        SequentialStream(tmp_path / "d", SEQ_LENGTH)


def test_the_stream_needs_neither_torch_nor_a_tokenizer() -> None:
    heavy = {"torch", "megatron", "tokenizers", "pyarrow"}
    code = f"import sys, megatron_ipt.data.stream; print(*{heavy} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == ""

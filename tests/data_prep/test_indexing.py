"""`index`: real text in, a dataset with lineage and manifest out; nothing half done stays behind."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import numpy as np
import orjson
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from data_prep.errors import UserError
from data_prep.indexing import index
from data_prep.indexing.lineage import read_lineage
from data_prep.indexing.reader import IndexedDatasetReader
from data_prep.indexing.verify import verify
from data_prep.manifest import Manifest, read_manifest
from data_prep.records import Document, Origin, Span, TrainingText
from data_prep.settings import IndexSettings

TEXTS = ["The cell divides.", "<|end|> is text here", "Zwölf Boxkämpfer", "数据 🙂"]


@pytest.fixture(scope="module")
def tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bytes as tokens (ids 1 to 256) and `<|end|>` (id 0), which ends documents."""
    folder = tmp_path_factory.mktemp("tokenizer")
    vocab = {"<|end|>": 0} | {byte: i for i, byte in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()), start=1)}
    tokenizer = Tokenizer(models.BPE(vocab, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>"}))
    return folder


def write_rows(path: Path, rows: list[dict]) -> Path:
    path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    return path


def files_at(prefix: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in prefix.parent.glob(f"{prefix.name}*")}


def test_documents_become_their_bytes_and_an_end(tmp_path: Path, tokenizer_dir: Path) -> None:
    documents = [Document(str(number), text).to_json() for number, text in enumerate(TEXTS)]
    first = write_rows(tmp_path / "first.jsonl", [*documents[:2], {"id": "blank", "text": " \n"}])
    second = write_rows(tmp_path / "second.jsonl", [{"id": "none", "text": ""}, *documents[2:]])
    seen: list[int] = []
    manifest = index(IndexSettings(batch_size=4), [first, second], tokenizer_dir, tmp_path / "d", seen.append)
    reader, tokenizer = IndexedDatasetReader(tmp_path / "d"), Tokenizer.from_file(str(tokenizer_dir / "tokenizer.json"))
    for number, text in enumerate(TEXTS):
        tokens = reader.document(number)
        assert tokens[-1] == 0
        assert 0 not in tokens[:-1]
        assert tokenizer.decode(tokens[:-1].tolist()) == text
        assert len(tokens) == len(text.encode()) + 1
    text_bytes = sum(len(text.encode()) for text in TEXTS)
    assert (manifest.documents, manifest.text_bytes, manifest.tokens) == (4, text_bytes, text_bytes + 4)
    assert manifest.dropped == {"empty": 2}
    assert sum(seen) == 6
    assert [file.name for file in manifest.inputs] == ["first.jsonl", "second.jsonl"]
    assert str(tmp_path) not in (tmp_path / "d.manifest.json").read_text()
    assert verify(tmp_path / "d") == manifest == read_manifest(tmp_path / "d")


def test_lineage_leads_back_from_every_document(tmp_path: Path, tokenizer_dir: Path) -> None:
    origins = (Origin("doc-1", "wiki", 5, 9, ("form length", "form"), 1), Origin("doc-2", "news", 0, 2))
    augmented = TrainingText("chain-1", "aü?", origins, "qa/plain", 7, (Span(0, 3, "text", 0),))
    rows = [{"id": "raw", "text": "xyz", "source": "web"}, {"id": "blank", "text": ""}, augmented.to_json()]
    index(IndexSettings(), [write_rows(tmp_path / "in.jsonl", rows)], tokenizer_dir, tmp_path / "d")
    raw = {"document_id": "raw", "source": "web", "start": 0, "end": 3, "checks": [], "at": 0}
    first = {"document_id": "doc-1", "source": "wiki", "start": 5, "end": 9, "checks": ["form length", "form"], "at": 1}
    second = {"document_id": "doc-2", "source": "news", "start": 0, "end": 2, "checks": [], "at": -1}
    names = ("id", "origins", "template", "seed", "source_file", "first_token", "tokens", "text_bytes")
    expected = [
        ("raw", [raw], "", None, "in.jsonl", 0, 4, 3),
        ("chain-1", [first, second], "qa/plain", 7, "in.jsonl", 4, 5, 4),
    ]
    assert read_lineage(tmp_path / "d").to_pylist() == [dict(zip(names, row, strict=True)) for row in expected]
    assert not (tmp_path / "d.spans").exists()  # every text is of one class


def test_any_rows_with_a_text_do(tmp_path: Path, tokenizer_dir: Path) -> None:
    rows = [{"text": "ab"}, {"id": 7, "text": "cd", "meta": {}}, {"id": None, "text": "ab"}]
    index(IndexSettings(), [write_rows(tmp_path / "in.jsonl", rows)], tokenizer_dir, tmp_path / "d")
    assert read_lineage(tmp_path / "d")["id"].to_pylist() == ["in.jsonl:1", "7", "in.jsonl:3"]


def test_the_text_may_stand_under_another_key(tmp_path: Path, tokenizer_dir: Path) -> None:
    source = write_rows(tmp_path / "in.jsonl", [{"id": "1", "body": "ab", "text": 5, "origins": "foreign"}])
    manifest = index(IndexSettings(text_key="body"), [source], tokenizer_dir, tmp_path / "d")
    assert (manifest.tokens, manifest.settings["text_key"]) == (3, "body")


def test_same_input_gives_the_same_bytes_whatever_the_batch(tmp_path: Path, tokenizer_dir: Path) -> None:
    source = write_rows(tmp_path / "in.jsonl", [{"id": str(i), "text": "word " * i} for i in range(50)])
    for name, size in (("a", 1), ("b", 7), ("c", 7)):
        index(IndexSettings(batch_size=size), [source], tokenizer_dir, tmp_path / name)
    first, *others = [{file.suffix: file.read_bytes() for file in tmp_path.glob(f"{name}.*")} for name in "abc"]
    assert sorted(first) == [".bin", ".idx", ".json", ".parquet"]
    assert others == [first, first]


SPANS = {"ends": [5, 11], "kinds": "qa", "of": [0, 0]}
ORIGIN = {"document_id": "d", "source": "s", "start": 0, "end": 9, "checks": ["form"], "at": -1}
# What is changed in a sound training text of eleven characters, one origin and one pair; and what is told of it.
MALFORMED = [
    ("spans", "abc", "TypeError"),
    ("spans", {"ends": [11]}, "KeyError"),
    ("spans", SPANS | {"ends": 5}, "numbers"),
    ("spans", SPANS | {"kinds": 5}, "letters"),
    ("spans", SPANS | {"kinds": ["q", "a"]}, "letters"),
    ("spans", SPANS | {"kinds": "q数"}, "no known class"),
    ("spans", SPANS | {"of": None}, "numbers"),
    ("spans", SPANS | {"ends": [5.5, 11]}, "numbers"),
    ("spans", SPANS | {"ends": [[5], [11]]}, "numbers"),
    ("spans", SPANS | {"ends": [5, 2**64 - 1]}, "numbers"),
    ("spans", {"ends": [], "kinds": "", "of": [], "more": 1}, "cover"),
    ("spans", SPANS | {"of": [0, 99999999999]}, "no origin of the text, or no pair"),
    ("spans", SPANS | {"of": [0, 1]}, "no pair"),
    ("spans", SPANS | {"of": [-1, 0]}, "no pair"),
    ("spans", SPANS | {"of": [0, -7]}, "no pair"),
    ("spans", SPANS | {"kinds": "ta", "of": [1, 0]}, "no origin"),
    ("spans", SPANS | {"kinds": ".a"}, "no origin"),
    ("spans", {"ends": [11], "kinds": "t", "of": [7]}, "no origin"),
    ("seed", 2**64 - 1, "OverflowError"),
    ("seed", 1.5, "not whole"),
    ("seed", True, "not whole"),
    ("template", 5, "Arrow"),
    ("origins", {}, "not a list"),
    ("origins", "", "not a list"),
    ("origins", [ORIGIN | {"start": 2**64 - 1}], "OverflowError"),
    ("origins", [ORIGIN | {"start": 10}], "no part"),
    ("origins", [ORIGIN | {"start": -1}], "no part"),
    ("origins", [ORIGIN | {"at": None}], "missing"),
    ("origins", [ORIGIN | {"at": 1.0}], "not whole"),
    ("origins", [ORIGIN | {"checks": "f"}], "not a list"),
    ("origins", [ORIGIN | {"checks": [None]}], "missing"),
    ("origins", [ORIGIN | {"checks": 5}], "TypeError"),
]


def change(**values: object) -> bytes:
    row = {"id": "1", "text": "What? That!", "origins": [ORIGIN], "template": "t", "seed": 1, "spans": SPANS}
    return json.dumps(row | values).encode()


def test_the_training_text_that_is_changed_below_is_sound(tmp_path: Path, tokenizer_dir: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(change() + b"\n" + change(template=None, seed=None, spans=None))
    assert index(IndexSettings(), [tmp_path / "in.jsonl"], tokenizer_dir, tmp_path / "d").documents == 2
    assert read_lineage(tmp_path / "d").to_pylist()[1]["template"] == ""


@pytest.mark.parametrize(
    ("bad", "where"),
    [
        (b"{", "bad.jsonl:2"),
        (b'{"id": "1"}', "bad.jsonl:2: expected a string under 'text', no such key"),
        (b'{"text": 7}', "bad.jsonl:2: expected a string under 'text', it is of type int"),
        (b'{"id": [1], "text": "x"}', "bad.jsonl:2: 'id' is of type list"),
        (b'{"id": "1", "text": "x", "origins": 7}', "bad.jsonl:2: not a training text"),
        (b'{"id": "1", "text": "x", "origins": [{"document_id": "d"}]}', "bad.jsonl:2: not a training text"),
        (b'{"id": null, "text": "x", "origins": []}', "bad.jsonl:2: not a training text"),
        (b'{"id": "1", "text": "xy", "origins": [], "spans": {"ends": [1, 1], "kinds": "tq", "of": [0, 0]}}', "cover"),
        (b'{"id": "1", "text": "xy", "origins": [], "spans": {"ends": [1, 3], "kinds": "tq", "of": [0, 0]}}', "cover"),
        (b'{"id": "1", "text": "xy", "origins": [], "spans": {"ends": [1, 2], "kinds": "t!", "of": [0, 0]}}', "class"),
        (b'{"id": "1", "text": "xy", "origins": [], "spans": {"ends": [1, 2], "kinds": "t", "of": [0]}}', "different"),
        (
            b'{"id": "1", "text": "xy", "origins": [], "spans": {"ends": ["x", 2], "kinds": "tq", "of": [0, 0]}}',
            "numbers",
        ),
        (b'{"id": "1", "text": "\\ud800"}', "bad.jsonl:2: not JSON .*surrogate"),
        *[(change(**{key: value}), f"bad.jsonl:2: not a training text .*{told}") for key, value, told in MALFORMED],
    ],
)
def test_a_bad_line_is_named_and_the_old_dataset_stays(
    tmp_path: Path, tokenizer_dir: Path, bad: bytes, where: str
) -> None:
    prefix = tmp_path / "d"
    index(IndexSettings(), [write_rows(tmp_path / "good.jsonl", [{"id": "1", "text": "x"}])], tokenizer_dir, prefix)
    before = files_at(prefix)
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b'{"id": "0", "text": "new"}\n' + bad + b"\n")
    with pytest.raises(UserError, match=where):
        index(IndexSettings(), [path], tokenizer_dir, prefix)
    assert files_at(prefix) == before
    verify(prefix)


def test_an_input_that_is_not_there_leaves_nothing_behind(tmp_path: Path, tokenizer_dir: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.jsonl: no such file"):
        index(IndexSettings(), [tmp_path / "gone.jsonl"], tokenizer_dir, tmp_path / "folder" / "d")
    assert not list(tmp_path.iterdir())


def test_no_text_at_all_is_an_error(tmp_path: Path, tokenizer_dir: Path) -> None:
    with pytest.raises(UserError, match="no document with text"):
        source = write_rows(tmp_path / "in.jsonl", [{"id": "1", "text": "\n"}])
        index(IndexSettings(), [source], tokenizer_dir, tmp_path / "d")
    assert not files_at(tmp_path / "d")


def test_a_full_disk_is_told_in_a_line(tmp_path: Path, tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    source = write_rows(tmp_path / "in.jsonl", [{"id": "1", "text": "x"}])
    monkeypatch.setattr("data_prep.indexing.writer.IndexedDatasetWriter.add_documents", full)
    with pytest.raises(UserError, match="d: the disk is full"):
        index(IndexSettings(), [source], tokenizer_dir, tmp_path / "d")
    assert [path.name for path in tmp_path.glob("d*")] == ["d.shards"]


def test_crash_while_putting_in_place_leaves_nothing_that_is_vouched_for(
    tmp_path: Path, tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = tmp_path / "d"
    old = write_rows(tmp_path / "old.jsonl", [{"id": "1", "text": "old"}])
    new = write_rows(tmp_path / "new.jsonl", [{"id": "1", "text": "new"}])
    index(IndexSettings(), [old], tokenizer_dir, prefix)

    right = Manifest.write

    def crash(manifest: Manifest, written: Path, durable: bool = True) -> None:
        if written == prefix:
            raise KeyboardInterrupt
        right(manifest, written, durable)

    monkeypatch.setattr(Manifest, "write", crash)
    with pytest.raises(KeyboardInterrupt):
        index(IndexSettings(), [new], tokenizer_dir, prefix)
    with pytest.raises(UserError, match="no manifest"):
        verify(prefix)


@pytest.mark.parametrize("suffix", [".bin", ".idx"])
def test_every_flipped_byte_is_found_and_named(tmp_path: Path, tokenizer_dir: Path, suffix: str) -> None:
    index(IndexSettings(), [write_rows(tmp_path / "i", [{"id": "1", "text": "text"}])], tokenizer_dir, tmp_path / "d")
    path = tmp_path / f"d{suffix}"
    content = path.read_bytes()
    for position in range(len(content)):
        path.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        with pytest.raises(UserError, match=rf"d\{suffix}: block 0"):
            verify(tmp_path / "d")


def test_data_rewritten_behind_the_manifest_is_stale(tmp_path: Path, tokenizer_dir: Path, write_dataset) -> None:
    index(IndexSettings(), [write_rows(tmp_path / "i", [{"id": "1", "text": "text"}])], tokenizer_dir, tmp_path / "d")
    write_dataset(tmp_path / "other", [[1, 2, 0]])
    for suffix in (".bin", ".idx"):
        (tmp_path / f"other{suffix}").replace(tmp_path / f"d{suffix}")
    with pytest.raises(UserError, match=r"d\.bin: .* stale or foreign"):
        verify(tmp_path / "d")


def test_bos_and_eod_follow_the_settings(tmp_path: Path, tokenizer_dir: Path) -> None:
    source = write_rows(tmp_path / "in.jsonl", [{"id": "1", "text": "ab"}])
    manifest = index(IndexSettings(append_eod=False, tokenizer=tokenizer_dir), [source], tokenizer_dir, tmp_path / "d")
    assert (manifest.tokenizer.append_eod, manifest.tokens) == (False, 2)
    assert str(tokenizer_dir) not in (tmp_path / "d.manifest.json").read_text()
    assert 0 not in np.array(IndexedDatasetReader(tmp_path / "d").document(0))

"""Parquet and Hugging Face datasets in: what their own readers read, and a counted drop for what cannot be taken."""

from __future__ import annotations

import base64
import random
from collections.abc import Callable
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import datasets
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from intake_cases import told

from data_prep.errors import UserError
from data_prep.intake import Drop, IntakeSettings, read, read_placed
from data_prep.readers import read_documents
from data_prep.records import Document

ROWS: list[dict[str, Any]] = [
    {"id": str(number), "text": f"text {number} 漢", "source": None, "metadata": {"n": number}, "url": None}
    for number in range(2500)
]


def strings(values: list[bytes]) -> pa.Array:
    """A column of strings that nobody checked."""
    return pa.array(values, pa.binary()).view(pa.string())


def test_parquet_rows_are_those_of_the_strict_reader(tmp_path: Path) -> None:
    path = tmp_path / "in.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS), path, row_group_size=2000)
    found = list(read_placed(path, IntakeSettings(source="s")))
    assert [item for _, item in found] == list(read_documents(path, source="s"))
    assert [where for where, _ in found] == [f"{path}:{number}" for number in range(1, 2501)]
    assert found[0][1] == Document("0", "text 0 漢", "s", {"n": 0})


def save(folder: Path, found: datasets.Dataset | datasets.DatasetDict, shards: int = 1) -> Path:
    kind = {split: shards for split in found} if isinstance(found, datasets.DatasetDict) else None
    found.save_to_disk(str(folder), num_shards=kind or shards)
    return folder


@pytest.mark.parametrize("shards", [1, 3])
def test_a_saved_dataset_is_read_as_its_library_reads_it(tmp_path: Path, shards: int) -> None:
    made = datasets.Dataset.from_list(ROWS[:700]).shuffle(seed=1)
    folder = save(tmp_path / "set", made, shards)
    found = list(read_placed(folder, IntakeSettings(source="s")))
    expected = [Document(row["id"], row["text"], "s", row["metadata"]) for row in datasets.load_from_disk(str(folder))]
    assert [item for _, item in found] == expected
    assert [where for where, _ in found] == [f"{folder}:{number}" for number in range(1, 701)]


def test_the_split_is_chosen_and_a_wrong_one_is_told(tmp_path: Path) -> None:
    parts = {"train": ["a"], "validation": ["b", "c"]}
    splits = {name: datasets.Dataset.from_dict({"text": texts}) for name, texts in parts.items()}
    folder = save(tmp_path / "sets", datasets.DatasetDict(splits))
    assert told(read(folder, IntakeSettings())) == [("text", "a")]
    assert told(read(folder, IntakeSettings(split="validation"))) == [("text", "b"), ("text", "c")]
    with pytest.raises(UserError, match=r"sets: there is no split 'valid'; did you mean 'validation'\?"):
        read(folder, IntakeSettings(split="valid"))


def test_a_saved_dataset_among_files_is_found(tmp_path: Path) -> None:
    save(tmp_path / "b" / "set", datasets.Dataset.from_dict({"text": ["in set"]}))
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "before"}')
    (tmp_path / "c.jsonl").write_bytes(b'{"text": "after"}')
    assert told(read(tmp_path, IntakeSettings())) == [("text", "before"), ("text", "in set"), ("text", "after")]


def test_a_broken_saved_dataset_is_one_drop(tmp_path: Path) -> None:
    folder = save(tmp_path / "set", datasets.Dataset.from_dict({"text": ["x" * 100] * 50}))
    (arrow,) = folder.glob("*.arrow")
    whole = arrow.read_bytes()
    (tmp_path / "next.jsonl").write_bytes(b'{"text": "next"}')
    for spoil in (
        lambda: arrow.write_bytes(whole[: len(whole) // 2]),
        lambda: arrow.write_bytes(b"no"),
        arrow.unlink,
        lambda: (folder / "state.json").write_bytes(b"{"),
    ):
        spoil()
        drop, following = read([folder, tmp_path / "next.jsonl"], IntakeSettings())
        assert isinstance(drop, Drop) and drop.reason == "broken_file" and drop.where.startswith(str(folder))
        assert isinstance(following, Document)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for the dataset OWNER/NAME of the hub: the library streams it as it streams that."""
    folder, load = tmp_path / "hub", datasets.load_dataset
    folder.mkdir()

    def load_dataset(name: str, configuration: str | None, **rest: Any) -> Any:
        if name != "owner/name":
            raise datasets.exceptions.DatasetNotFoundError(f"Dataset '{name}' doesn't exist on the Hub")
        return load(str(folder), configuration, **rest)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "TORCH_AVAILABLE", False)  # it would be imported, for seconds
    return folder


@pytest.mark.parametrize("name", ["owner/name", "hf://owner/name", "hf://owner/name:default"])
def test_a_name_of_the_hub_is_streamed(hub: Path, name: str) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS[:1000]), hub / "train.parquet")
    pq.write_table(pa.Table.from_pylist(ROWS[1000:1500]), hub / "test.parquet")
    for split, rows in (("train", ROWS[:1000]), ("test", ROWS[1000:1500])):
        found = list(read_placed([f"s={name}"], IntakeSettings(split=split)))
        assert [item for _, item in found] == [Document(row["id"], row["text"], "s", row["metadata"]) for row in rows]
        assert found[-1][0] == f"{name.removeprefix('hf://')}:{len(rows)}"


def test_an_unknown_name_or_split_is_one_error_before_anything_is_read(hub: Path, tmp_path: Path) -> None:
    (hub / "train.jsonl").write_bytes(b'{"text": "x"}\n')
    with pytest.raises(UserError, match=r"owner/other: .*no such file.*doesn't exist on the Hub"):
        read([tmp_path / "hub", "owner/other"], IntakeSettings())
    with pytest.raises(UserError, match=r"owner/name: .*split 'test'"):
        read(["owner/name"], IntakeSettings(split="test"))
    with pytest.raises(UserError, match="not a name of the hub"):
        read(["hf://a/b/c"], IntakeSettings())


def test_a_stream_that_breaks_is_a_drop_and_the_next_input_is_read(hub: Path, tmp_path: Path) -> None:
    good = b"".join(b'{"text": "%d"}\n' % number for number in range(300))
    (hub / "a.jsonl").write_bytes(good)
    (hub / "b.jsonl").write_bytes(b'{"text": "so far')
    (tmp_path / "next.jsonl").write_bytes(b'{"text": "next"}')
    *documents, drop, following = read(["owner/name", tmp_path / "next.jsonl"], IntakeSettings())
    assert told(documents) == [("text", str(number)) for number in range(len(documents))]
    assert isinstance(drop, Drop)
    assert (drop.where, drop.reason) == (f"owner/name:{len(documents) + 1}", "broken_file")
    assert told([following]) == [("text", "next")]


FAULTS: dict[str, tuple[pa.Array, str]] = {
    "null": (pa.array([None], pa.string()), "no_text"),
    "number": (pa.array([1]), "text_not_a_string"),
    "bytes": (pa.array([b"x"]), "text_not_a_string"),
    "list": (pa.array([["x"]]), "text_not_a_string"),
    "spaces": (pa.array([" \n"]), "only_spaces"),
    "NUL": (pa.array(["a\0b"]), "nul_byte"),
    "bad UTF-8": (strings([b"a\xff"]), "bad_utf8"),
    "a surrogate": (strings([b"\xed\xa0\x80"]), "bad_utf8"),
    "long": (pa.array(["x" * 5000]), "too_long"),
    "long in a dictionary": (pa.array(["x" * 5000]).dictionary_encode(), "too_long"),
}


@pytest.mark.parametrize(("column", "reason"), FAULTS.values(), ids=FAULTS)
@pytest.mark.parametrize("kind", ["parquet", "saved"])
def test_a_bad_row_is_a_drop(tmp_path: Path, column: pa.Array, reason: str, kind: str) -> None:
    around = pa.table({"text": ["good"]}) if reason not in ("text_not_a_string",) else None
    table = pa.table({"text": column})
    if around is not None:
        table = pa.concat_tables([around, table.cast(around.schema, safe=False), around])
    if kind == "parquet":
        path = tmp_path / "in.parquet"
        pq.write_table(table, path)
    else:
        path = save(tmp_path / "set", datasets.Dataset(table))
    found = [item for item in read(path, IntakeSettings(max_document_bytes=4000)) if isinstance(item, Drop)]
    row = 1 if around is None else 2
    assert [(drop.where, drop.reason) for drop in found] == [(f"{path}:{row}", reason)]


def test_a_row_is_as_long_as_its_own_part_of_a_dictionary(tmp_path: Path) -> None:
    """A dictionary is shared by the rows of a batch: none of them is as long as the whole of it."""
    texts = [f"{number} " + "x" * 1000 for number in range(50)]
    path = tmp_path / "in.parquet"
    pq.write_table(pa.table({"text": pa.array(texts).dictionary_encode()}), path)
    assert told(read(path, IntakeSettings(max_document_bytes=1200))) == [("text", text) for text in texts]


def test_metadata_are_such_that_json_can_hold_them(tmp_path: Path) -> None:
    table = pa.table(
        {
            "text": ["x"] * 2,
            "price": pa.array([Decimal("1.50"), None]),
            "blob": [b"\xff\0", None],
            "when": pa.array([datetime(2024, 1, 2), None]),
            "deep": [{"blob": b"a"}, None],
        }
    )
    pq.write_table(table, tmp_path / "in.parquet")
    first, second = read(tmp_path / "in.parquet", IntakeSettings())
    assert isinstance(first, Document) and isinstance(second, Document)
    assert orjson.loads(orjson.dumps(first.to_json()))["metadata"] == {
        "price": "1.50",
        "blob": base64.b64encode(b"\xff\0").decode(),
        "when": "2024-01-02T00:00:00",
        "deep": {"blob": "YQ=="},
    }
    assert second.metadata == {}


def test_a_value_without_a_form_in_python_is_a_drop_of_its_row(tmp_path: Path) -> None:
    late = pa.array([0, 2**62, 1], pa.timestamp("us"))  # the second is in the year 148,108
    pq.write_table(pa.table({"text": ["a", "b", "c"], "when": late}), tmp_path / "in.parquet")
    reasons = [item.reason if isinstance(item, Drop) else item.text for item in read(tmp_path, IntakeSettings())]
    assert reasons == ["a", "unreadable_value", "c"]


def test_after_a_broken_row_group_the_next_is_read(tmp_path: Path) -> None:
    path = tmp_path / "in.parquet"
    texts = [f"{number} " + random.Random(number).randbytes(50).hex() for number in range(300)]
    pq.write_table(pa.table({"text": texts}), path, row_group_size=100, use_dictionary=False, compression="zstd")
    column = pq.read_metadata(path).row_group(1).column(0)
    start, size = column.data_page_offset, column.total_compressed_size
    content = bytearray(path.read_bytes())
    content[start : start + size] = b"\xff" * size
    path.write_bytes(content)
    placed = list(read_placed(path, IntakeSettings()))
    assert [where for where, _ in placed] == [f"{path}:{row}" for row in (*range(1, 102), *range(201, 301))]
    found = [item for _, item in placed]
    drops = [item for item in found if isinstance(item, Drop)]
    assert [item.text for item in found if isinstance(item, Document)] == texts[:100] + texts[200:]
    assert [(drop.where, drop.reason) for drop in drops] == [(f"{path}:101", "broken_file")]
    assert drops[0].detail.startswith("100 rows are not read: ")


SPOILED: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda content: content[:-30],
    "half": lambda content: content[: len(content) // 2],
    "other": lambda content: b"no Parquet at all",
    "footer": lambda content: content[:-40] + b"\xff" * 32 + content[-8:],
}


@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED)
def test_a_file_that_is_no_parquet_is_one_drop_and_the_next_is_read(
    tmp_path: Path, spoil: Callable[[bytes], bytes]
) -> None:
    path, after = tmp_path / "a.parquet", tmp_path / "b.parquet"
    pq.write_table(pa.table({"text": ["next"]}), after)
    pq.write_table(pa.Table.from_pylist(ROWS), path)
    path.write_bytes(spoil(path.read_bytes()))
    drop, following = read([path, after], IntakeSettings())
    assert isinstance(drop, Drop) and (drop.where, drop.reason) == (f"{path}:1", "broken_file")
    assert told([following]) == [("text", "next")]


def test_tables_without_rows_are_told(tmp_path: Path) -> None:
    empty = pa.table({"text": pa.array([], pa.string())})
    pq.write_table(empty, tmp_path / "a.parquet")
    save(tmp_path / "b", datasets.Dataset(empty))
    assert told(read(tmp_path, IntakeSettings())) == [("reason", "empty_file")] * 2

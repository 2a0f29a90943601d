"""A process that damages a small dataset in drawn ways and reads it in every way: `fuzz_worker.py FOLDER EXAMPLES`.

FOLDER holds the datasets `a` (with spans) and `b`.  With a manifest that does not vouch for the damage, `verify` must
find it; with a forged one (its hashes made to fit) nothing may end in anything but a UserError.  Training texts of
FOLDER/a.jsonl, changed in drawn places, are either refused with file and line, or become a dataset that is sound.
"""

from __future__ import annotations

import faulthandler
import gc
import shutil
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import orjson
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_dataset import files_of, vouch

from data_prep import indexing
from data_prep.errors import UserError
from data_prep.indexing.inspect import inspect
from data_prep.indexing.lineage import read_lineage, read_row
from data_prep.indexing.merge import merge
from data_prep.indexing.reader import IndexedDatasetReader, open_dataset
from data_prep.indexing.spans import SpansReader
from data_prep.indexing.trace import trace
from data_prep.indexing.verify import verify, verify_sample
from data_prep.settings import IndexSettings

NAMES = ("bin", "idx", "spans", "lineage", "manifest")
# Numbers that reach beyond what they stand for.
NUMBERS = [0, 1, 2, 255, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1]
Damage = Callable[[bytes], bytes]


def flip(place: int, bit: int) -> Damage:
    def damage(data: bytes) -> bytes:
        at = place % max(1, len(data))
        return data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :] if data else b"x"

    return damage


def overwrite(place: int, number: int, size: int) -> Damage:
    def damage(data: bytes) -> bytes:
        at = place % max(1, len(data))
        new = struct.pack("<Q", number)[:size]
        return (data[:at] + new + data[at + size :])[: len(data)]

    return damage


def cut(place: int) -> Damage:
    return lambda data: data[: place % (len(data) + 1)]


PLACES = st.integers(0, 1 << 16) | st.integers(0, 100)
DAMAGES = st.one_of(
    st.builds(flip, PLACES, st.integers(0, 7)),
    st.builds(overwrite, PLACES, st.sampled_from(NUMBERS), st.sampled_from([1, 2, 4, 8])),
    st.builds(cut, PLACES),
    st.builds(lambda more: lambda data: data + more, st.binary(min_size=1, max_size=9)),
)


# What JSON can hold in a place of something else.
LEAVES = st.sampled_from([*NUMBERS, -1, -7, 1.0, 5.5, True, None, "", "t", "form", "tqa.c"])
VALUES = LEAVES | st.lists(LEAVES, max_size=3) | st.dictionaries(st.sampled_from(["ends", "at"]), LEAVES, max_size=1)


def copy(folder: Path, name: str, out: Path) -> None:
    for kind, path in files_of(folder / name).items():
        if path.exists():
            shutil.copy(path, files_of(out)[kind])


def refused(read: Callable[[], Any]) -> bool:
    """Whether reading ends in a UserError of one line; anything else is not caught."""
    try:
        read()
    except UserError as error:
        assert len(str(error).splitlines()) == 1
        return True
    except IndexError:  # what the readers say of a number outside
        return False
    return False


def documents(prefix: Path) -> None:
    reader = IndexedDatasetReader(prefix)
    views = []
    for index in [*range(min(reader.documents, 50)), reader.documents - 1]:
        views.append(reader.document(index))
    lengths = reader.document_lengths()
    reader.check_layout()
    pointers = reader.sequence_pointers
    del reader
    gc.collect()
    assert sum(int(view.sum()) for view in views) >= 0
    assert int(lengths.sum()) >= 0 and int(pointers.max()) >= 0


def runs(prefix: Path) -> None:
    reader = SpansReader(prefix)
    for index in [*range(min(reader.documents, 50)), reader.documents - 1]:
        assert all(start < end for start, end, _, _ in reader.document(index))
    reader.check(IndexedDatasetReader(prefix).document_lengths())


def rows(prefix: Path) -> None:
    for index in range(3):
        read_row(prefix, index)
    read_lineage(prefix).to_pylist()


def read_all(prefix: Path) -> None:
    for read in (documents, runs, rows, open_dataset, inspect, verify, verify_sample):
        refused(lambda read=read: read(prefix))
    for token in (0, 5, 40, 10**6):
        refused(lambda token=token: trace(prefix, token))
    refused(lambda: trace(prefix, document=1))
    refused(lambda: merge([prefix, prefix], prefix.with_name("merged")))


def change(value: Any, path: list[int], new: Any) -> Any:
    """`value` with `new` at the place that the path leads to, or where it ends."""
    if not path or not isinstance(value, dict | list) or not value:
        return new
    changed = value.copy()
    key = list(value)[path[0] % len(value)] if isinstance(value, dict) else path[0] % len(value)
    changed[key] = change(value[key], path[1:], new)
    return changed


def main(folder: Path, examples: int) -> None:
    faulthandler.enable()
    found = {"honest": 0, "forged": 0, "refused": 0, "sound": 0}

    @settings(max_examples=examples, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(st.sampled_from(NAMES), st.lists(DAMAGES, min_size=1, max_size=2), st.booleans())
    def damaged(name: str, damages: list[Damage], forged: bool) -> None:
        with TemporaryDirectory(dir=folder) as place:
            prefix = Path(place) / "d"
            copy(folder, "a", prefix)
            path = files_of(prefix)[name]
            before = data = path.read_bytes()
            for damage in damages:
                data = damage(data)
            path.write_bytes(data)
            if forged and name != "manifest":
                vouch(prefix)
                found["forged"] += 1
            elif data != before and name != "manifest":
                assert refused(lambda: verify(prefix)), f"{name} was damaged, and verify does not know"
                found["honest"] += 1
            read_all(prefix)

    @settings(max_examples=examples // 4, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(st.sampled_from(sorted(FIELDS)), st.sampled_from([*NUMBERS, -1, None, "", [], {}, "9" * 40]))
    def forged_field(name: str, value: Any) -> None:
        with TemporaryDirectory(dir=folder) as place:
            prefix = Path(place) / "d"
            copy(folder, "a", prefix)
            vouch(prefix, **{name: value})
            read_all(prefix)

    training_texts = [orjson.loads(line) for line in (folder / "a.jsonl").read_bytes().splitlines()]

    @settings(max_examples=examples, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(st.sampled_from(training_texts), st.lists(st.integers(0, 11), min_size=1, max_size=5), VALUES)
    def changed_row(row: dict[str, Any], path: list[int], value: Any) -> None:
        with TemporaryDirectory(dir=folder) as place:
            source, prefix = Path(place) / "in.jsonl", Path(place) / "d"
            source.write_bytes(b"".join(orjson.dumps(each) + b"\n" for each in (row, change(row, path, value))))
            choices = IndexSettings(prepend_bos=True, encoder="tokenizers", workers=0)
            try:
                indexing.index(choices, [source], folder / "tokenizer", prefix)
            except UserError as error:
                assert str(error).startswith(f"{source}:2: ") and len(str(error).splitlines()) == 1
                found["refused"] += 1
                return
            verify(prefix)
            read_all(prefix)
            found["sound"] += 1

    damaged()
    forged_field()
    changed_row()
    assert min(found["honest"], found["forged"], found["refused"], 4 * found["sound"]) > examples // 8, found
    sys.stdout.write(f"{found}\n")


FIELDS = {"format_version", "tokenizer", "dtype", "documents", "tokens", "text_bytes", "dropped", "settings", "inputs"}
FIELDS |= {"encoder", "created_by", "more"}

if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))

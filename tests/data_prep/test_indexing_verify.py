"""`verify`: every damaged, cut, foreign or inconsistent file is found and named in a line, whole or by sample."""

from __future__ import annotations

import gc
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import xxhash
from small_dataset import files_of, hashes_of, save_tokenizer, training_text, vouch, write_rows

from data_prep.errors import UserError
from data_prep.indexing import index
from data_prep.indexing.layout import HEADER
from data_prep.indexing.reader import IndexedDatasetReader, open_dataset
from data_prep.indexing.spans import SpansReader
from data_prep.indexing.verify import find_faults, verify, verify_sample, work_bytes
from data_prep.manifest import FileHashes, read_manifest
from data_prep.records import AugmentedText, Chain, Pair
from data_prep.settings import IndexSettings

DOCUMENTS = 9
FILES = ("bin", "idx", "spans", "lineage", "manifest")
SUFFIX = {"lineage": "lineage.parquet", "manifest": "manifest.json"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The datasets `a` and `b`: training texts of different chains, with BOS and EOD."""
    folder = tmp_path_factory.mktemp("verify")
    tokenizer = save_tokenizer(folder / "tokenizer")
    for name, word in (("a", "Die Zelle. "), ("b", "Wer da? ")):
        chains = [
            Chain(f"{name}-{i}", (AugmentedText(f"doc-{i}", word * (i + 1) + "!", (Pair("Was?", "Das."),)),))
            for i in range(DOCUMENTS)
        ]
        source = write_rows(folder / f"{name}.jsonl", [training_text(chain).to_json() for chain in chains])
        index(IndexSettings(prepend_bos=True, encoder="tokenizers"), [source], tokenizer, folder / name)
    return folder


@pytest.fixture
def d(folder: Path, tmp_path: Path) -> Path:
    """A copy of `a`."""
    copy(folder / "a", tmp_path / "d")
    return tmp_path / "d"


def copy(source: Path, prefix: Path) -> None:
    for kind, path in files_of(source).items():
        shutil.copy(path, files_of(prefix)[kind])


def change(path: Path, edit: Callable[[bytearray], object]) -> None:
    content = bytearray(path.read_bytes())
    edit(content)
    path.write_bytes(content)


def flip(path: Path, place: int, bit: int = 0) -> None:
    def edit(content: bytearray) -> None:
        content[place] ^= 1 << bit

    change(path, edit)


def only_fault(prefix: Path) -> str:
    """The one line that `verify` says."""
    faults = find_faults(prefix)
    assert faults, "nothing was found"
    with pytest.raises(UserError) as caught:
        verify(prefix)
    assert str(caught.value) == str(faults[0])
    assert len(str(faults[0]).splitlines()) == 1
    return str(faults[0])


# Where the fields and arrays of the .idx begin [bytes].
IDX = {
    "magic": 0,
    "version": 9,
    "dtype": 17,
    "sequences": 18,
    "boundaries": 26,
    "first length": 34,
    "last length": 34 + 4 * (DOCUMENTS - 1),
    "first pointer": 34 + 4 * DOCUMENTS,
    "last pointer": 34 + 4 * DOCUMENTS + 8 * (DOCUMENTS - 1),
    "first document": 34 + 12 * DOCUMENTS,
    "second document": 34 + 12 * DOCUMENTS + 8,
    "last document": 34 + 12 * DOCUMENTS + 8 * DOCUMENTS,
}


def test_the_fields_are_those_of_the_header(d: Path) -> None:
    content = files_of(d)["idx"].read_bytes()
    assert HEADER.unpack(content[:34]) == (b"MMIDIDX\x00\x00", 1, 8, DOCUMENTS, DOCUMENTS + 1)
    assert len(content) == IDX["last document"] + 8


@pytest.mark.parametrize("field", IDX)
@pytest.mark.parametrize("bit", [0, 7])
def test_a_bit_of_the_idx_is_found_though_the_manifest_vouches(d: Path, field: str, bit: int) -> None:
    flip(files_of(d)["idx"], IDX[field], bit)
    assert "d.idx: block 0, from byte 0 on, is not what its manifest vouches for" in only_fault(d)
    with pytest.raises(UserError, match=r"d\.idx: block 0"):
        open_dataset(d)
    vouch(d)
    assert any(name in only_fault(d) for name in ("d.idx: ", "d.bin: "))


def forge(path: Path, place: int, kind: str, number: int) -> None:
    change(path, lambda content: struct.pack_into(kind, content, place, number))


LENGTHS, POINTERS, INDICES = 34, 34 + 4 * DOCUMENTS, 34 + 12 * DOCUMENTS


@pytest.mark.parametrize(
    ("place", "kind", "number", "told"),
    [
        (LENGTHS + 4 * 2, "<i", -5, "sequence 2 is of a negative length"),
        (LENGTHS + 4 * 2, "<i", 2**31 - 1, "its lengths sum to"),
        (INDICES + 8 * 4, "<q", -(2**63), "document 3 ends before it starts"),
        (INDICES + 8 * 4, "<q", 2**62, "document 3 ends before it starts"),
        (INDICES + 8 * 4, "<q", 2, "document 3 ends before it starts"),
    ],
)
def test_forged_lengths_are_refused_by_the_reader(d: Path, place: int, kind: str, number: int, told: str) -> None:
    forge(files_of(d)["idx"], place, kind, number)
    with pytest.raises(UserError, match=told):
        IndexedDatasetReader(d).document_lengths()
    vouch(d)
    assert "d.idx: " in only_fault(d)


@pytest.mark.parametrize("number", [-2, 1, 2**62, -(2**63), 2**63 - 2])
def test_a_forged_pointer_leads_nowhere(d: Path, number: int) -> None:
    forge(files_of(d)["idx"], POINTERS + 8 * 3, "<q", number)
    reader = IndexedDatasetReader(d)
    with pytest.raises(UserError, match=r"d\.idx: document 3 lies outside of the \.bin"):
        reader.document(3)
    with pytest.raises(UserError, match=r"d\.idx: document 3 lies outside of the \.bin"):
        reader.read(3, 0, 1)
    assert len(reader.document(2)) == reader.sequence_lengths[2]


@pytest.mark.parametrize(("place", "number"), [(3, -1), (3, 2**40), (4, -1), (4, 2**40)])
def test_a_forged_document_leads_nowhere(d: Path, place: int, number: int) -> None:
    forge(files_of(d)["idx"], INDICES + 8 * place, "<q", number)
    with pytest.raises(UserError, match=r"d\.idx: document 3 ends before it starts"):
        IndexedDatasetReader(d).document(3)


def test_a_pointer_that_names_other_tokens_is_found(d: Path) -> None:
    """Every range is inside of the .bin, and the sums are right."""
    place = POINTERS + 8 * 3
    (start,) = struct.unpack_from("<q", files_of(d)["idx"].read_bytes(), place)
    forge(files_of(d)["idx"], place, "<q", start - 2)
    vouch(d)
    assert "d.idx: sequence 3 does not follow the one before it" in only_fault(d)


def test_half_a_token_is_none(d: Path) -> None:
    place = POINTERS + 8 * (DOCUMENTS - 1)
    (start,) = struct.unpack_from("<q", files_of(d)["idx"].read_bytes(), place)
    forge(files_of(d)["idx"], place, "<q", start + 1)
    change(files_of(d)["bin"], lambda content: content.append(0))
    with pytest.raises(UserError, match=r"d\.bin: \d+ bytes where the \.idx announces"):
        IndexedDatasetReader(d)


@pytest.mark.parametrize("kind", FILES)
def test_a_bit_anywhere_is_found_and_named(d: Path, kind: str) -> None:
    path = files_of(d)[kind]
    whole = path.read_bytes()
    for place in range(0, len(whole), max(1, len(whole) // 150)):
        path.write_bytes(whole)
        flip(path, place, place % 8)
        assert f"d.{SUFFIX.get(kind, kind)}: " in only_fault(d)


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("vouched", [False, True])
def test_a_file_of_another_length_is_named(d: Path, kind: str, vouched: bool) -> None:
    path = files_of(d)[kind]
    whole, manifest = path.read_bytes(), files_of(d)["manifest"].read_bytes()
    for size in (0, 1, 10, 34, len(whole) // 2, len(whole) - 2):
        path.write_bytes(whole[:size])
        if vouched and kind != "manifest":
            vouch(d)
        assert f"{path.name}: " in only_fault(d) or vouched
        path.write_bytes(whole)
    files_of(d)["manifest"].write_bytes(manifest)
    path.write_bytes(whole + b"\0")
    if kind == "manifest":
        assert "not JSON" in only_fault(d)
    else:
        assert f"{path.name}: {len(whole) + 1} bytes where its manifest says {len(whole)}" in only_fault(d)
    path.unlink()
    assert f"{path.name}: no " in only_fault(d)


@pytest.mark.parametrize("kind", FILES)
def test_a_file_of_another_dataset_is_named(folder: Path, d: Path, kind: str) -> None:
    shutil.copy(files_of(folder / "b")[kind], files_of(d)[kind])
    fault = only_fault(d)
    expected = "d.bin: " if kind == "manifest" else f"{files_of(d)[kind].name}: "
    assert expected in fault
    if kind in ("spans", "lineage"):
        vouch(d)
        assert expected in only_fault(d) or kind == "spans"


def test_all_damaged_blocks_are_told(d: Path) -> None:
    for kind in ("bin", "spans", "lineage"):
        flip(files_of(d)[kind], 40)
    assert [Path(fault.where).name for fault in find_faults(d, jobs=3)] == ["d.bin", "d.lineage.parquet", "d.spans"]


def test_spans_that_no_manifest_knows_are_foreign(d: Path) -> None:
    vouch(d, spans=None)
    assert "d.spans: its manifest knows of no spans" in only_fault(d)


def edit_token(d: Path, place: int, token: int) -> None:
    path = files_of(d)["bin"]
    tokens = np.fromfile(path, "<u2")
    tokens[place] = token
    tokens.tofile(path)
    vouch(d)


def test_tokens_are_held_against_vocabulary_and_policy(d: Path) -> None:
    second = IndexedDatasetReader(d).first_token(1)
    whole = files_of(d)["bin"].read_bytes()
    for place, token, told in (
        (second + 3, 60_000, "d.bin: token 3 of document 1 is 60000, outside of the vocabulary of 265"),
        (second, 5, "d.bin: document 1 does not begin with BOS, token 1"),
        (second - 1, 5, "d.bin: document 0 does not end with EOD, token 0"),
        (second + 4, 0, "d.bin: token 4 of document 1 is 0, a control token where a text is"),
        (second + 5, 1, "d.bin: token 5 of document 1 is 1, a control token where a text is"),
    ):
        edit_token(d, place, token)
        assert told in only_fault(d)
        files_of(d)["bin"].write_bytes(whole)


def test_without_spans_control_tokens_stand_at_the_ends_only(tmp_path: Path, write_dataset) -> None:
    write_dataset(tmp_path / "d", [[5, 6, 0], [7, 0, 0]])
    assert "token 1 of document 1 is 0, a control token" in only_fault(tmp_path / "d")
    vouch(tmp_path / "d", settings={"spans": False})  # their places were not recorded
    verify(tmp_path / "d")


@pytest.mark.parametrize("column", ["first_token", "tokens"])
def test_a_lineage_of_other_places_is_named(d: Path, column: str) -> None:
    path = files_of(d)["lineage"]
    table = pq.read_table(path)
    place = table.schema.get_field_index(column)
    moved = pc.add(table[column], pa.array([0] * 4 + [1] * (DOCUMENTS - 4), table.schema.field(place).type))
    pq.write_table(table.set_column(place, table.schema.field(place), moved), path)
    vouch(d)
    right = IndexedDatasetReader(d)
    expected = right.first_token(4) if column == "first_token" else len(right.document(4))
    assert f"{column} of document 4 is {expected + 1}, and in the .idx {expected}" in only_fault(d)
    pq.write_table(table.slice(1), path)
    vouch(d)
    assert f"{DOCUMENTS - 1} rows where the .idx has {DOCUMENTS} documents" in only_fault(d)
    pq.write_table(table.set_column(place, table.schema.field(place), pa.nulls(DOCUMENTS, table[column].type)), path)
    vouch(d)
    assert "a value is missing" in only_fault(d)


def test_other_sizes_of_texts_than_the_manifests_are_named(d: Path) -> None:
    path = files_of(d)["lineage"]
    table = pq.read_table(path)
    sizes, place = table["text_bytes"].to_numpy(), table.schema.get_field_index("text_bytes")
    pq.write_table(table.set_column(place, table.schema.field(place), pa.array(sizes + 1)), path)
    vouch(d)
    told = f"its rows have {sizes.sum() + DOCUMENTS} bytes of text where the manifest has {sizes.sum()}"
    assert told in only_fault(d)


def test_spans_that_do_not_cover_are_named(d: Path) -> None:
    path = files_of(d)["spans"]
    bounds = np.frombuffer(path.read_bytes()[24 : 24 + 8 * (DOCUMENTS + 1)], "<i8")
    ends = 24 + 8 * (DOCUMENTS + 1)
    whole = path.read_bytes()
    for place, document in ((ends + 4 * int(bounds[3]), 3), (24 + 8 * 2, 1), (len(whole) - 1, DOCUMENTS - 1)):
        flip(path, place, 6)
        vouch(d)
        assert f"d.spans: the runs of document {document} do not cover it" in only_fault(d)
        path.write_bytes(whole)


def test_a_view_outlives_its_reader_its_pages_and_its_file(d: Path) -> None:
    reader, spans = IndexedDatasetReader(d), SpansReader(d)
    views = [reader.document(4), reader.sequence_pointers, spans.ends, spans.bounds[2:], spans.runs_of(3, 5).classes]
    expected = [view.copy() for view in views]
    reader.forget_pages()
    spans.forget_pages()
    del reader, spans
    for kind in ("bin", "idx", "spans"):
        files_of(d)[kind].unlink()
    gc.collect()
    for view, copied in zip(views, expected, strict=True):
        assert view.tolist() == copied.tolist()
        with pytest.raises(ValueError, match="read-only"):
            view[0] = 1


@pytest.mark.parametrize("kind", ["spans", "lineage"])
def test_opening_sees_a_side_car_of_another_length_and_does_without_one(d: Path, kind: str) -> None:
    change(files_of(d)[kind], lambda data: data.append(0))
    with pytest.raises(UserError, match="stale or foreign"):
        open_dataset(d)
    files_of(d)[kind].unlink()
    open_dataset(d)


def test_jobs_change_nothing_and_progress_adds_up(d: Path) -> None:
    for jobs in (1, 4):
        read: list[int] = []
        manifest = verify(d, jobs, read.append)
        assert manifest == read_manifest(d)
        assert sum(read) == work_bytes(manifest)


def small_blocks(prefix: Path, block_bytes: int) -> int:
    """Rewrites the manifest with blocks of a few bytes, and gives their number."""
    fields, count = {}, 0
    for kind, path in files_of(prefix).items():
        if kind != "manifest":
            data = path.read_bytes()
            parts = [data[start : start + block_bytes] for start in range(0, len(data), block_bytes)]
            blocks = tuple(map(xxhash.xxh3_128_hexdigest, parts))
            fields[kind] = FileHashes(bytes=len(data), block_bytes=block_bytes, blocks=blocks)
            count += len(blocks)
    manifest = read_manifest(prefix)
    manifest.model_copy(update=fields).write(prefix)
    return count


def test_ranks_share_a_sample(d: Path) -> None:
    count = small_blocks(d, 64)
    assert count > 40
    alone = verify_sample(d, blocks=12, seed=3)
    shares = [verify_sample(d, rank, 5, blocks=12, seed=3) for rank in range(5)]
    assert sorted(block for share in shares for block in share) == sorted(alone)
    assert len(set(alone)) == 12
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert set(verify_sample(d, blocks=12, seed=4)) != set(alone)
    assert len(verify_sample(d, blocks=10**6)) == count
    path, number = alone[-1]
    flip(path, number * 64)
    found = []
    for rank in range(5):
        try:
            verify_sample(d, rank, 5, blocks=12, seed=3)
        except UserError as error:
            found.append(str(error))
    assert len(found) == 1
    assert f"{path.name}: block {number}, from byte {number * 64} on" in found[0]


def test_a_sample_sees_sizes_and_header_on_every_rank(d: Path) -> None:
    change(files_of(d)["lineage"], lambda data: data.append(0))
    for rank in range(2):
        with pytest.raises(UserError, match=r"d\.lineage\.parquet: .* stale or foreign"):
            verify_sample(d, rank, 2, blocks=1)
    vouch(d)
    flip(files_of(d)["idx"], 0)
    vouch(d)
    with pytest.raises(UserError, match="not a Megatron index"):
        verify_sample(d, 1, 2, blocks=1)


def test_a_sample_needs_neither_torch_nor_pyarrow(d: Path) -> None:
    code = "import sys; from pathlib import Path; from data_prep.indexing.verify import verify_sample;"
    code += f"verify_sample(Path({str(d)!r})); print({{'torch', 'pyarrow', 'tokenizers'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "set()", done.stderr


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "not JSON"),
        (b"[]", "not a JSON object"),
        (b'{"format_version": 99}', "format version 99 is newer than 3"),
        (b'{"a": ' * 500 + b"1" + b"}" * 500, "does not fit its hash"),
    ],
)
def test_a_manifest_that_is_none_is_named(d: Path, content: bytes, told: str) -> None:
    files_of(d)["manifest"].write_bytes(content)
    assert told in only_fault(d)


@pytest.mark.parametrize(
    ("change_to", "told"),
    [
        ({"dtype": "int32"}, "tokens of int32 are not"),
        ({"documents": 2}, "unlike its manifest"),
        ({"tokens": -1}, "not a manifest: tokens"),
        ({"unknown": 1}, "not a manifest: unknown"),
    ],
)
def test_a_forged_manifest_is_named(d: Path, change_to: dict[str, object], told: str) -> None:
    vouch(d, **change_to)
    assert told in only_fault(d)


def test_blocks_larger_than_memory_are_no_blocks(d: Path) -> None:
    path = files_of(d)["manifest"]
    content = orjson.loads(path.read_bytes())
    with pytest.raises(ValueError, match="less than or equal"):
        FileHashes(**{**content["bin"], "block_bytes": 1 << 62})


def test_the_oracle_of_these_tests_hashes_alike(d: Path) -> None:
    assert hashes_of(files_of(d)["bin"]) == read_manifest(d).bin

"""Shards: the same bytes whoever indexes what, in parts of any size, and however often it is killed."""

from __future__ import annotations

import fcntl
import gzip
import subprocess
import sys
from pathlib import Path

import numpy as np
import orjson
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers_for_tests import WORDS, llama3_like

from data_prep.errors import UserError
from data_prep.indexing import index
from data_prep.indexing.build import even_slices
from data_prep.indexing.lineage import read_lineage
from data_prep.indexing.reader import IndexedDatasetReader
from data_prep.indexing.verify import verify
from data_prep.readers import write_jsonl
from data_prep.records import Origin, Span, TrainingText
from data_prep.settings import IndexSettings

SUFFIXES = (".bin", ".idx", ".spans", ".lineage.parquet", ".manifest.json")


def rows(count: int) -> list[dict]:
    """Training texts of several sizes, blank ones, and plain rows."""
    found: list[dict] = []
    for number in range(count):
        text, answer = WORDS[number % len(WORDS)] * (number % 5 + 1), f"answer {number}"
        spans = (Span(0, len(text), "text", 0), Span(len(text), len(text) + len(answer), "answer", 0))
        whole = TrainingText(f"t{number}", text + answer, (Origin(f"d{number}", checks=("form",)),), "styles", 1, spans)
        found += [whole.to_json(), {"id": f"r{number}", "text": " " if number % 3 == 0 else f"raw {number}"}]
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return llama3_like(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    write_jsonl(tmp_path / "in.jsonl", rows(60))
    return tmp_path / "in.jsonl"


def files(prefix: Path) -> dict[str, bytes]:
    return {suffix: prefix.with_name(prefix.name + suffix).read_bytes() for suffix in SUFFIXES}


def test_the_bytes_do_not_depend_on_shards_or_workers(tmp_path: Path, corpus: Path, folder: Path) -> None:
    whole = index(IndexSettings(), [corpus], folder, tmp_path / "whole")
    index(IndexSettings(shard_mib=0.001, workers=0), [corpus], folder, tmp_path / "cut")
    index(IndexSettings(shard_mib=0.004, workers=2, batch_size=3), [corpus], folder, tmp_path / "side_by_side")
    assert files(tmp_path / "cut") == files(tmp_path / "side_by_side") == files(tmp_path / "whole")
    assert (whole.documents, whole.dropped) == (100, {"empty": 20})
    assert verify(tmp_path / "cut") == whole


def test_parquet_and_compressed_input_give_the_same_tokens(tmp_path: Path, corpus: Path, folder: Path) -> None:
    plain = [{"id": str(number), "text": text} for number, text in enumerate(WORDS * 5)]
    pq.write_table(pa.Table.from_pylist(plain), tmp_path / "in.parquet", row_group_size=3)
    for name in ("in.jsonl", "in.jsonl.zst", "in.jsonl.gz"):
        write_jsonl(tmp_path / name, plain)
    found = []
    for name in ("in.jsonl", "in.jsonl.zst", "in.jsonl.gz", "in.parquet"):
        index(IndexSettings(shard_mib=0.0001, workers=0), [tmp_path / name], folder, tmp_path / "d")
        found.append([(tmp_path / f"d{suffix}").read_bytes() for suffix in (".bin", ".idx")])
    assert found[1:] == found[:1] * 3


def test_null_texts_and_blank_lines_are_dropped_and_counted(tmp_path: Path, folder: Path) -> None:
    content = b'{"text": "a"}\n\n{"text": null}\n \r\n{"text": "b"}\n\n'
    (tmp_path / "in.jsonl").write_bytes(content)
    (tmp_path / "in.jsonl.gz").write_bytes(gzip.compress(content))
    pq.write_table(pa.table({"text": ["a", None, None, None, "b", None], "more": [1] * 6}), tmp_path / "in.parquet")
    for name in ("in.jsonl", "in.jsonl.gz", "in.parquet"):
        manifest = index(IndexSettings(workers=0), [tmp_path / name], folder, tmp_path / "d")
        assert (manifest.documents, manifest.dropped) == (2, {"empty": 4})
        assert read_lineage(tmp_path / "d")["id"].to_pylist() == [f"{name}:1", f"{name}:5"]


@pytest.mark.parametrize(("name", "key"), [("in.jsonl", "body"), ("in.parquet", "body"), ("bare.parquet", "body")])
def test_a_key_that_is_not_there_is_no_null(tmp_path: Path, folder: Path, name: str, key: str) -> None:
    write_jsonl(tmp_path / "in.jsonl", [{"text": "a"}])
    pq.write_table(pa.table({"text": ["a"], "id": ["1"]}), tmp_path / "in.parquet")
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "bare.parquet")
    with pytest.raises(UserError, match=rf"{name}.*expected a string under '{key}', no such key"):
        index(IndexSettings(text_key=key, workers=0), [tmp_path / name], folder, tmp_path / "d")


def test_training_texts_of_parquet_are_those_of_jsonl(tmp_path: Path, corpus: Path, folder: Path) -> None:
    """Plain rows have nulls where training texts have origins and spans."""
    found = [{"id": None, **orjson.loads(line)} for line in corpus.read_bytes().splitlines()]
    write_jsonl(tmp_path / "in.jsonl", found)
    pq.write_table(pa.Table.from_pylist(found), tmp_path / "in.parquet")
    for name in ("in.jsonl", "in.parquet"):
        index(IndexSettings(workers=0), [tmp_path / name], folder, tmp_path / name.replace(".", "-"))
    for suffix in (".bin", ".idx", ".spans"):
        assert len({(tmp_path / f"in-{kind}{suffix}").read_bytes() for kind in ("jsonl", "parquet")}) == 1
    tables = [read_lineage(tmp_path / f"in-{kind}").drop_columns("source_file") for kind in ("jsonl", "parquet")]
    assert tables[0].equals(tables[1])


def test_a_shard_without_a_document_and_an_input_without_a_line_do_no_harm(tmp_path: Path, folder: Path) -> None:
    write_jsonl(tmp_path / "blank.jsonl", [{"text": " "}] * 4)
    write_jsonl(tmp_path / "good.jsonl", [{"text": "good"}])
    (tmp_path / "empty.jsonl").touch()
    inputs = [tmp_path / f"{name}.jsonl" for name in ("blank", "empty", "good")]
    manifest = index(IndexSettings(), inputs, folder, tmp_path / "d")
    assert (manifest.documents, manifest.dropped, len(manifest.inputs)) == (1, {"empty": 4}, 3)
    with pytest.raises(UserError, match="no document with text"):
        index(IndexSettings(), inputs[1:2], folder, tmp_path / "e")


def test_characters_without_a_token_are_counted_over_all_shards(tmp_path: Path) -> None:
    """The tokenizer has no token for byte 0; a text of nothing else has no token at all, and is dropped."""
    folder = llama3_like(tmp_path / "tokenizer", lacking="Ā")
    write_jsonl(tmp_path / "in.jsonl", [{"text": text} for text in ("a\x00b\x00", "plain", "\x00\x00", "\x00c")])
    settings = IndexSettings(shard_mib=0.00001, workers=0)
    manifest = index(settings, [tmp_path / "in.jsonl"], folder, tmp_path / "d")
    assert (manifest.documents, manifest.dropped) == (3, {"empty": 1})
    assert (manifest.lost_characters, manifest.lossy_documents) == (3, 2)


def test_a_document_of_millions_of_characters(tmp_path: Path, folder: Path) -> None:
    text = "word " * 1_000_000
    write_jsonl(tmp_path / "in.jsonl", [{"text": "before"}, {"text": text}, {"text": "after"}])
    manifest = index(IndexSettings(), [tmp_path / "in.jsonl"], folder, tmp_path / "d")
    long = IndexedDatasetReader(tmp_path / "d").document(1)
    assert manifest.text_bytes == len(text) + len("beforeafter") and len(long) > 1_000_000
    assert len(np.unique(long[1:-1])) < 20


# Ends itself at the n-th rename, before or after it; the child of a process that has not touched the tokenizer yet.
KILLER = """
import os, signal, sys
from pathlib import Path
import awkward, gigatoken, pyarrow  # here once, rather than in every child
pyarrow.array(["x"])
import data_prep.indexing.build
from data_prep.indexing import index
from data_prep.settings import IndexSettings

corpus, folder, out = map(Path, sys.argv[1:4])
settings = IndexSettings(shard_mib=0.015, workers=0)
rename = Path.replace


def attempt(stop):
    count = 0

    def replace(self, target):
        nonlocal count
        if count == stop // 2 and stop % 2 == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        done = rename(self, target)
        if count == stop // 2:
            os.kill(os.getpid(), signal.SIGKILL)
        count += 1
        return done

    child = os.fork()
    if child == 0:
        Path.replace = replace
        index(settings, [corpus], folder, out)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


stop = 0
while attempt(stop) == -signal.SIGKILL:
    resumed = attempt(10**6)
    assert resumed == 0, resumed
    suffixes = (".bin", ".idx", ".spans", ".lineage.parquet", ".manifest.json")
    found = [out.with_name(out.name + suffix).read_bytes() for suffix in suffixes]
    expected = [out.with_name("whole" + suffix).read_bytes() for suffix in suffixes]
    assert found == expected, stop
    names = sorted(path.name for path in out.parent.glob(out.name + "*"))
    assert names == sorted(out.name + suffix for suffix in suffixes)
    if stop % 3:  # now and then over the old dataset
        for suffix in suffixes:
            out.with_name(out.name + suffix).unlink()
    stop += 1
print(stop)
"""


def test_killed_before_and_after_every_rename_the_next_run_gives_the_same_bytes(
    tmp_path: Path, corpus: Path, folder: Path
) -> None:
    index(IndexSettings(), [corpus], folder, tmp_path / "whole")
    command = [sys.executable, "-c", KILLER, str(corpus), str(folder), str(tmp_path / "d")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # job.json, then five files a shard and five of the dataset, each with a before and an after.
    shards = -(-corpus.stat().st_size // int(0.015 * 2**20))
    assert int(done.stdout) in {2 * (1 + 5 * (count + 1)) for count in (shards - 1, shards)}


RUN = """
import sys
from pathlib import Path
from data_prep.indexing import index
from data_prep.settings import IndexSettings

if __name__ == "__main__":
    index(IndexSettings(shard_mib=0.02, workers=2), [Path(sys.argv[1])], Path(sys.argv[2]), Path(sys.argv[3]))
"""


def test_a_killed_run_takes_its_workers_along_and_is_gone_on_with(tmp_path: Path, folder: Path) -> None:
    write_jsonl(tmp_path / "in.jsonl", rows(4000))
    (tmp_path / "run.py").write_text(RUN)
    arguments = [str(tmp_path / name) for name in ("in.jsonl", "d")]
    process = subprocess.Popen([sys.executable, tmp_path / "run.py", arguments[0], folder, arguments[1]])
    shards = tmp_path / "d.shards"
    while len(list(shards.glob("*.manifest.json"))) < 3:
        assert process.poll() is None, "too fast to be killed"
    workers = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    assert len(workers) >= 2 and not psutil.wait_procs(workers, timeout=20)[1]
    left = set(shards.glob("*.manifest.json"))
    assert left and not (tmp_path / "d.manifest.json").exists()
    before = {path: path.stat().st_mtime_ns for path in left}
    made: list[int] = []
    index(IndexSettings(shard_mib=0.02, workers=0), [tmp_path / "in.jsonl"], folder, tmp_path / "d", made.append)
    assert 0 < len(made) < -(-(tmp_path / "in.jsonl").stat().st_size // int(0.02 * 2**20)) - len(before) + 2
    index(IndexSettings(), [tmp_path / "in.jsonl"], folder, tmp_path / "whole")
    assert files(tmp_path / "d") == files(tmp_path / "whole")


def test_shards_of_other_input_or_settings_are_not_taken(tmp_path: Path, folder: Path, monkeypatch) -> None:
    write_jsonl(tmp_path / "in.jsonl", rows(20))
    settings = IndexSettings(shard_mib=0.001, workers=0)
    stopped_before_the_merge(settings, tmp_path / "in.jsonl", folder, tmp_path / "d", monkeypatch)
    assert (tmp_path / "d.shards" / "job.json").is_file()
    write_jsonl(tmp_path / "in.jsonl", rows(20)[::-1])
    index(settings, [tmp_path / "in.jsonl"], folder, tmp_path / "d")
    index(IndexSettings(), [tmp_path / "in.jsonl"], folder, tmp_path / "fresh")
    assert files(tmp_path / "d") == files(tmp_path / "fresh")


def test_another_number_of_workers_goes_on_with_the_shards_that_are_there(
    tmp_path: Path, corpus: Path, folder: Path, monkeypatch
) -> None:
    stopped_before_the_merge(IndexSettings(shard_mib=0.001, workers=0), corpus, folder, tmp_path / "d", monkeypatch)
    made: list[int] = []
    index(IndexSettings(shard_mib=0.01, workers=2), [corpus], folder, tmp_path / "d", made.append)
    index(IndexSettings(), [corpus], folder, tmp_path / "fresh")
    assert not made
    assert files(tmp_path / "d") == files(tmp_path / "fresh")


def test_who_asks_for_the_tokenizers_library_gets_no_shard_of_gigatokens(
    tmp_path: Path, corpus: Path, folder: Path, monkeypatch
) -> None:
    """It is asked for after a disagreement, and the shards from before it are kept."""
    settings = IndexSettings(shard_mib=0.001, workers=0)
    stopped_before_the_merge(settings, corpus, folder, tmp_path / "d", monkeypatch)
    made: list[int] = []
    manifest = index(
        settings.model_copy(update={"encoder": "tokenizers"}), [corpus], folder, tmp_path / "d", made.append
    )
    assert sum(made) == 120
    assert manifest.encoder.startswith("tokenizers ") and "gigatoken" not in manifest.encoder


def test_a_torn_record_of_the_job_does_no_harm(tmp_path: Path, corpus: Path, folder: Path, monkeypatch) -> None:
    settings = IndexSettings(shard_mib=0.001, workers=0)
    stopped_before_the_merge(settings, corpus, folder, tmp_path / "d", monkeypatch)
    index(IndexSettings(), [corpus], folder, tmp_path / "fresh")
    for torn in (b"", b'{"job', b"[1]"):
        (tmp_path / "d.shards").mkdir(exist_ok=True)
        (tmp_path / "d.shards" / "job.json").write_bytes(torn)
        index(settings, [corpus], folder, tmp_path / "d")
        assert files(tmp_path / "d") == files(tmp_path / "fresh")


def test_a_folder_of_the_users_is_left_alone(tmp_path: Path, corpus: Path, folder: Path) -> None:
    """PREFIX.shards may well be where a user keeps the input."""
    (tmp_path / "d.shards" / "old").mkdir(parents=True)
    source = corpus.rename(tmp_path / "d.shards" / "000.jsonl")
    before = source.read_bytes()
    with pytest.raises(UserError, match=r"d.shards: holds 000.jsonl, and the shards .*; move it, or give another"):
        index(IndexSettings(), [source], folder, tmp_path / "d")
    assert source.read_bytes() == before and (tmp_path / "d.shards" / "old").is_dir()
    assert index(IndexSettings(), [source], folder, tmp_path / "e").documents == 100


def test_what_stood_before_a_bad_line_is_not_indexed_again(tmp_path: Path, folder: Path, monkeypatch) -> None:
    """Slices are known by the blocks they lie in; here a block is a kilobyte."""
    monkeypatch.setattr("data_prep.shards.BLOCK_BYTES", 1024)
    monkeypatch.setattr("data_prep.shards._PIECE_BYTES", 512)
    settings = IndexSettings(shard_mib=0.001, workers=0)
    write_jsonl(tmp_path / "in.jsonl", rows(40))
    lines = (tmp_path / "in.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "in.jsonl").write_bytes(b"".join([*lines[:60], b"{\n", *lines[60:]]))
    made: list[int] = []
    with pytest.raises(UserError, match=r"in.jsonl:61: not JSON .*; then run again: .* is kept in d.shards"):
        index(settings, [tmp_path / "in.jsonl"], folder, tmp_path / "d", made.append)
    before = sum(made)
    (tmp_path / "in.jsonl").write_bytes(b"".join(lines))
    index(settings, [tmp_path / "in.jsonl"], folder, tmp_path / "d", made.append)
    assert before > 20 and before < sum(made) < before + 70
    index(IndexSettings(), [tmp_path / "in.jsonl"], folder, tmp_path / "fresh")
    assert files(tmp_path / "d") == files(tmp_path / "fresh")


def test_inputs_of_one_name_are_told_apart(tmp_path: Path, folder: Path) -> None:
    for side in ("train", "test"):
        write_jsonl(tmp_path / side / "0.jsonl", [{"text": side}])
    inputs = [tmp_path / side / "0.jsonl" for side in ("train", "test")]
    manifest = index(IndexSettings(), inputs, folder, tmp_path / "d")
    assert [file.name for file in manifest.inputs] == ["train/0.jsonl", "test/0.jsonl"]
    table = read_lineage(tmp_path / "d")
    assert table["id"].to_pylist() == ["train/0.jsonl:1", "test/0.jsonl:1"]
    assert table["source_file"].to_pylist() == ["train/0.jsonl", "test/0.jsonl"]


MANY = """
import resource, sys
from pathlib import Path
from data_prep.indexing import index
from data_prep.settings import IndexSettings

resource.setrlimit(resource.RLIMIT_NOFILE, (48, 48))
index(IndexSettings(shard_mib=0.0005, workers=0), [Path(sys.argv[1])], Path(sys.argv[2]), Path(sys.argv[3]))
"""


def test_more_shards_than_a_process_may_have_files(tmp_path: Path, corpus: Path, folder: Path) -> None:
    command = [sys.executable, "-c", MANY, str(corpus), str(folder), str(tmp_path / "d")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    index(IndexSettings(), [corpus], folder, tmp_path / "whole")
    assert files(tmp_path / "d") == files(tmp_path / "whole")


@given(st.integers(0, 10**13), st.integers(0, 64), st.integers(1, 10**10))
def test_slices_keep_every_worker_busy(size: int, workers: int, most: int) -> None:
    length = even_slices(size, workers, most)
    assert 1 <= length <= most
    if length > min(most, 16 << 20):  # else it is not worth a worker
        count = -(-size // length)
        assert count % max(1, workers) == 0
        assert count < -(-size // most) + max(1, workers)


def stopped_before_the_merge(settings: IndexSettings, corpus: Path, folder: Path, prefix: Path, monkeypatch) -> None:
    def crash(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("data_prep.indexing.build.merge", crash)
        index(settings, [corpus], folder, prefix)


def test_a_damaged_shard_of_an_earlier_run_is_made_again(
    tmp_path: Path, corpus: Path, folder: Path, monkeypatch
) -> None:
    settings = IndexSettings(shard_mib=0.001, workers=0)
    stopped_before_the_merge(settings, corpus, folder, tmp_path / "d", monkeypatch)
    for name in ("00001.bin", "00002.lineage.parquet", "00003.spans", "00004.manifest.json"):
        path = tmp_path / "d.shards" / name
        path.write_bytes(bytes(path.stat().st_size))
    (tmp_path / "d.shards" / "00005.idx").unlink()
    index(settings, [corpus], folder, tmp_path / "d")
    index(settings, [corpus], folder, tmp_path / "fresh")
    assert files(tmp_path / "d") == files(tmp_path / "fresh")


def test_two_runs_do_not_write_one_dataset(tmp_path: Path, corpus: Path, folder: Path) -> None:
    (tmp_path / "d.shards").mkdir()
    with (tmp_path / "d.shards" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another run is writing this dataset; wait for it"):
            index(IndexSettings(), [corpus], folder, tmp_path / "d")
    index(IndexSettings(), [corpus], folder, tmp_path / "d")

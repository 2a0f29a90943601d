"""What a run is told by: what is made again when something that decides its bytes has changed, and what is left."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
from scripted_engine import ScriptedEngine

from data_prep.errors import UserError
from data_prep.intake import read_placed
from data_prep.readers import write_jsonl
from data_prep.settings import SynthesizeSettings
from data_prep.synthesis import retry_failed, synthesize
from data_prep.synthesis.engines import Request
from data_prep.synthesis.estimate import estimate
from data_prep.synthesis.identity import BLOCK_BYTES, differing, identity_of
from data_prep.synthesis.work import Work, begin


def settings(**values: Any) -> SynthesizeSettings:
    return SynthesizeSettings(engine="rules", **values)


def corpus(path: Path, count: int, key: str = "text") -> Path:
    write_jsonl(path, [{"id": f"d{i}", key: f"Text t{i} says little."} for i in range(count)])
    return path


@pytest.mark.parametrize("spelled", ["{0}/*.jsonl", "name={0}/a.jsonl", "{0}", "{0}/a.jsonl"])
def test_an_input_that_has_changed_is_seen_however_it_is_named(tmp_path: Path, spelled: str):
    """What is finished is replaced by who says so (`ipt run` does) or removes it, and else left."""
    folder = tmp_path / "in"
    corpus(folder / "a.jsonl", 3)
    given, out = spelled.format(folder), tmp_path / "c.jsonl"
    counts = [synthesize(settings(), given, None, out)["documents"]]  # type: ignore[index]
    made = out.read_bytes()
    corpus(folder / "a.jsonl", 5)
    with pytest.raises(
        UserError, match=r"c\.jsonl: is finished, and was made with another inputs; name another file, or"
    ):
        synthesize(settings(), given, None, out)
    assert out.read_bytes() == made and not Path(f"{out}.work").exists()
    counts.append(synthesize(settings(), given, None, out, replace=True)["documents"])  # type: ignore[index]
    corpus(folder / "a.jsonl", 6)
    out.unlink()
    counts.append(synthesize(settings(), given, None, out)["documents"])  # type: ignore[index]
    assert counts == [3, 5, 6]


@pytest.mark.parametrize("spelled", ["{0}/in", "name={0}/in/*.jsonl", "{0}/in/a.jsonl"])
def test_a_run_on_its_way_goes_on_with_a_corpus_that_was_moved(
    tmp_path: Path, spelled: str, caplog: pytest.LogCaptureFixture
):
    options, out = settings(shard_documents=3), tmp_path / "c.jsonl"
    corpus(tmp_path / "in" / "a.jsonl", 9)
    assert synthesize(options, spelled.format(tmp_path), None, out, None, None, 0, 2) is None
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "in").rename(tmp_path / "elsewhere/in")
    os.utime(tmp_path / "elsewhere/in/a.jsonl", (1, 1))
    given = spelled.format(tmp_path / "elsewhere")
    summary = synthesize(options, given, None, out)
    assert summary is not None and summary["documents"] == 9 and "lie elsewhere or are of another time" in caplog.text
    assert synthesize(options, given, None, out) == summary
    os.utime(tmp_path / "elsewhere/in/a.jsonl", (2, 2))
    with pytest.raises(UserError, match="is finished, and was made with another input_files"):
        synthesize(options, given, None, out)


@pytest.mark.parametrize("change", [corpus, lambda path, count: corpus(path.with_name("b.jsonl"), 1)])
def test_a_run_on_its_way_does_not_go_on_with_another_corpus(tmp_path: Path, change: Any):
    options, out = settings(shard_documents=3), tmp_path / "c.jsonl"
    corpus(tmp_path / "in" / "a.jsonl", 9)
    assert synthesize(options, tmp_path / "in", None, out, None, None, 0, 2) is None
    change(tmp_path / "in" / "a.jsonl", 10)
    with pytest.raises(UserError, match=r"c\.jsonl\.work: was begun with another inputs; give"):
        synthesize(options, tmp_path / "in", None, out)


def test_another_model_with_the_same_tokenizer_is_another_run(tmp_path: Path):
    def told(content: bytes) -> object:
        (tmp_path / "model").mkdir(exist_ok=True)
        (tmp_path / "model/model.safetensors").write_bytes(content)
        return identity_of([], settings(), "tokenizer", tmp_path / "model")["model"]

    weights = bytearray(os.urandom(3 * BLOCK_BYTES))
    first = told(weights)
    assert told(weights) == first  # written again, so at another time
    (tmp_path / "model/.cache").mkdir()
    (tmp_path / "model/.cache/model.metadata").write_text("fetched at another time")
    assert told(weights) == first
    weights[len(weights) // 2] ^= 1
    assert told(weights) != first
    assert told(bytes(weights[:-1])) != told(weights)


def test_other_rules_are_another_run_be_it_finished_or_on_its_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Answers of the rules as they were are neither taken for those of today's, nor mixed with them."""
    path, done, under_way = corpus(tmp_path / "in.jsonl", 9), tmp_path / "c.jsonl", tmp_path / "w.jsonl"
    options = settings(shard_documents=3)
    synthesize(options, path, None, done)
    assert synthesize(options, path, None, under_way, None, None, 0, 2) is None
    monkeypatch.setattr("data_prep.synthesis.engines.rules.RULES_VERSION", 2)
    with pytest.raises(
        UserError, match=r"c\.jsonl: is finished, and was made with another engine_version; name another"
    ):
        synthesize(options, path, None, done)
    with pytest.raises(
        UserError, match=r"w\.jsonl\.work: was begun with another engine_version; give what it was begun"
    ):
        synthesize(options, path, None, under_way)


def test_an_engine_that_is_given_is_told_by_its_own_identity(tmp_path: Path):
    class Other(ScriptedEngine):
        identity: ClassVar = {"engine": "scripted", "places": (1, 2)}

    path, out = corpus(tmp_path / "in.jsonl", 3), tmp_path / "c.jsonl"
    made = synthesize(settings(), path, None, out, engine=Other())
    assert made is not None and synthesize(settings(), path, None, out, engine=Other()) == made
    for other in (ScriptedEngine(), None):
        with pytest.raises(UserError, match=r"was made with another engine.*_places"):
            synthesize(settings(), path, None, out, engine=other)


@pytest.mark.parametrize(
    ("engine", "values", "is_another"),
    [
        ("vllm", {"dtype": "float32"}, True),
        ("vllm", {"quantization": "fp8"}, True),
        ("vllm", {"engine_args": {"kv_cache_dtype": "fp8"}}, True),
        ("vllm", {"engine_args": {"gpu_memory_utilization": 0.8, "max_num_seqs": 64}}, False),
        ("vllm", {"tensor_parallel_size": 8}, False),
        ("transformers", {"dtype": "float32"}, True),
        ("server", {"server_model": "other"}, True),
        ("server", {"server_model": "model"}, False),  # as it is named without that
        ("server", {"server_prompt": "text"}, True),
        ("server", {"server_body": {"top_k": 0}}, True),
        ("server", {"server_body": {"top_p": 1.0}}, False),  # as it is sent without that
        ("rules", {"server_body": {"top_k": 0}}, False),
        ("server", {"server_urls": ("http://a",), "request_timeout": 3.0, "request_limit": 9.0}, False),
        ("rules", {"preset": "paper"}, False),
        ("rules", {"demonstrations": "builtin"}, True),
        ("rules", {"workers": 3, "executor": "ray", "concurrency": 7, "gpus_per_worker": 0.5}, False),
    ],
)
def test_what_may_change_the_answers_is_another_run_and_nothing_else(
    engine: Any, values: dict[str, Any], is_another: bool
):
    def told(**chosen: Any) -> dict[str, Any]:
        return identity_of([], SynthesizeSettings(engine=engine, **chosen), "tokenizer", Path("model"))

    assert differing(told(), told(**values)) == (list(values) if is_another else [])


def test_after_a_plan_or_inputs_without_a_document_other_settings_may_be_given(tmp_path: Path):
    path, out = corpus(tmp_path / "in.jsonl", 9, key="content"), tmp_path / "c.jsonl"
    with pytest.raises(UserError, match=r"no documents in it \(9 no_text\); .*dropped\.jsonl"):
        synthesize(settings(), path, None, out)
    planned = estimate(settings(text_key="content"), [path], None, out, sample=4, engine=ScriptedEngine())
    assert (planned.documents, planned.sampled) == (9, 4) and planned.figures["pairs"][0] == 9
    summary = synthesize(settings(text_key="content", rounds=3), path, None, out)
    assert summary is not None and summary["documents"] == 9


def test_a_kill_while_the_folder_of_a_run_is_removed_leaves_a_run_that_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path, out = corpus(tmp_path / "in.jsonl", 9), tmp_path / "c.jsonl"

    class Killed(BaseException):
        """As from a signal."""

    def killed(folder: Path, **_: object) -> None:
        for file in Path(folder).rglob("*.zst"):
            file.unlink()
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("data_prep.synthesis.work.shutil.rmtree", killed)
        with pytest.raises(Killed):
            synthesize(settings(), path, None, out)
    made = out.read_bytes()
    summary = synthesize(settings(), path, None, out)
    assert summary is not None and summary["documents"] == 9 and out.read_bytes() == made
    assert not list(tmp_path.glob("c.jsonl.work*"))


def test_what_a_kill_has_left_of_the_files_goes_at_the_next_start(tmp_path: Path):
    path, out = corpus(tmp_path / "in.jsonl", 3), tmp_path / "c.jsonl"

    def poisoned(requests: Sequence[Request]) -> None:
        if "t1" in requests[0].text:
            raise ValueError("too long")

    fail = ScriptedEngine(before=poisoned)
    left = [tmp_path / f".c.jsonl.{kind}{socket.gethostname()}.999999999.x.partial" for kind in ("", "new.jsonl.")]
    starts: tuple[Callable[[], Any], ...] = (
        lambda: synthesize(settings(), path, None, out, engine=fail),
        lambda: synthesize(settings(), path, None, out, engine=fail),
        lambda: retry_failed(settings(), None, out, engine=ScriptedEngine()),
    )
    for start in starts:
        for partial in left:
            partial.touch()
        start()
        assert not list(tmp_path.glob(".*"))


def test_tasks_that_begin_at_once_where_there_are_no_locks_have_one_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def refused(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    rows = [{"id": f"d{i % 7}", "text": f"Text t{i} says little."} for i in range(9)]
    write_jsonl(tmp_path / "in.jsonl", rows)
    options, begun = settings(shard_documents=2, documents=5), []

    def start() -> Work:
        return begin(tmp_path / "c.work", [tmp_path / "in.jsonl"], options, {"of": "this"})

    def read(*args: Any) -> Iterator[Any]:
        for number, item in enumerate(read_placed(*args)):
            if number == 5 and len(begun) < 2:
                begun.append(None)
                begun[begun.index(None)] = start()
            yield item

    monkeypatch.setattr("data_prep.locks.fcntl.flock", refused)
    monkeypatch.setattr("data_prep.synthesis.work.read_placed", read)
    dead = tmp_path / f"c.work.filling.{socket.gethostname()}.999999999.x"
    dead.mkdir()
    works = [start(), *begun]
    assert len(works) == 3 and all(work.plan == works[0].plan for work in works)
    assert works[0].plan["dropped"] == {"duplicate_id": 2} and works[0].plan["documents"] == 7
    items = [item for shard in range(works[0].shards) for item in works[0].texts_of(shard)]
    assert sorted(type(item).__name__ for item in items) == ["Document"] * 5 + ["Drop"] * 2
    assert {path.name for path in tmp_path.iterdir()} == {"in.jsonl", "c.work"}


def test_an_input_is_not_written_over_and_the_place_of_the_chains_is_looked_at_first(tmp_path: Path):
    path = corpus(tmp_path / "in" / "a.jsonl", 3)
    before = path.read_bytes()
    for given, out, told in (
        (path, path, "is one of the inputs"),
        (f"{path.parent}/*.jsonl", path, "is one of the inputs"),
        (path.parent, path.parent / "c.jsonl", "which is read"),
        (path, tmp_path / "in", "a folder stands there"),
    ):
        with pytest.raises(UserError, match=told):
            synthesize(settings(), given, None, out)
    assert path.read_bytes() == before and {each.name for each in tmp_path.rglob("*")} == {"in", "a.jsonl"}


def test_what_a_killed_plan_has_left_is_not_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path, engines = corpus(tmp_path / "in.jsonl", 9), [ScriptedEngine(), ScriptedEngine()]
    for engine in engines:
        with monkeypatch.context() as patch:
            if engine is engines[0]:
                patch.setattr(Path, "unlink", lambda *_, **__: None)
            estimate(settings(), [path], None, tmp_path / "c.jsonl", sample=4, engine=engine)
    assert len(engines[1].requests) == 4

"""A real Ray cluster of this machine: the bytes are those of one process, whoever dies (`make test-ray`)."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ray: Any = pytest.importorskip("ray", reason="`make test-ray` makes an environment with it")
HERE = Path(__file__).resolve()
sys.path.insert(0, str(HERE.parents[1] / "data_prep"))

from dying_job import DyingJob, SickJob, UnmadeJob  # noqa: E402

from data_prep.errors import UserError  # noqa: E402
from data_prep.readers import write_jsonl  # noqa: E402
from data_prep.settings import SynthesizeSettings  # noqa: E402
from data_prep.synthesis import synthesize  # noqa: E402

TEXT = "The kiln of number {0}\n\nA kiln is an oven for bricks. It burned in 18{0:02}; therefore it was rebuilt. "


def settings(**values: Any) -> SynthesizeSettings:
    return SynthesizeSettings(engine="rules", shard_documents=5, rounds=3, **values)


@pytest.fixture(scope="module")
def mark(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mark") / "died"


@pytest.fixture(scope="module", autouse=True)
def cluster(mark: Path) -> Iterator[None]:
    paths = f"{HERE.parents[2]}:{HERE.parents[1] / 'data_prep'}"
    ray.init(
        num_cpus=3,
        include_dashboard=False,
        runtime_env={"env_vars": {"PYTHONPATH": paths, "IPT_TEST_DIES_ONCE": str(mark)}},
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    write_jsonl(path, ({"id": f"d{i}", "text": TEXT.format(i) * (1 + i % 3)} for i in range(40)))
    synthesize(settings(), path, None, path.with_name("whole.jsonl"))
    return path


def test_actors_write_the_same_bytes_as_one_process(tmp_path: Path, corpus: Path) -> None:
    told: list[Any] = []
    options = settings(executor="ray", workers=2)
    synthesize(options, corpus, None, tmp_path / "c.jsonl", told.append)
    assert (tmp_path / "c.jsonl").read_bytes() == corpus.with_name("whole.jsonl").read_bytes()
    assert len(told) == 8 and told[-1].documents == 40


def test_more_workers_than_the_cluster_has_room_for_write_the_same_bytes(tmp_path: Path, corpus: Path) -> None:
    told: list[Any] = []
    synthesize(settings(executor="ray", workers=6), corpus, None, tmp_path / "c.jsonl", told.append)
    assert (tmp_path / "c.jsonl").read_bytes() == corpus.with_name("whole.jsonl").read_bytes()
    assert told[-1].documents == 40


def test_a_shard_whose_actor_died_is_worked_off_by_another(
    tmp_path: Path, corpus: Path, mark: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("data_prep.synthesis.Job", DyingJob)
    synthesize(settings(executor="ray", workers=2), corpus, None, tmp_path / "c.jsonl")
    assert mark.exists() and "died or failed" in caplog.text
    assert (tmp_path / "c.jsonl").read_bytes() == corpus.with_name("whole.jsonl").read_bytes()


def test_an_engine_that_fails_on_one_worker_costs_no_shard(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("data_prep.synthesis.Job", SickJob)
    synthesize(settings(executor="ray", workers=2), corpus, None, tmp_path / "c.jsonl")
    assert "OSError: CUDA error" in caplog.text
    assert (tmp_path / "c.jsonl").read_bytes() == corpus.with_name("whole.jsonl").read_bytes()


def test_an_engine_that_no_actor_can_make_is_told_in_its_own_line(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_prep.synthesis.Job", UnmadeJob)
    with pytest.raises(UserError, match=r"^model: vLLM did not start: no such thing; see its log above$"):
        synthesize(settings(executor="ray", workers=2), corpus, None, tmp_path / "c.jsonl")


def test_a_model_that_is_not_there_is_told_in_its_own_line(tmp_path: Path, corpus: Path) -> None:
    nowhere = tmp_path / "nowhere"
    with pytest.raises(UserError, match="no such directory"):
        synthesize(SynthesizeSettings(executor="ray", workers=2), corpus, nowhere, tmp_path / "c.jsonl")

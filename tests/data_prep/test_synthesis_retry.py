"""Failed texts asked about again: samples, kills at every step, and the account of every text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
from scripted_engine import ScriptedEngine
from synthesis_files import ALL

from data_prep.errors import UserError
from data_prep.readers import read_jsonl, write_jsonl
from data_prep.settings import SynthesizeSettings
from data_prep.synthesis import retry_failed, synthesize
from data_prep.synthesis.engines import Completion, Request


class Killed(BaseException):
    """As from a signal."""


def settings(**values: Any) -> SynthesizeSettings:
    return SynthesizeSettings(**{"max_new_tokens": 50, "max_model_len": 4000, "temperature": 1.0, **values})


def corpus(path: Path, count: int) -> Path:
    write_jsonl(path, [{"id": f"d{i}", "text": f"Text t{i} says little."} for i in range(count)])
    return path


class Moody(ScriptedEngine):
    """Fails, or makes no pair, at the calls (counted from 0) that it is told."""

    def __init__(self, fails: Sequence[int] = (), barren: Sequence[int] = ()) -> None:
        super().__init__(concurrency=1)
        self.fails, self.barren, self.calls = fails, barren, -1

    async def generate(self, requests: Sequence[Request]) -> list[Completion]:
        self.calls += 1
        if self.calls in self.fails:
            raise RuntimeError("out of luck")
        if self.calls in self.barren:
            return [Completion("nothing", "stop", 1, 1)]
        return await super().generate(requests)


def check_the_account(out: Path, summary: dict[str, Any], texts: int, samples: int) -> None:
    """Every text has pairs in some sample or is left over, and every sample of it is somewhere."""
    used = [(t["document_id"], t.get("sample", 0)) for row in read_jsonl(out) for t in row["texts"]]
    left = [row["document_id"] for row in read_jsonl(f"{out}.leftover.jsonl")]
    failed = [(row["document_id"], row.get("sample", 0)) for row in read_jsonl(f"{out}.failed.jsonl")]
    assert len(set(used)) == len(used) and not set(used) & set(failed)
    assert sorted({name for name, _ in used} | set(left)) == sorted(f"d{i}" for i in range(texts))
    assert len(set(left)) == len(left) and not {name for name, _ in used} & set(left)
    assert summary["texts_with_pairs"] + sum(summary["leftover"].values()) == summary["texts"] == texts
    assert summary["failed"] == len(failed) and summary["chains"] == len(list(read_jsonl(out)))
    assert len({row["id"] for row in read_jsonl(out)}) == summary["chains"]
    for row in read_jsonl(out):
        assert len({text["document_id"] for text in row["texts"]}) == len(row["texts"])
        assert len({text.get("sample", 0) for text in row["texts"]}) == 1
    assert samples * texts >= len(used) + len(failed)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (Moody(fails=[0, 1]), Moody(barren=[0])),  # the other sample has pairs: not left over
        (Moody(fails=[0], barren=[3]), Moody(barren=[0])),  # in vain twice: left over still
        (Moody(fails=[0], barren=[3]), Moody()),  # the retry makes the pairs that the other sample has not
        (Moody(fails=[0, 3]), Moody()),  # two samples of one text fail, and go into two chains
        (Moody(fails=[0, 3]), Moody(fails=[0])),
    ],
)
def test_with_samples_every_text_is_accounted_for_after_a_retry(tmp_path: Path, first: Moody, second: Moody):
    path, out = corpus(tmp_path / "in.jsonl", 3), tmp_path / "c.jsonl"
    summary = synthesize(settings(samples=2, rounds=2), path, None, out, engine=first)
    assert summary is not None and summary["failed"]
    check_the_account(out, summary, 3, 2)
    check_the_account(out, retry_failed(settings(samples=2), None, out, engine=second), 3, 2)


@pytest.mark.parametrize("step", range(48))
def test_a_retry_killed_at_any_change_of_a_file_loses_and_doubles_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
):
    path, out = corpus(tmp_path / "in.jsonl", 5), tmp_path / "c.jsonl"
    synthesize(settings(), path, None, out, engine=Moody(fails=[1, 2]))
    steps = 0

    def counted(change: Callable[..., Any]) -> Callable[..., Any]:
        def changed(*args: Any, **options: Any) -> Any:
            nonlocal steps
            steps += 1
            if steps > step:
                raise Killed
            return change(*args, **options)

        return changed

    with monkeypatch.context() as patch:
        for name in ("replace", "unlink"):
            patch.setattr(Path, name, counted(getattr(Path, name)))
        try:
            retry_failed(settings(), None, out, engine=Moody())
        except Killed:
            pass
        else:
            assert step > 35  # it takes fewer changes
    try:
        summary = retry_failed(settings(), None, out, engine=Moody())
    except UserError as error:
        assert "no text failed" in str(error)
        again = synthesize(settings(), path, None, out, engine=Moody())
        assert again is not None
        summary = again
    check_the_account(out, summary, 5, 1)
    assert summary["leftover"] == {} and summary["failed"] == 0
    expected = {"in.jsonl", *(f"c.jsonl{kind}" for kind in ALL)}
    assert {name.name for name in tmp_path.iterdir() if not name.name.endswith((".partial", ".lock"))} == expected


def test_a_killed_retry_repeats_only_what_was_under_way(tmp_path: Path):
    path, out = corpus(tmp_path / "in.jsonl", 9), tmp_path / "c.jsonl"
    synthesize(settings(), path, None, out, engine=Moody(fails=range(1, 9)))

    class Dies(Moody):
        async def generate(self, requests: Sequence[Request]) -> list[Completion]:
            if self.calls == 5:
                raise Killed
            return await super().generate(requests)

    with pytest.raises(Killed):
        retry_failed(settings(), None, out, engine=Dies())
    engine = Moody()
    check_the_account(out, retry_failed(settings(), None, out, engine=engine), 9, 1)
    assert len(engine.requests) == 8 - 6


class Other(ScriptedEngine):
    identity: ClassVar = {"engine": "scripted", "weights": 2}


@pytest.mark.parametrize(
    ("values", "engine", "told"),
    [
        ({"temperature": 0.5}, Moody, "temperature"),
        ({"max_new_tokens": 60, "seed": 7}, Moody, "max_new_tokens, seed"),
        ({"demonstrations": "builtin"}, Moody, "demonstrations"),
        ({"rounds": 3}, Moody, "rounds"),
        ({}, Other, "engine_weights"),
        ({"batch_size": 1, "shard_documents": 1, "max_text_tokens": 64, "documents": 1, "samples": 3}, Moody, None),
        ({"concurrency": 1, "workers": 3, "request_timeout": 5.0, "request_retries": 0, "text_key": "t"}, Moody, None),
    ],
)
def test_a_retry_asks_as_the_run_did(tmp_path: Path, values: dict[str, Any], engine: Any, told: str | None):
    path, out = corpus(tmp_path / "in.jsonl", 3), tmp_path / "c.jsonl"
    synthesize(settings(), path, None, out, engine=Moody(fails=[1]))
    made = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    if told is None:
        check_the_account(out, retry_failed(settings(**values), None, out, engine=engine()), 3, 1)
        return
    refused = rf"c\.jsonl: was made with another {told}; give what `made_of` in c\.jsonl\.summary\.json tells"
    with pytest.raises(UserError, match=refused):
        retry_failed(settings(**values), None, out, engine=engine())
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == made

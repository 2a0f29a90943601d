"""The loop against a plain one: twenty steps under uneven masks, steps that are left out, a batch that grows.

The plain loop is transformers and torch's AdamW in one process (plain_loop.py).  Ours runs on two real processes.
"""

from __future__ import annotations

import hashlib
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SEQ_LENGTH, VOCABULARY, TinyRun, environment, losses, torchrun
from test_policy import write_spans

from data_prep.blend import plan
from data_prep.settings import BlendSettings

HERE = Path(__file__).parent
TP2 = ["train.tensor_model_parallel_size=2", "train.use_distributed_optimizer=false"]
PP2 = ["train.pipeline_model_parallel_size=2"]
OVERLAP = ["train.overlap_grad_reduce=true", "train.overlap_param_gather=true"]
SPIKES = ["train.spike_sigma=6", "train.spike_window=4"]
RAMP = ["train.step_batch_size_schedule='0:4 16:8'"]
SAME = ["train.deterministic_mode=true", "train.bf16=true"]
SIZES = [4, 4, 4, 4, 8, 8]


def masked(folder: Path, write_dataset: Any) -> Path:
    """A blend of one source of which a third of the labels counts, other shares in each sequence."""
    generator = np.random.default_rng(11)
    starts, lengths = generator.integers(1, VOCABULARY, 90), generator.integers(8, 90, 90)
    documents = [
        [*((start + np.arange(length)) % (VOCABULARY - 1) + 1).tolist(), 0]
        for start, length in zip(starts, lengths, strict=True)
    ]
    texts = [int(generator.integers(1, len(document) - 2)) for document in documents]
    letters = [
        "t" * text + "a" * (len(document) - text - 1) + "c" for text, document in zip(texts, documents, strict=True)
    ]
    write_spans(folder / "masked", write_dataset(folder / "masked", documents, vocab_size=VOCABULARY), letters)
    sources = {"masked": {"prefix": folder / "masked", "weight": 1, "loss": "answers"}}
    settings = {"sources": sources, "seq_length": SEQ_LENGTH, "train_samples": 160, "refuse_epochs": 100}
    plan(BlendSettings.model_validate(settings), folder)
    return folder / "blend.json"


@pytest.fixture(scope="module")
def blend(tmp_path_factory: pytest.TempPathFactory, write_dataset: Any) -> Path:
    return masked(tmp_path_factory.mktemp("masked"), write_dataset)


@pytest.fixture(scope="module")
def plain(tiny: TinyRun, blend: Path, tmp_path_factory: pytest.TempPathFactory) -> subprocess.Popen[bytes]:
    """The plain loop, begun: it runs beside ours."""
    job = {"hf": str(tiny.hf), "blend": str(tiny.blend), "lr": 1e-3}
    jobs = {
        "masked": {**job, "blend": str(blend), "sizes": [8] * 20},
        "skip_3": {**job, "sizes": [8] * 6, "skip": [3]},
        "skip_4": {**job, "sizes": [8] * 6, "skip": [4]},
        "ramp": {**job, "sizes": SIZES},
    }
    out = tmp_path_factory.mktemp("plain") / "plain.json"
    process = subprocess.Popen(
        [sys.executable, str(HERE / "plain_loop.py"), str(out), json.dumps(jobs)], env=environment()
    )
    process.out = out  # type: ignore[attr-defined]
    return process


@pytest.fixture(scope="module")
def ours(tiny: TinyRun, blend: Path, plain: subprocess.Popen[bytes]) -> Any:
    quick = ["train.parity_gate=false", "train.held_out=null", "train.micro_batch_size=1"]
    saved = f"train.save={tiny.folder / 'loop_saved'}"
    again = f"train.save={tiny.folder / 'loop_again'}"
    ramped = f"train.save={tiny.folder / 'loop_ramped'}"
    loud = [*SPIKES, "loud_in=4"]
    jobs = {
        "tp2": [*TP2, f"train.blend={blend}", "train.train_iters=20"],
        "dp2": [f"train.blend={blend}", "train.train_iters=20"],
        "nan": [*OVERLAP, "nan_in=3", "train.train_iters=6"],
        "unlabelled": [*PP2, "unlabelled=16-24", "train.train_iters=6"],
        "spike": [*loud, "train.train_iters=6"],
        "spike_begun": [*loud, saved, "train.train_iters=3"],
        "spike_resumed": [*loud, saved, "train.train_iters=6"],
        "nan_again": ["nan_from=2", "train.train_iters=6"],
        "same": [*SAME, "train.train_iters=4"],
        "same_begun": [*SAME, again, "train.train_iters=2"],
        "same_resumed": [*SAME, again, "train.train_iters=4"],
        "ramp": [*RAMP, "train.train_iters=6"],
        "ramp_begun": [*RAMP, ramped, "train.train_iters=3"],
        "ramp_resumed": [*RAMP, ramped, "train.train_iters=6"],
    }
    out = tiny.folder / "loop.json"
    full = {name: [f"output_dir={tiny.folder / ('loop_' + name)}", *quick, *job] for name, job in jobs.items()}
    torchrun(2, HERE / "loop_worker.py", tiny.recipe, out, json.dumps(full))
    return json.loads(out.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def expected(plain: Any) -> Any:
    assert plain.wait() == 0
    return json.loads(plain.out.read_text(encoding="utf-8"))


def steps(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if row["kind"] in ("train", "skipped")]


def close(found: list[float], wanted: list[float], tolerance: float) -> None:
    assert max(abs(a - b) for a, b in zip(found, wanted, strict=True)) <= tolerance


@pytest.mark.parametrize("layout", ["tp2", "dp2"])
def test_twenty_steps_under_uneven_masks_are_those_of_a_plain_loop(layout: str, ours: Any, expected: Any) -> None:
    wanted = expected["masked"]
    shares = [(sum(counts[0::2]), sum(counts[1::2])) for counts in wanted["counted"]]
    assert all(a != b for a, b in shares)  # what the two replicas count is not the same
    close(losses(ours[layout]), wanted["losses"], 1e-5)
    norms = [row["grad_norm"] for row in ours[layout] if row["kind"] == "train"]
    close([norm / wanted for norm, wanted in zip(norms, wanted["norms"], strict=True)], [1.0] * 20, 1e-4)
    assert wanted["losses"][-1] < wanted["losses"][0] - 0.3


@pytest.mark.parametrize(("job", "reason"), [("nan", "not_finite"), ("unlabelled", "no_label")])
def test_a_step_without_a_usable_gradient_is_left_out_and_counted(
    job: str, reason: str, ours: Any, expected: Any
) -> None:
    found = steps(ours[job])
    assert [row["kind"] for row in found] == ["train"] * 2 + ["skipped"] + ["train"] * 3
    assert (found[2]["reason"], found[2]["consumed_samples"]) == (reason, 24)
    assert found[-1]["skipped"] == {"spike": 0, "no_label": 0, "not_finite": 0, reason: 1}
    wanted = expected["skip_3"]["losses"]
    close([row["loss"] for row in found if row["kind"] == "train"], wanted[:2] + wanted[3:], 1e-5)
    assert (job == "nan") == (not math.isfinite(found[2]["grad_norm"]))


def test_a_spike_is_left_out_also_where_the_run_was_resumed_in_between(tiny: TinyRun, ours: Any, expected: Any) -> None:
    found = steps(ours["spike"])
    assert [row["iteration"] for row in found if row["kind"] == "skipped"] == [4]
    wanted = expected["skip_4"]["losses"]
    close([row["loss"] for row in found if row["kind"] == "train"], wanted[:3] + wanted[4:], 1e-5)
    halves = steps(ours["spike_begun"]) + steps(ours["spike_resumed"])
    keys = ("kind", "iteration", "loss", "grad_norm", "skipped")
    assert [[row[key] for key in keys] for row in halves] == [[row[key] for key in keys] for row in found]


def test_the_batch_of_a_spike_is_in_quarantine(tiny: TinyRun, ours: Any) -> None:
    from megatron_ipt.data.stream import BlendStream

    assert steps(ours["spike"])
    lines = (tiny.folder / "loop_spike" / "train" / "quarantine.jsonl").read_text(encoding="utf-8").splitlines()
    (row,) = map(json.loads, lines)
    assert (row["iteration"], row["reason"], row["first_sample"]) == (4, "spike", 24)
    stream = BlendStream(tiny.blend)
    for number, told in enumerate(row["samples"], 24):
        sample = stream.sample(number)
        assert (told["sample"], told["source"]) == (number, sample.source)
        assert {part["document"] for part in told["documents"]} == {piece.document for piece in sample.pieces}


def test_a_run_that_only_leaves_out_ends_with_the_reason(ours: Any) -> None:
    assert ours["nan_again"]["error"].startswith("iteration 4: the loss is ")
    assert "3 step(s) in a row are without an update" in ours["nan_again"]["error"]


def test_a_batch_that_grows_is_the_plain_loops_and_goes_on_in_the_middle(ours: Any, expected: Any) -> None:
    found = steps(ours["ramp"])
    assert [row["consumed_samples"] for row in found] == np.cumsum(SIZES).tolist()
    close(losses(ours["ramp"]), expected["ramp"]["losses"], 1e-5)
    assert losses(ours["ramp_begun"]) + losses(ours["ramp_resumed"]) == losses(ours["ramp"])


def test_a_deterministic_run_has_the_same_bits_across_a_resume(tiny: TinyRun, ours: Any) -> None:
    """The worker asserts in each step that torch and megatron-core are told so."""
    assert losses(ours["same_begun"]) + losses(ours["same_resumed"]) == losses(ours["same"])
    folders = [tiny.folder / "loop_same" / "train" / "checkpoints", tiny.folder / "loop_again"]
    straight, resumed = (shards(folder / "iter_0000004") for folder in folders)
    assert straight and straight == resumed


def shards(folder: Path) -> dict[str, str]:
    """SHA-256 of the tensor files of a checkpoint."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.distcp"))}

"""The loop against a plain one: twenty steps under uneven masks, steps that are left out, a batch that grows.

The plain loop is transformers and torch's AdamW in one process (plain_loop.py).  Ours runs on two real processes.
"""

from __future__ import annotations

import hashlib
import json
import math
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SEQ_LENGTH, VOCABULARY, TinyRun, environment, losses, run_ranks
from forks import warm_python
from test_policy import write_spans

from data_prep.blend import plan
from data_prep.settings import BlendSettings

HERE = Path(__file__).parent
TP2 = ["train.tensor_model_parallel_size=2", "train.use_distributed_optimizer=false"]
FAULTS = [  # steps 3, 5, 7 and 8 of ten, on replicas that overlap what they send with what they compute
    *("train.overlap_grad_reduce=true", "train.overlap_param_gather=true", "train.deterministic_mode=true"),
    *("train.spike_sigma=6", "train.spike_window=4", "nan_in=3", "unlabelled=32-40", "loud_in=7", "doubted_in=8"),
    *("train.lr_decay_style=linear", "train.lr_decay_samples=160"),
]
LEFT_OUT = {3: "not_finite", 5: "no_label", 7: "spike", 8: "spike"}
RAMP = [
    *("train.pipeline_model_parallel_size=2", "train.step_batch_size_schedule='0:4 16:8'"),
    *("train.lr_decay_style=linear", "train.lr_warmup_samples=8", "train.lr_warmup_init=5e-4"),
    "train.lr_decay_samples=40",
]
SIZES = [4, 4, 4, 4, 8, 8]
RATES = {
    "left_out": [1e-3 * (1 - sample / 160) for sample in range(0, 80, 8)],
    "ramp": [5e-4, 7.5e-4, *(1e-3 * (1 - (sample - 8) / 32) for sample in (8, 12, 16, 24))],
}


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
        "left_out": {**job, "sizes": [8] * 10, "skip": list(LEFT_OUT), "lr": RATES["left_out"]},
        "ramp": {**job, "sizes": SIZES, "lr": RATES["ramp"]},
    }
    out = tmp_path_factory.mktemp("plain") / "plain.json"
    process = subprocess.Popen(
        [warm_python(), str(HERE / "plain_loop.py"), str(out), json.dumps(jobs)], env=environment("transformers")
    )
    process.out = out  # type: ignore[attr-defined]
    return process


@pytest.fixture(scope="module")
def ours(tiny: TinyRun, blend: Path, plain: subprocess.Popen[bytes]) -> Any:
    quick = ["train.parity_gate=false", "train.held_out=null", "train.micro_batch_size=1"]
    saved = f"train.save={tiny.folder / 'loop_saved'}"
    ramped = f"train.save={tiny.folder / 'loop_ramped'}"
    jobs = {
        "tp2": [*TP2, f"train.blend={blend}", "train.train_iters=20", "train.micro_batch_size=2"],
        "dp2": [f"train.blend={blend}", "train.train_iters=20"],
        "left_out": [*FAULTS, "train.train_iters=10"],
        "left_out_begun": [*FAULTS, saved, "train.train_iters=4"],
        "left_out_resumed": [*FAULTS, saved, "train.train_iters=10"],
        "nan_again": ["nan_from=2", "train.train_iters=6"],
        "ramp": [*RAMP, "train.train_iters=6"],
        "ramp_begun": [*RAMP, ramped, "train.train_iters=3", "train.log_interval=2"],
        "ramp_resumed": [*RAMP, ramped, "train.train_iters=6", "train.log_interval=2"],
    }
    out = tiny.folder / "loop.json"
    full = {name: [f"output_dir={tiny.folder / ('loop_' + name)}", *quick, *job] for name, job in jobs.items()}
    run_ranks(2, HERE / "loop_worker.py", tiny.recipe, out, json.dumps(full))
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


def test_steps_without_a_usable_gradient_are_left_out_and_counted(ours: Any, expected: Any) -> None:
    found = steps(ours["left_out"])
    assert {row["iteration"]: row["reason"] for row in found if row["kind"] == "skipped"} == LEFT_OUT
    assert [sum(row["skipped"].values()) for row in found] == [0, 0, 1, 1, 2, 2, 3, 4, 4, 4]
    assert found[-1]["skipped"] == {"spike": 2, "no_label": 1, "not_finite": 1}
    assert [row["consumed_samples"] for row in found] == list(range(8, 88, 8))
    close([row["lr"] for row in found], RATES["left_out"], 1e-12)
    assert not math.isfinite(found[2]["grad_norm"]) and math.isnan(found[4]["loss"])
    taken = [row for row in found if row["kind"] == "train"]
    close([row["loss"] for row in taken], [expected["left_out"]["losses"][row["iteration"] - 1] for row in taken], 1e-5)


def test_a_resumed_run_leaves_out_the_same_and_ends_in_the_same_bits(tiny: TinyRun, ours: Any) -> None:
    """The window of the spike rule goes on.  In each step the worker asserts that the mode is deterministic."""
    halves = steps(ours["left_out_begun"]) + steps(ours["left_out_resumed"])
    keys = ("kind", "iteration", "loss", "grad_norm", "skipped")
    assert str([[row[key] for key in keys] for row in halves]) == str(
        [[row[key] for key in keys] for row in steps(ours["left_out"])]
    )
    folders = [tiny.folder / "loop_left_out" / "train" / "checkpoints", tiny.folder / "loop_saved"]
    straight, resumed = (shards(folder / "iter_0000010") for folder in folders)
    assert straight and straight == resumed


def test_the_batches_left_out_are_in_quarantine(tiny: TinyRun, ours: Any) -> None:
    from megatron_ipt.data.stream import BlendStream

    assert steps(ours["left_out"])
    lines = (tiny.folder / "loop_left_out" / "train" / "quarantine.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    told = [(row["iteration"], row["reason"], row["first_sample"]) for row in rows]
    assert told == [(step, reason, 8 * (step - 1)) for step, reason in LEFT_OUT.items()]
    stream = BlendStream(tiny.blend)
    for number, found in enumerate(rows[2]["samples"], 48):
        sample = stream.sample(number)
        assert (found["sample"], found["source"]) == (number, sample.source)
        assert {part["document"] for part in found["documents"]} == {piece.document for piece in sample.pieces}
    begun, resumed = (tiny.folder / name / "quarantine.jsonl" for name in ("loop_saved", "loop_left_out/train"))
    assert begun.read_text(encoding="utf-8") == resumed.read_text(encoding="utf-8")


def test_a_run_that_only_leaves_out_ends_with_the_reason(ours: Any) -> None:
    assert ours["nan_again"]["error"].startswith("iteration 4: the loss is ")
    assert "3 step(s) in a row are without an update" in ours["nan_again"]["error"]


def test_a_batch_that_grows_is_the_plain_loops_and_goes_on_in_the_middle(ours: Any, expected: Any) -> None:
    found = steps(ours["ramp"])
    assert [row["consumed_samples"] for row in found] == np.cumsum(SIZES).tolist()
    close([row["lr"] for row in found], RATES["ramp"], 1e-12)
    close(losses(ours["ramp"]), expected["ramp"]["losses"], 1e-5)
    lines = steps(ours["ramp_begun"]) + steps(ours["ramp_resumed"])
    assert [row["iteration"] for row in lines] == [2, 3, 4, 6]  # every second, and the one that was saved
    for row in lines:
        same = found[row["iteration"] - 1]
        assert [row[key] for key in ("loss", "lr", "grad_norm")] == [same[key] for key in ("loss", "lr", "grad_norm")]


def test_a_line_counts_what_was_drawn_since_the_line_before(ours: Any) -> None:
    found = steps(ours["ramp"])
    before = 0
    for row in steps(ours["ramp_begun"]) + steps(ours["ramp_resumed"]):
        for column in ("samples", "checksums"):
            each = [since[column] for since in found[before : row["iteration"]]]
            assert row[column] == {name: sum(step[name] for step in each) for name in row[column]}
        before = row["iteration"]


def test_a_line_has_every_figure_of_its_step(ours: Any, expected: Any) -> None:
    """Of two pipeline stages; FLOP by hand: 6 a weight of a matrix and token, and attention, full and half."""
    layer = 64 * 8 * (8 + 4 + 4) + 64 * 64 + 3 * 64 * 176
    square = 12 * 4 * SEQ_LENGTH * 64
    hardware = 6 * (4 * layer + VOCABULARY * 64) + square
    for row, size, by_source in zip(steps(ours["ramp"]), SIZES, expected["ramp"]["by_source"], strict=True):
        tokens = size * SEQ_LENGTH
        assert row["consumed_tokens"] == row["consumed_samples"] * SEQ_LENGTH
        assert 0 < row["loss_tokens"] <= tokens
        told = {name: figures["loss"] for name, figures in row["sources"].items() if figures["loss"] is not None}
        assert told == pytest.approx(by_source, abs=1e-5)
        assert row["tokens_per_second"] == pytest.approx(tokens / row["step_seconds"])
        assert row["hardware_flops_per_token"] == hardware
        assert row["model_flops_per_token"] == hardware - square / 2
        for kind in ("model", "hardware"):
            of_a_rank = row[f"{kind}_flops_per_token"] * tokens / row["step_seconds"] / 2
            assert row[f"{kind}_flops_per_second_per_rank"] == pytest.approx(of_a_rank)
        assert 0 < row["data_seconds"] < row["step_seconds"]
        assert 1e8 < row["memory_bytes"] < 1e11
        assert row["samples"] and sum(row["samples"].values()) == size
        assert row["skipped"] == {"spike": 0, "no_label": 0, "not_finite": 0}
    saved = ours["ramp"][-1]
    assert (saved["kind"], saved["iteration"], saved["path"]) == ("checkpoint", 6, "iter_0000006")
    assert 0 < saved["seconds"] < 600


def shards(folder: Path) -> dict[str, str]:
    """SHA-256 of the tensor files of a checkpoint."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.distcp"))}

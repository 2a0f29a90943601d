"""Checkpoints travel between layouts, in both forms of the optimizer's state, written before or behind training."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from conftest import TinyRun, ipt, losses, run_ranks

WORKER = Path(__file__).with_name("checkpoint_worker.py")
LAYOUTS = {
    "one": [],
    "tp2": ["train.tensor_model_parallel_size=2"],
    "pp2": ["train.pipeline_model_parallel_size=2"],
    "dp2": [],
    "cp2": ["train.context_parallel_size=2"],
    "pp2_vpp2": ["train.pipeline_model_parallel_size=2", "train.virtual_pipeline_model_parallel_size=2"],
}
PAIRS = [("tp2", "pp2"), ("pp2", "dp2"), ("dp2", "cp2"), ("cp2", "pp2_vpp2"), ("pp2_vpp2", "tp2"), ("dp2", "one")]
PLAIN = ["train.held_out=null", "train.parity_gate=false"]
CHEAP = ["train.dist_ckpt_optim_fully_reshardable=false"]
Job = tuple[str, str, list[str]]


def job(folder: Path, name: str, layout: str, *overrides: str, first: str = "") -> Job:
    return name, first, [f"output_dir={folder / name}", *PLAIN, *LAYOUTS[layout], *overrides]


def at(folder: Path, name: str, iteration: int) -> Path:
    return folder / name / "train" / "checkpoints" / f"iter_{iteration:07d}"


def going_on(folder: Path, source: str, target: str) -> list[Job]:
    """`target` goes on from step 3 of the run in `source`; then the ends of both are compared."""
    name = f"{source}-{target}"
    load = f"train.load={at(folder, source, 3)}"
    ends = f"compare {at(folder, source, 6)} {at(folder, name, 6)}"
    return [job(folder, name, target, load, "train.train_iters=6"), (f"{name}-ends", ends, [])]


def damaged_jobs(folder: Path) -> list[Job]:
    """A run of three saves goes on after a bit of the newest was flipped, and once more after a shard was cut."""
    every = [f"output_dir={folder / 'damaged'}", *PLAIN, "train.save_interval=1"]
    flip, cut = (f"{action} {at(folder, 'damaged', number)}" for action, number in (("flip", 3), ("truncate", 4)))
    other = at(folder, "dp2-cp2", 6)
    return [
        ("damaged", "", [*every, "train.train_iters=3"]),
        ("flipped", f"{flip}/__0_0.distcp", [*every, "train.train_iters=4"]),
        ("truncated", f"{cut}/__0_0.distcp", [*every, "train.train_iters=5"]),
        job(folder, "meant", "dp2", f"train.load={other}", first=f"flip {other}/__0_0.distcp"),
    ]


def run(tiny: TinyRun, processes: int, jobs: list[Job]) -> dict[str, Any]:
    out = tiny.folder / f"checkpoints-{processes}.json"
    run_ranks(
        processes, WORKER, tiny.recipe, out, json.dumps({name: (first, overrides) for name, first, overrides in jobs})
    )
    found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return found


@pytest.fixture(scope="module")
def found(tiny: TinyRun) -> tuple[Path, dict[str, Any]]:
    """The folder of all runs, and what each wrote to its metrics."""
    folder = tiny.folder / "checkpoints"
    straight = ["train.train_iters=6", "train.save_interval=3"]
    jobs = [job(folder, name, name, *straight) for name in LAYOUTS if name != "one"]
    for source, target in PAIRS[:-1]:
        jobs += going_on(folder, source, target)
    every = ["train.train_iters=4", "train.save_interval=1"]
    cheap = [*CHEAP, *every, "train.fully_reshardable_interval=3", "train.async_save=true"]
    cheap_2 = f"train.load={at(folder, 'cheap', 2)}"
    jobs += [
        job(folder, "cheap", "pp2", *cheap, first="slow"),
        job(folder, "kept", "pp2", *every, "train.save_retain_interval=2"),
        job(folder, "cheap-dp2", "dp2", cheap_2, "train.train_iters=4"),
        job(folder, "cheap-pp2", "pp2", cheap_2, "train.train_iters=6"),
        job(folder, "replicas", "dp2", *CHEAP, "train.train_iters=3", "train.save_interval=2"),
        job(folder, "plain", "dp2", f"train.load={at(folder, 'dp2', 3)}", "train.use_distributed_optimizer=false"),
        job(folder, "behind", "dp2", *straight, "train.async_save=true", first="slow"),
        job(folder, "broken", "dp2", *every, "train.async_save=true", first="broken"),
        job(folder, "failed", "dp2", *every, "train.async_save=true", first="fails"),
    ]
    rows = run(tiny, 2, jobs + damaged_jobs(folder))
    ones = going_on(folder, *PAIRS[-1])
    ones.append(job(folder, "replicas-one", "one", f"train.load={at(folder, 'replicas', 2)}", "train.train_iters=4"))
    return folder, {**rows, **run(tiny, 1, ones)}


@pytest.fixture(scope="module")
def resharded(found: tuple[Path, dict[str, Any]]) -> Path:
    """Step 2 of the run in the cheap form, as the verb writes it anew: it starts the ranks that the layout needs."""
    there = at(found[0], "cheap", 2)
    done = ipt("convert", "reshard", there, found[0] / "resharded")
    assert done.stdout.strip() == f"wrote {found[0] / 'resharded' / there.name}"
    return found[0] / "resharded" / there.name


def card(checkpoint: Path) -> dict[str, Any]:
    row: dict[str, Any] = json.loads((checkpoint / "run_card.json").read_text(encoding="utf-8"))
    return row


def shards(checkpoint: Path) -> dict[str, str]:
    """SHA-256 of the tensor files."""
    files = json.loads((checkpoint / "integrity.json").read_text(encoding="utf-8"))["files"]
    return {name: digest for name, digest in files.items() if name.endswith(".distcp")}


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_another_layout_goes_on_with_the_same_losses_data_and_moments(
    found: tuple[Path, dict[str, Any]], source: str, target: str
) -> None:
    straight, went_on = (
        [row for row in found[1][name] if row["kind"] == "train" and row["iteration"] > 3]
        for name in (source, f"{source}-{target}")
    )
    assert [row["iteration"] for row in went_on] == [4, 5, 6]
    assert losses(went_on) == pytest.approx(losses(straight), rel=0, abs=1e-6)
    for name in ("consumed_samples", "samples", "checksums"):
        assert [row[name] for row in went_on] == [row[name] for row in straight]
    ends = found[1][f"{source}-{target}-ends"]
    assert ends["same_names"]
    assert ends["largest"]["exp_avg"] > 1e-3
    assert set(ends["unlike"]) == {"weights", "param", "exp_avg", "exp_avg_sq"}
    limits = {"weights": 1e-6, "param": 1e-6, "exp_avg": 1e-8, "exp_avg_sq": 1e-9}
    assert all(ends["unlike"][part] <= limit for part, limit in limits.items())


def test_the_cheap_form_is_written_between_and_the_other_every_nth_time_and_last(
    found: tuple[Path, dict[str, Any]],
) -> None:
    cards = [card(at(found[0], "cheap", number)) for number in (1, 2, 3, 4)]
    kinds = ["dp_reshardable", "dp_reshardable", "fully_reshardable", "fully_reshardable"]
    assert [row["sharding_type"] for row in cards] == kinds
    assert [row["loads_with"] for row in cards] == ["TP1 PP2 and any DP"] * 2 + ["any layout"] * 2


def test_the_cheap_form_goes_on_to_the_same_bits_with_its_own_layout(found: tuple[Path, dict[str, Any]]) -> None:
    assert losses(found[1]["cheap-pp2"]) == losses(found[1]["pp2"])[2:]
    assert shards(at(found[0], "cheap-pp2", 6)) == shards(at(found[0], "pp2", 6)) != {}


def test_the_cheap_form_loads_with_any_dp(found: tuple[Path, dict[str, Any]]) -> None:
    assert card(at(found[0], "replicas", 2))["sharding_type"] == "dp_reshardable"
    assert losses(found[1]["replicas-one"]) == pytest.approx(losses(found[1]["dp2"])[2:4], rel=0, abs=1e-6)


def test_another_layout_is_told_which_loads_and_what_converts(found: tuple[Path, dict[str, Any]]) -> None:
    there = at(found[0], "cheap", 2)
    assert found[1]["cheap-dp2"]["error"] == (
        f"{there}: loads with TP1 PP2 and any DP, here is TP1 PP1; "
        f"`ipt convert reshard {there} OUT` makes it loadable by any layout"
    )


def test_a_state_of_the_distributed_optimizer_is_refused_in_one_line_without_it(
    found: tuple[Path, dict[str, Any]],
) -> None:
    told = found[1]["plain"]["error"]
    assert "its optimizer's state is of train.use_distributed_optimizer=true, here is false" in told
    assert told.count("\n") == 0 and "train.finetune=true" in told


def test_resharded_it_has_the_bytes_of_a_save_for_any_layout(
    found: tuple[Path, dict[str, Any]], resharded: Path
) -> None:
    there = at(found[0], "cheap", 2)
    assert shards(resharded) == shards(at(found[0], "kept", 2)) != shards(there)
    assert card(resharded)["loads_with"] == "any layout"
    assert card(resharded)["parent"] == str(there)
    assert card(resharded)["consumed_samples"] == 16


def test_the_verb_writes_nothing_that_a_run_would_lose(found: tuple[Path, dict[str, Any]], resharded: Path) -> None:
    older = ipt("convert", "reshard", at(found[0], "cheap", 1), resharded.parent, check=False)
    assert older.returncode == 1
    told = f"error: {resharded.parent}: holds iter_0000002, which is newer: a run would no longer find it; give another"
    assert older.stderr.startswith(told)
    same = ipt("convert", "reshard", at(found[0], "cheap", 2), found[0] / "cheap/train/checkpoints", check=False)
    assert "is where the checkpoint lies; give another folder" in same.stderr


def test_a_save_behind_training_holds_what_stood_before_the_next_step(found: tuple[Path, dict[str, Any]]) -> None:
    assert losses(found[1]["behind"]) == losses(found[1]["dp2"])
    assert shards(at(found[0], "behind", 3)) == shards(at(found[0], "dp2", 3)) != {}
    assert losses(found[1]["cheap"]) == losses(found[1]["pp2"])[:4]


def test_a_save_behind_training_is_told_when_it_is_the_newest(found: tuple[Path, dict[str, Any]]) -> None:
    kinds = [(row["kind"], row["iteration"]) for row in found[1]["behind"]]
    assert kinds.index(("train", 4)) < kinds.index(("checkpoint", 3)) < kinds.index(("checkpoint", 6))
    row = next(row for row in found[1]["behind"] if row["kind"] == "checkpoint")
    assert row["written_seconds"] >= max(1.0, row["seconds"])  # the thread slept for one


def test_what_is_not_to_be_kept_is_removed(found: tuple[Path, dict[str, Any]]) -> None:
    names = sorted(path.name for path in (found[0] / "kept" / "train" / "checkpoints").glob("[!.]*"))
    assert names == ["iter_0000002", "iter_0000004", "latest_checkpointed_iteration.txt"]


def test_the_card_says_what_it_came_from(found: tuple[Path, dict[str, Any]]) -> None:
    row = card(at(found[0], "dp2-cp2", 6))
    assert (row["format_version"], row["iteration"], row["world_size"]) == (2, 6, 2)
    assert row["consumed_tokens"] == 6 * 8 * 64
    assert row["parent"] == str(at(found[0], "dp2", 3))
    assert row["layout"]["context_parallel_size"] == 2 and row["layout"]["data_parallel_size"] == 1
    assert card(at(found[0], "dp2", 6))["parent"] == "iter_0000003"
    assert card(at(found[0], "dp2", 3))["parent"] == ""
    names = ("torch", "megatron-core", "instruction-pretraining")
    assert {name: row["versions"].get(name) for name in names} == {name: version(name) for name in names}
    assert row["recipe"]["train"]["context_parallel_size"] == 2
    blend = json.loads((found[0].parent / "blend" / "blend.json").read_text(encoding="utf-8"))
    assert (row["blend_hash"], row["consumed_samples"]) == (blend["blend_hash"], 6 * 8)


@pytest.mark.parametrize(("name", "newest"), [("flipped", 3), ("truncated", 4)])
def test_a_damaged_newest_falls_back_to_the_one_before_and_says_so(
    found: tuple[Path, dict[str, Any]], name: str, newest: int
) -> None:
    rows = found[1][name]
    assert losses(rows) == losses(found[1]["dp2"])[newest - 1 : newest + 1]
    assert rows[0] == {
        "kind": "fell_back",
        "iteration": newest - 1,
        "path": f"iter_{newest:07d}",
        "reason": "not as it was written (__0_0.distcp: another hash than integrity.json gives)",
        "to": f"iter_{newest - 1:07d}",
    }


def test_the_rows_after_the_one_fallen_back_to_are_written_anew(found: tuple[Path, dict[str, Any]]) -> None:
    lines = (found[0] / "damaged" / "train" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["iteration"] for row in rows if row["kind"] == "train"] == [1, 2, 3, 4, 5]
    assert [row["path"] for row in rows if row["kind"] == "fell_back"] == ["iter_0000003", "iter_0000004"]
    assert losses(rows) == losses(found[1]["dp2"])[:5]


def test_one_that_is_named_is_meant(found: tuple[Path, dict[str, Any]]) -> None:
    told = found[1]["meant"]["error"]
    assert told.startswith(f"{at(found[0], 'dp2-cp2', 6)}: not as it was written (__0_0.distcp: another hash")


def test_a_write_behind_training_that_fails_on_one_rank_is_one_line_on_all(found: tuple[Path, dict[str, Any]]) -> None:
    told = found[1]["broken"]["error"]  # as the first rank, whose own write was whole, heard it
    assert told.startswith(f"{at(found[0], 'broken', 1)}: the checkpoint was not written (OSError: [Errno 28] No space")
    assert told.endswith("nothing was there before")
    assert not (found[0] / "broken" / "train" / "checkpoints" / "latest_checkpointed_iteration.txt").exists()


def test_a_save_behind_training_is_finished_when_a_later_step_fails(found: tuple[Path, dict[str, Any]]) -> None:
    assert found[1]["failed"]["error"] == "step 2: fails on all ranks"
    saves = found[0] / "failed" / "train" / "checkpoints"
    assert (saves / "latest_checkpointed_iteration.txt").read_text(encoding="utf-8") == "1"
    assert card(saves / "iter_0000001")["consumed_samples"] == 8
    rows = [json.loads(row) for row in (saves.parent / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(row["kind"], row["iteration"]) for row in rows] == [("train", 1), ("checkpoint", 1)]

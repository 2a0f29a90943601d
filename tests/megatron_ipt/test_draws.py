"""A run that was stopped goes on with the samples of one that was not, under any layout and batch size.

What a step was trained on is taken where it enters the model, in real processes of a group, and held against
`BlendStream.sample(i)` of this process, which was never stopped.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import xxhash
from conftest import TinyRun, ipt, run_ranks
from test_checksum import by_definition

from data_prep.blend import read_blend
from data_prep.blend.append import append
from megatron_ipt.data.stream import BlendStream

WORKER = Path(__file__).with_name("draws_worker.py")
PLAIN = ["train.held_out=null", "train.parity_gate=false"]
LAYOUTS = {
    "dp": {},
    "tp2": {"tensor_model_parallel_size": 2},
    "pp2": {"pipeline_model_parallel_size": 2},
    "cp2": {"context_parallel_size": 2},
    "tp2_pp2": {"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 2},
}
# (layout, micro batch, global batch, steps) of each part of a run, two processes
NAMED = {
    "smaller_batches_under_tp": [("dp", 2, 8, 2), ("tp2", 1, 6, 3)],
    "pp_then_dp_then_cp": [("pp2", 1, 4, 3), ("dp", 2, 12, 1), ("cp2", 4, 8, 1)],
}
Part = tuple[str, int, int, int]


def settings(part: Part, steps_before: int) -> list[str]:
    layout, micro, batch, steps = part
    values = {**LAYOUTS[layout], "micro_batch_size": micro, "global_batch_size": batch}
    values["train_iters"] = steps_before + steps
    return [f"train.{name}={value}" for name, value in values.items()]


def run(tiny: TinyRun, out: Path, processes: int, jobs: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    told = {name: [*PLAIN, *overrides] for name, overrides in jobs.items()}
    run_ranks(processes, WORKER, tiny.recipe, out, json.dumps(told))
    found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return found


def drawn(stream: BlendStream, first: int, count: int) -> list[list[Any]]:
    samples = [stream.sample(index) for index in range(first, first + count)]
    told = [[sample.source_index, xxhash.xxh3_64_hexdigest(sample.tokens.tobytes())] for sample in samples]
    return sorted(told)


def check(stream: BlendStream, parts: Sequence[Part], found: Sequence[Any], consumed: int = 0) -> None:
    for (_, _, batch, steps), told in zip(parts, found, strict=True):
        assert isinstance(told, list) and len(told) == steps, told
        for step in told:
            assert step == drawn(stream, consumed, batch)
            consumed += batch


@pytest.fixture(scope="module")
def appended(tiny: TinyRun) -> Path:
    """The blend with the shares of its two sources exchanged from sample 16 on."""
    return exchanged(tiny, 16)


def exchanged(tiny: TinyRun, first_sample: int) -> Path:
    """The blend with a phase appended, as `ipt blend append` does it."""
    blend = read_blend(tiny.blend)
    shares = zip(blend.sources, reversed(blend.phases[-1].shares), strict=True)
    changed = append(blend, first_sample, {source.name: share for source, share in shares})
    path = tiny.folder / f"appended_{first_sample}" / "blend.json"
    path.parent.mkdir(exist_ok=True)
    changed.write(path)
    return path


@pytest.fixture(scope="module")
def named(tiny: TinyRun, appended: Path) -> dict[str, Any]:
    jobs = {}
    for name, parts in NAMED.items():
        before = 0
        for number, part in enumerate(parts):
            jobs[f"{name} {number}"] = [f"train.save={tiny.folder / 'draws' / name}", *settings(part, before)]
            before += part[3]
    go_on = [f"train.blend={appended}", *settings(("dp", 2, 8, 2), 2)]
    save = tiny.folder / "draws" / "appended"
    jobs["astray"] = [f"train.save={tiny.folder / 'draws/astray'}", "astray", *settings(("dp", 1, 8, 1), 0)]
    jobs["appended 0"] = [f"train.save={save}", *settings(("tp2", 2, 8, 2), 0)]
    jobs["appended 1"] = [f"train.save={save}", *go_on]
    return run(tiny, tiny.folder / "draws.json", 2, jobs)


@pytest.mark.parametrize("name", NAMED)
def test_another_layout_goes_on_with_the_samples_of_an_uninterrupted_run(
    name: str, tiny: TinyRun, named: dict[str, Any]
) -> None:
    parts = NAMED[name]
    check(BlendStream(tiny.blend), parts, [named[f"{name} {number}"] for number in range(len(parts))])


def test_an_appended_phase_changes_what_comes_after_it_alone(
    tiny: TinyRun, appended: Path, named: dict[str, Any]
) -> None:
    parts = [named["appended 0"], named["appended 1"]]
    check(BlendStream(appended), [("tp2", 2, 8, 2), ("dp", 2, 8, 2)], parts)
    old, new = BlendStream(tiny.blend), BlendStream(appended)
    assert drawn(old, 0, 16) == drawn(new, 0, 16)
    assert drawn(old, 16, 16) != drawn(new, 16, 16)


@pytest.mark.parametrize(("name", "changed"), [*((name, False) for name in NAMED), ("appended", True)])
def test_what_a_run_records_is_what_entered_the_model(
    name: str, changed: bool, tiny: TinyRun, appended: Path, named: dict[str, Any]
) -> None:
    """Each line against the samples themselves, the checksums by their definition; and `ipt blend verify` agrees."""
    blend = appended if changed else tiny.blend
    stream, first = BlendStream(blend), 0
    lines = (tiny.folder / "draws" / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if row["kind"] == "train"]
    for row in rows:
        samples = [stream.sample(index) for index in range(first, row["consumed_samples"])]
        for place, source in enumerate(stream.blend.sources):
            of = [sample for sample in samples if sample.source_index == place]
            assert row["samples"][source.name] == len(of)
            assert row["checksums"][source.name] == sum(by_definition(sample.tokens.tolist()) for sample in of)
        first = row["consumed_samples"]
    assert first == rows[-1]["consumed_samples"] > 16
    done = ipt("blend", "verify", tiny.folder / "draws" / name, "--blend", blend)
    assert f"the tokens of {first} samples were read again, and are what entered" in " ".join(done.stdout.split())


def test_a_loader_that_goes_astray_is_found_by_verify(tiny: TinyRun, named: dict[str, Any]) -> None:
    done = ipt("blend", "verify", tiny.folder / "draws/astray", "--blend", tiny.blend, check=False)
    told = " ".join(done.stdout.split())
    assert done.returncode == 1
    assert "fault: samples 0 to 8: 8 of" in told and "the tokens of" in told


@pytest.mark.long  # test_resume.py has a killed run in the short set
def test_a_run_that_was_killed_goes_on_under_another_layout(tiny: TinyRun) -> None:
    """SIGKILL in the middle of the third step: two were saved, and a third is made again in other batches."""
    save = [f"train.save={tiny.folder / 'draws/killed'}", "train.save_interval=1"]
    dies = [*save, *settings(("dp", 2, 8, 4), 0), "dies_in=3"]
    with pytest.raises(AssertionError, match="SIGKILL"):
        run(tiny, tiny.folder / "dies.json", 2, {"killed": dies})
    part = ("tp2", 1, 6, 3)
    told = run(tiny, tiny.folder / "again.json", 2, {"killed": [*save, *settings(part, 2)]})
    stream = BlendStream(tiny.blend)
    assert told["killed"] == [drawn(stream, 16 + 6 * step, 6) for step in range(3)]
    assert (
        "what was drawn is what" in ipt("blend", "verify", tiny.folder / "draws/killed", "--blend", tiny.blend).stdout
    )


def seeded(seed: int) -> list[tuple[int, Part]]:
    """(processes, part) of a run that is stopped twice."""
    generator = random.Random(seed)
    parts = []
    for _ in range(3):
        processes = generator.choice((1, 2, 4))
        fits = {"dp": 1, "tp2": 2, "pp2": 2, "cp2": 2, "tp2_pp2": 4}
        layout = generator.choice([name for name, needs in fits.items() if needs <= processes])
        replicas = processes // fits[layout]
        micro = generator.choice((1, 2))
        batch = micro * replicas * generator.randint(1, 12 // (micro * replicas))
        parts.append((processes, (layout, micro, batch, generator.randint(1, 3))))
    return parts


@pytest.mark.long
def test_twenty_seeded_stops(tiny: TinyRun, tmp_path: Path) -> None:
    """Every other run is given a phase where it stands before its last part."""
    runs = {seed: seeded(seed) for seed in range(20)}
    assert len({part for parts in runs.values() for part in parts}) > 40
    found: dict[int, list[Any]] = {seed: [] for seed in runs}
    stands = {seed: sum(batch * steps for _, (_, _, batch, steps) in parts[:2]) for seed, parts in runs.items()}
    blends = {seed: exchanged(tiny, stands[seed]) if seed % 2 else tiny.blend for seed in runs}
    for number in range(3):
        for processes in (1, 2, 4):
            jobs = {
                str(seed): [
                    f"train.save={tmp_path / str(seed)}",
                    f"train.blend={blends[seed] if number == 2 else tiny.blend}",
                    *settings(parts[number][1], sum(part[3] for _, part in parts[:number])),
                ]
                for seed, parts in runs.items()
                if parts[number][0] == processes
            }
            told = run(tiny, tmp_path / f"{number}-{processes}.json", processes, jobs) if jobs else {}
            for seed, steps in told.items():
                found[int(seed)].append(steps)
    stream = BlendStream(tiny.blend)
    for seed, parts in runs.items():
        check(stream, [part for _, part in parts[:2]], found[seed][:2])
        check(BlendStream(blends[seed]), [parts[2][1]], found[seed][2:], stands[seed])

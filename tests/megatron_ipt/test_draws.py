"""A run that was stopped goes on with the samples of one that was not, under any layout and batch size.

What a step was trained on is taken where it enters the model, in real torchrun processes, and held against
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
from conftest import TinyRun, torchrun

from data_prep.blend import Blend, read_blend
from data_prep.blend.file import BlendPhase
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
    torchrun(processes, WORKER, tiny.recipe, out, json.dumps(told))
    found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return found


def drawn(stream: BlendStream, first: int, count: int) -> list[list[Any]]:
    samples = [stream.sample(index) for index in range(first, first + count)]
    told = [[sample.source_index, xxhash.xxh3_64_hexdigest(sample.tokens.tobytes())] for sample in samples]
    return sorted(told)


def check(stream: BlendStream, parts: Sequence[Part], found: Sequence[Any]) -> None:
    consumed = 0
    for (_, _, batch, steps), told in zip(parts, found, strict=True):
        assert isinstance(told, list) and len(told) == steps, told
        for step in told:
            assert step == drawn(stream, consumed, batch)
            consumed += batch


@pytest.fixture(scope="module")
def appended(tiny: TinyRun) -> Path:
    """The blend with the shares of its two sources exchanged from sample 16 on."""
    blend = read_blend(tiny.blend)
    phase = BlendPhase(first_sample=16, shares=tuple(reversed(blend.phases[0].shares)))
    path = tiny.folder / "appended" / "blend.json"
    path.parent.mkdir(exist_ok=True)
    changed = {**{name: getattr(blend, name) for name in Blend.model_fields}, "phases": (*blend.phases, phase)}
    Blend(**changed).write(path)
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
    jobs["appended 0"] = [f"train.save={save}", *settings(("tp2", 2, 8, 2), 0)]
    jobs["appended 1"] = [f"train.save={save}", *go_on]
    return run(tiny, tiny.folder / "draws.json", 2, jobs)


@pytest.mark.parametrize("name", NAMED)
def test_another_layout_goes_on_with_the_samples_of_an_uninterrupted_run(
    name: str, tiny: TinyRun, named: dict[str, Any]
) -> None:
    parts = NAMED[name]
    check(BlendStream(tiny.blend), parts, [named[f"{name} {number}"] for number in range(len(parts))])


@pytest.mark.skipif(not hasattr(Blend, "continues"), reason="a blend cannot be appended to yet")
def test_an_appended_phase_changes_what_comes_after_it_alone(
    tiny: TinyRun, appended: Path, named: dict[str, Any]
) -> None:
    parts = [named["appended 0"], named["appended 1"]]
    check(BlendStream(appended), [("tp2", 2, 8, 2), ("dp", 2, 8, 2)], parts)
    old, new = BlendStream(tiny.blend), BlendStream(appended)
    assert drawn(old, 0, 16) == drawn(new, 0, 16)
    assert drawn(old, 16, 16) != drawn(new, 16, 16)


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
    runs = {seed: seeded(seed) for seed in range(20)}
    assert len({part for parts in runs.values() for part in parts}) > 40
    found: dict[int, list[Any]] = {seed: [] for seed in runs}
    for number in range(3):
        for processes in (1, 2, 4):
            jobs = {
                str(seed): [
                    f"train.save={tmp_path / str(seed)}",
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
        check(stream, [part for _, part in parts], found[seed])

"""One turn: each side of a case run under torchrun, and what it told.  All that starts processes is here."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import asdict
from pathlib import Path
from typing import Any

import training_figures as figures
import yaml
from random_tokens import chunks, write
from steps import Baton
from training_cases import Case
from training_jobs import job, recipe, script_arguments

from data_prep.errors import UserError

HERE = Path(__file__).resolve().parent
KEPT = ("periods_ms", "processor_ms", "data_ms")


def probe(shapes: Sequence[Sequence[int]] | None = None, threads: int = 1) -> dict[str, Any]:
    """What `matrix_rate.py` says; in a process of its own, which leaves nothing on the GPU."""
    arguments = [] if shapes is None else [json.dumps(shapes)]
    answer: dict[str, Any] = json.loads(run("matrix_rate.py", arguments, threads=threads).splitlines()[-1])
    return answer


def built(case: Case) -> dict[str, Any]:
    """What `training_dry.py` says of a case."""
    answer: dict[str, Any] = json.loads(run("training_dry.py", [json.dumps(asdict(case))]).splitlines()[-1])
    return answer


def turn(case: Case, work: Path, bare: Path | None, *, reverse: bool, limit: float | None) -> dict[str, Any]:
    """One run of each side, in one order or the other; UserError where both take more than `limit` seconds.

    On a CPU the two go step by step; a card's memory has room for one, and another's script knows nothing of ours.
    """
    began = time.monotonic()
    sides = ("bare", "ours") if reverse else ("ours", "bare")
    step_by_step = bare is None and not case.gpu
    shutil.rmtree(work / "run", ignore_errors=True)
    if step_by_step:
        _together(case, work, sides, limit)
    else:
        for side in sides:
            left = None if limit is None else limit - (time.monotonic() - began)
            _run_side(side, case, work, bare, limit=left)
    done = {side: short(json.loads(_out(work, side).read_text(encoding="utf-8"))) for side in sides}
    return {"seconds": round(time.monotonic() - began, 1), "step_by_step": step_by_step, **done}


def _together(case: Case, work: Path, sides: Sequence[str], limit: float | None) -> None:
    """Both at once, each computing while the other waits; where one fails the other is ended, and its reason told."""
    baton = (work / "baton").absolute()
    Baton.make(baton, case.processes)
    failures: list[BaseException] = []

    def one(place: int) -> None:
        try:
            _run_side(sides[place], case, work, None, limit=limit, baton=f"{baton}:{place}")
        except BaseException as error:
            failures.append(error)
            Baton.drop(baton)

    with ThreadPoolExecutor(len(sides)) as pool:
        wait([pool.submit(one, place) for place in range(len(sides))])
    if failures:
        raise failures[0]


def _run_side(
    side: str, case: Case, work: Path, bare: Path | None, *, limit: float | None, baton: str | None = None
) -> None:
    script, arguments = "training_ours.py", [work / "recipe.yaml", _out(work, side)]
    if side == "bare" and bare is None:
        script, arguments = "bare_loop.py", [work / "job.json", _out(work, side)]
    elif side == "bare":
        script = str(bare.absolute() / "train.py")
        arguments = [*script_arguments(case), "--attention=sdpa", "--quiet", f"--out={_out(work, side)}"]
    further = [] if baton is None else [baton]
    run(script, [*arguments, *further], processes=case.processes, threads=case.threads, limit=limit)


def _out(work: Path, side: str) -> Path:
    return (work / f"{side}.json").absolute()


def short(told: dict[str, Any]) -> dict[str, Any]:
    """What is kept of a run: figures with few digits; of another's script the one median stands for each period."""
    if "ms" in told:
        told = {"periods_ms": [told["ms"]] * (figures.WARM_UP + 1), "losses": told["losses"]}
    several: dict[str, Any] = {name: told[name] for name in KEPT if name in told}
    several["losses"] = [told["losses"][0], told["losses"][-1]]
    digits: dict[str, Any] = {name: [float(f"{value:.5g}") for value in values] for name, values in several.items()}
    return {**digits, **{name: told[name] for name in ("memory_bytes",) if name in told}}


def prepare(case: Case, work: Path, *, engine: bool) -> None:
    """Two sources of random tokens, a blend over them, our recipe, and the bare loop's job on the first source.

    `engine`: Transformer Engine's layers are there; both sides take them then.
    """
    from data_prep.blend import plan
    from data_prep.settings import BlendSettings, SourceSettings

    work.mkdir(parents=True, exist_ok=True)
    vocabulary, length = case.model["vocab_size"], case.train["seq_length"]
    for seed, name in enumerate(("one", "two")):
        write(work / name, chunks(seed, 1000, vocabulary), vocabulary)
    sources = {name: SourceSettings(prefix=work / name, weight=1) for name in ("one", "two")}
    plan(BlendSettings(sources=sources, seq_length=length, refuse_epochs=1000), work / "blend")
    blend = (work / "blend" / "blend.json").absolute()
    content = yaml.safe_dump(recipe(case, (work / "run").absolute(), blend))
    (work / "recipe.yaml").write_text(content, encoding="utf-8")
    tokens, wide = (work / "one.bin").absolute(), 2 if vocabulary < 65500 else 4
    of_bare = job(case, "transformer_engine" if engine else "local", tokens, wide)
    (work / "job.json").write_text(json.dumps(asdict(of_bare)), encoding="utf-8")


def run(
    script: str, arguments: Sequence[Any], *, processes: int = 0, threads: int = 1, limit: float | None = None
) -> str:
    """What a script of this folder printed, under torchrun if it is of several `processes`, or of 1.

    UserError with one line where it fails, or takes longer than `limit` seconds.
    """
    ranks = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes else []
    command: list[Any] = [sys.executable, *ranks, HERE / script, *arguments]
    own = {"OMP_NUM_THREADS": str(threads), "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
    paths = os.pathsep.join(filter(None, [str(HERE.parent), os.environ.get("PYTHONPATH")]))
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    environment = {**os.environ, **own, "PYTHONPATH": paths}
    begun = subprocess.Popen([*map(str, command)], env=environment, **pipes)
    try:
        out, err = begun.communicate(timeout=limit)
    except subprocess.TimeoutExpired as error:
        raise UserError("--seconds", "are over in the middle of a turn", "give more, or a smaller case") from error
    finally:
        if begun.poll() is None:
            begun.terminate()  # torchrun ends its ranks, which are in sessions of their own
            begun.wait()
    if begun.returncode:
        raise UserError(Path(script).name, *reason(out + err))
    return str(out)


def reason(output: str) -> tuple[str, str]:
    """Why a run failed and the mend, in short."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    if any("OutOfMemoryError" in line for line in lines):
        return "ran out of the card's memory", "raise recompute_num_layers with --set, or use one with fewer layers"
    errors = [line for line in lines if "Error: " in line or line.startswith("error: ")]
    return errors[0] if errors else "failed", "start that script alone: it prints all"

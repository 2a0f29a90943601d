#!/usr/bin/env python3
"""Training speed: our run beside a bare loop on megatron-core, on the machine at hand.

    python benchmarks/training.py --bare DIR --work runs/training --out docs/benchmarks/training.json    (10 minutes)

Ours is `megatron_ipt.pretrain` as a user starts it: data from a blend, losses by source, checks before the update,
metrics every step.  The bare loop is a script `DIR/train.py` that does forward, backward and update on batches made in
memory, with megatron-core's own classes and nothing else (--size JSON, --gbs, --mbs, --steps, --bf16, --dist-opt, --tp,
--pp, --out FILE for {"ms": median milliseconds of a step}); without --bare ours is measured alone.

Both train one model from scratch under torchrun.  The sides are run in turn, `--repeats` times; a ratio is the median
of the ratios of a turn, with the smallest and the largest.  Ours is timed from the start of a step to the start of the
next, so that all that lies between counts; the bare loop times its steps alone.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from random_tokens import chunks, write

WARM_UP = 4


@dataclass(frozen=True, slots=True)
class Case:
    """One model and layout; sizes in megatron-core's words."""

    processes: int
    layout: dict[str, int]
    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    num_attention_heads: int
    num_query_groups: int
    vocab_size: int
    seq_length: int
    micro_batch_size: int
    global_batch_size: int
    steps: int
    threads: int = 1


SMALL = {"num_layers": 8, "hidden_size": 256, "ffn_hidden_size": 704, "num_attention_heads": 8, "num_query_groups": 4}
SMALL |= {"vocab_size": 4096, "seq_length": 512, "micro_batch_size": 2, "global_batch_size": 4, "steps": 14}
CASES = {
    "10M, one process": Case(processes=1, layout={}, threads=2, **SMALL),
    "10M, two replicas": Case(processes=2, layout={}, **SMALL),
    "10M, two stages": Case(processes=2, layout={"pp": 2}, **SMALL),
    "10M, two parts of a matrix": Case(processes=2, layout={"tp": 2}, **SMALL),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/training"), help="folder for data and runs")
    parser.add_argument("--bare", type=Path, help="folder of the bare loop's train.py")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--case", choices=CASES, action="append", help="this case alone; may stand several times")
    parser.add_argument("--table", type=Path, help="print the table of a JSON file of figures, and measure nothing")
    parser.add_argument("--ours", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.table:
        print("\n".join(table(json.loads(options.table.read_text(encoding="utf-8")))))
        return
    if options.ours:
        timed_run(Path(options.ours[0]), json.loads(options.ours[1]), Path(options.ours[2]))
        return
    options.work.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {"machine": machine(), "repeats": options.repeats, "cases": {}}
    for name in options.case or CASES:
        found["cases"][name] = measure(CASES[name], options.work, options.bare, options.repeats)
        if options.out:
            options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print("\n".join(table(found)))


def measure(case: Case, work: Path, bare: Path | None, repeats: int) -> dict[str, Any]:
    """Milliseconds of a step, turn by turn."""
    recipe = write_recipe(case, work)
    turns: list[dict[str, float]] = []
    for number in range(repeats):
        sides = {"ours": lambda: ours(case, recipe, work)}
        if bare is not None:
            sides["bare"] = lambda: bare_loop(case, bare, work)
        order = list(sides) if number % 2 == 0 else list(sides)[::-1]
        turn = {side: sides[side]() for side in order}
        print(f"{case.processes} process(es) {case.layout}, turn {number + 1}: {turn}", flush=True)
        turns.append(turn)
    return {"case": asdict(case), "turns": turns}


def write_recipe(case: Case, work: Path) -> Path:
    """Two sources of random tokens, a blend over them, and the recipe of a model from scratch."""
    import yaml

    from data_prep.blend import plan
    from data_prep.settings import BlendSettings, SourceSettings

    for seed, name in enumerate(("one", "two")):
        write(work / name, chunks(seed, 1000, case.vocab_size), case.vocab_size)
    sources = {name: SourceSettings(prefix=work / name, weight=1) for name in ("one", "two")}
    plan(BlendSettings(sources=sources, seq_length=case.seq_length, refuse_epochs=1000), work / "blend")
    sizes = ("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "num_query_groups", "vocab_size")
    train = {
        "blend": str((work / "blend" / "blend.json").absolute()),
        **{name: getattr(case, name) for name in ("seq_length", "micro_batch_size", "global_batch_size")},
        "train_iters": case.steps,
        "lr": 1e-3,
        "bf16": True,
        "tensor_model_parallel_size": case.layout.get("tp", 1),
        "pipeline_model_parallel_size": case.layout.get("pp", 1),
    }
    model = {**{name: getattr(case, name) for name in sizes}, "share_embeddings_and_output_weights": False}
    path = work / "recipe.yaml"
    content = {"name": "speed", "output_dir": str(work / "run"), "model": model, "train": train}
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def ours(case: Case, recipe: Path, work: Path) -> float:
    shutil.rmtree(work / "run", ignore_errors=True)
    out = work / "ours.json"
    torchrun(case, [__file__, "--ours", recipe, "[]", out])
    return float(json.loads(out.read_text(encoding="utf-8")))


def timed_run(recipe: Path, overrides: list[str], out: Path) -> None:
    """One rank of our run; the first writes the median time from the start of a step to that of the next [ms]."""
    import time

    from megatron_ipt import pretrain
    from megatron_ipt.mcore import parallel
    from megatron_ipt.recipe import load_recipe

    starts: list[float] = []
    step = pretrain.training_step

    def noted(*arguments: Any) -> Any:
        starts.append(time.perf_counter())
        return step(*arguments)

    pretrain.training_step = noted
    with parallel.distributed():
        pretrain.pretrain(load_recipe(recipe, overrides))
    if os.environ.get("RANK", "0") == "0":
        periods = np.diff(starts)[WARM_UP:]
        out.write_text(json.dumps(1e3 * float(np.median(periods))), encoding="utf-8")


def bare_loop(case: Case, bare: Path, work: Path) -> float:
    out = work / "bare.json"
    size = {
        "layers": case.num_layers,
        "hidden": case.hidden_size,
        "ffn": case.ffn_hidden_size,
        "heads": case.num_attention_heads,
        "kv_heads": case.num_query_groups,
        "vocab": case.vocab_size,
        "seq": case.seq_length,
    }
    layout = [f"--{name}={ways}" for name, ways in case.layout.items()]
    batch = ["--gbs", case.global_batch_size, "--mbs", case.micro_batch_size, "--steps", case.steps]
    flags = ["--bf16", "--dist-opt", "--attention", "sdpa", "--quiet"]
    torchrun(case, [bare / "train.py", "--size", json.dumps(size), *layout, *batch, *flags, "--out", out.absolute()])
    return float(json.loads(out.read_text(encoding="utf-8"))["ms"])


def torchrun(case: Case, arguments: list[Any]) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(case.processes)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(case.threads)}
    done = subprocess.run(
        [*command, *map(str, arguments)], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(done.stdout + done.stderr)


def machine() -> dict[str, Any]:
    import torch

    name = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    return {"device": name, "cores": os.cpu_count(), "torch": torch.__version__}


def table(found: dict[str, Any]) -> list[str]:
    rows = ["| case | tokens/s | bare loop | ratio, median of the turns | range |", "|---|---|---|---|---|"]
    for name, measured in found["cases"].items():
        case, turns = measured["case"], measured["turns"]
        tokens = 1e3 * case["global_batch_size"] * case["seq_length"]
        own = tokens / statistics.median(turn["ours"] for turn in turns)
        if "bare" not in turns[0]:
            rows.append(f"| {name} | {own:,.0f} | | | |")
            continue
        theirs = tokens / statistics.median(turn["bare"] for turn in turns)
        ratios = sorted(turn["bare"] / turn["ours"] for turn in turns)
        spread = f"{ratios[0]:.3f} to {ratios[-1]:.3f}"
        rows.append(f"| {name} | {own:,.0f} | {theirs:,.0f} | {statistics.median(ratios):.3f} | {spread} |")
    return rows


if __name__ == "__main__":
    main()

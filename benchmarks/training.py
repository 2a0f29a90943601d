#!/usr/bin/env python3
"""Training speed: our run beside a bare loop on megatron-core, on the machine at hand.

    python benchmarks/training.py --list
    python benchmarks/training.py --out docs/benchmarks/training.json --gate    # what the machine can run
    python benchmarks/training.py --case 8b-fp8 --seconds 500 --out h200.json   # again and again: it goes on
    python benchmarks/training.py --dry-run all                                 # built without a GPU, nothing measured

Ours is `megatron_ipt.pretrain` as a user starts it: data from a blend, losses by source, checks before the update,
metrics every step.  The bare loop is `bare_loop.py`: megatron-core's own classes, forward, backward, clip and update on
batches in memory.  `--bare DIR` takes in its place a script `DIR/train.py` that does the same (--size JSON, --gbs,
--mbs, --steps, --bf16, --dist-opt, --tp, --pp, --out FILE for {"ms": median milliseconds of a step}).

Both train one model from scratch under torchrun: on a CPU at once, step by step, one computing while the other waits
(`steps.py`); on a GPU one after the other.  The order changes from turn to turn (`training_figures.py` says how turns
are compared).  A step lasts from its start to the start of the next, so that all that lies between counts.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import training_figures as figures
from training_cases import CASES, Case, case_named, changed
from training_jobs import products, script_arguments
from training_limits import check
from training_runs import built, prepare, probe, turn

from data_prep.errors import UserError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="print the names of the cases")
    parser.add_argument("--case", action="append", help="this case alone; may stand several times")
    parser.add_argument("--set", action="append", default=[], help="KEY=VALUE of train, for both sides", metavar="KEY")
    parser.add_argument("--turns", type=int, default=7, help="runs of each side")
    parser.add_argument("--seconds", type=float, help="begin no turn that would end later than this")
    parser.add_argument("--out", type=Path, help="JSON file for the figures; one that is there is gone on with")
    parser.add_argument("--gate", action="store_true", help="exit 1 if a case is below 0.95, 2 if one is not decided")
    parser.add_argument("--bare", type=Path, help="folder of another bare loop's train.py")
    parser.add_argument("--work", type=Path, default=Path("runs/training"), help="folder for data and runs")
    parser.add_argument("--table", type=Path, help="print the tables of a JSON file of figures, and measure nothing")
    parser.add_argument("--dry-run", metavar="CASE", help="build both sides of a case, or of all, without a GPU")
    options = parser.parse_args()
    if options.list:
        print("\n".join(f"{name:<24}{told(CASES[name])}" for name in CASES))
    elif options.table:
        print("\n".join(figures.table(json.loads(options.table.read_text(encoding="utf-8")))))
    elif options.dry_run:
        dry(list(CASES) if options.dry_run == "all" else [options.dry_run], options.set)
    else:
        sys.exit(measure_all(options))


def told(case: Case) -> str:
    train, model = case.train, case.model
    tokens = f"{train['global_batch_size']} x {train['seq_length']:,} tokens a step"
    return f"{model['num_layers']} layers of {model['hidden_size']}, {tokens}, {case.processes} process(es)"


def dry(names: Sequence[str], overrides: Sequence[str]) -> None:
    """Build them; exit 1 where the sides would not compute the same."""
    from training_dry import dry_run

    unlike = False
    for name in names:
        found = dry_run(changed(case_named(name), overrides))
        same = found["on_a_rank"] == found["bare_on_a_rank"] and not found["differences"]
        unlike |= not same
        stand, most = (f"{found[key] / 1e9:.1f} GB" for key in ("standing_bytes", "estimated_bytes"))
        sizes = f"{found['parameters']:,} parameters; {stand} stand, {most} with activations at most"
        print(f"{name}: {sizes}; {'both sides alike' if same else f'the sides differ: {found}'}")
    sys.exit(unlike)


def measure_all(options: argparse.Namespace) -> int:
    """Turns of each case as long as there is time; the exit code.

    A case that is asked for and cannot run here is a UserError; one that is not asked for is passed over with a line.
    """
    began, machine = time.monotonic(), probe()["machine"]
    found = opened(options.out, machine)
    for name in options.case or [name for name, case in CASES.items() if case.gpu == bool(machine["gpus"])]:
        case, key = changed(case_named(name), options.set), " ".join([name, *options.set])
        try:
            fit(name, case, machine, options.bare)
        except UserError as error:
            if options.case:
                raise
            print(f"left out: {error}", flush=True)
            continue
        if key not in found["cases"]:
            found["cases"][key] = begun(case, options.bare)
        measured = found["cases"][key]
        if measured["case"] != _as_json(case) or measured["bare"] != _which(options.bare):
            raise UserError(f"{options.out}, case {key}", "was measured with other settings", "give another --out")
        turns_of(key, case, measured, options, began, found)
    print("\n".join(figures.table(found)))
    verdicts = [figures.verdict(figures.ratios(each["turns"])) for each in found["cases"].values()]
    return figures.exit_code(verdicts) if options.gate else 0


def opened(out: Path | None, machine: dict[str, Any]) -> dict[str, Any]:
    """The figures in `out`, to go on with; UserError where they are of another machine."""
    if out is None or not out.exists():
        return {"machine": machine, "date": datetime.now(UTC).date().isoformat(), "cases": {}}
    found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    if found["machine"] != machine:
        raise UserError(out, f"is of {found['machine']}, this is {machine}", "give another --out")
    return found


def begun(case: Case, bare: Path | None) -> dict[str, Any]:
    from megatron_ipt.architecture import with_settings
    from megatron_ipt.settings import ModelSettings
    from megatron_ipt.training.flops import flops_per_token

    flops = flops_per_token(with_settings(None, ModelSettings(**case.model)), case.train["seq_length"])
    rates = probe(products(case), case.threads)["rates"]
    named = {"case": _as_json(case), "bare": _which(bare), "tokens_a_step": case.tokens_a_step}
    return {**named, "flops": flops._asdict(), "rates": rates, "turns": []}


def _as_json(case: Case) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(asdict(case)))
    return found


def _which(bare: Path | None) -> str:
    return "bare_loop.py" if bare is None else "train.py of --bare"


def fit(name: str, case: Case, machine: dict[str, Any], bare: Path | None) -> None:
    """UserError for what cannot run here, or not against `bare`; a line for what may run out of memory."""
    check(name, case, machine, 0)
    if bare is not None:
        script_arguments(case)
    if not machine["gpus"]:
        return
    found = built(case)
    check(name, case, machine, found["standing_bytes"])
    if found["estimated_bytes"] > machine["memory_bytes"]:
        has, most = (f"{size / 1e9:.0f} GB" for size in (machine["memory_bytes"], found["estimated_bytes"]))
        print(f"{name}: may take {most} of {has}; if it runs out, raise recompute_num_layers with --set", flush=True)


def turns_of(
    key: str, case: Case, measured: dict[str, Any], options: argparse.Namespace, began: float, found: dict[str, Any]
) -> None:
    """Turns until there are enough, or no time is left for one more; each is kept as it ends."""
    turns, work = measured["turns"], options.work
    if len(turns) < options.turns:
        prepare(case, work, engine=found["machine"]["transformer_engine"])
    while len(turns) < options.turns:
        elapsed, longest = time.monotonic() - began, max((turn["seconds"] for turn in turns), default=0.0)
        if not figures.fits(elapsed, longest, options.seconds):
            print(f"{key}: {len(turns)} of {options.turns} turns; no time for one more", flush=True)
            return
        limit = None if options.seconds is None else options.seconds - elapsed
        turns.append(turn(case, work, options.bare, reverse=len(turns) % 2 == 1, limit=limit))
        ratio = figures.ratios(turns[-1:])[0]
        print(f"{key}: turn {len(turns)}, {turns[-1]['seconds']:.0f} s, ours / bare {ratio:.3f}", flush=True)
        if options.out:
            keep(found, options.out)


def keep(found: dict[str, Any], out: Path) -> None:
    """The figures so far, whole or not at all; a turn a line."""
    waiting = out.with_name(out.name + ".partial")
    text = json.dumps(found).replace('{"seconds"', '\n{"seconds"').replace('"cases": {', '"cases": {\n')
    waiting.write_text(text + "\n", encoding="utf-8")
    waiting.replace(out)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # not at once: what was started is ended first
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")

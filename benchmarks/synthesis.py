#!/usr/bin/env python3
"""Speed of synthesis: around an engine that answers at once, and on vLLM beside the bare engine and beside rounds.

    python benchmarks/synthesis.py --list
    python benchmarks/synthesis.py --case instant --case around --out docs/benchmarks/synthesis.json
    python benchmarks/synthesis.py --case vllm --vllm FOLDER/bin/python --out docs/benchmarks/synthesis.json
    python benchmarks/synthesis.py --table docs/benchmarks/synthesis.json          # prints the tables

`instant` and `around` run `ipt data synthesize` as it stands, with an engine in place of the model, each run in a
process of its own (synthesis_around.py).  The cases of vLLM run in its own environment, which tools/vllm_cpu.sh makes
(synthesis_vllm.py says what the arms of a turn are).  Processor seconds are those of the processes measured; a figure
of a turn is a ratio or a rate of that turn alone, what is told is their median and its interval of 95 %
(training_figures.py).  A file that is there is gone on with.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import synthesis_figures as figures
from synthesis_around import measured, sample_documents
from synthesis_cases import CASES, Case

from data_prep.errors import UserError
from data_prep.fetch import fetch_model
from data_prep.readers import write_jsonl

HERE = Path(__file__).resolve().parent
MODEL = "smollm2-135m-instruct"
TOKENIZERS = {"llama3": 1, "smollm2": 10}
"""Tokenizer -> the part of the documents that it gets."""
ENGINES: dict[str, dict[str, Any]] = {
    "at once": {},
    "after four seconds": {"latency": 4.0},
    "by HTTP, after four seconds": {"latency": 4.0, "by_http": True},
}
WARM_UP = 3
"""Documents of the turn of vLLM that is not counted."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="print the names of the cases")
    parser.add_argument("--case", action="append", choices=CASES, help="this case; may stand several times")
    parser.add_argument("--turns", type=int, default=7, help="turns of a case, with those that the file has")
    parser.add_argument("--documents", type=int, nargs="*", help="other numbers of documents, to try it")
    parser.add_argument("--vllm", type=Path, help="a Python that has vLLM")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    parser.add_argument("--work", type=Path, default=Path("runs/synthesis"), help="folder for tokenizers and documents")
    parser.add_argument("--table", type=Path, help="print the tables of a JSON file of figures, and measure nothing")
    options = parser.parse_args()
    if options.list:
        print("\n".join(f"{name:<12}{case.told}" for name, case in CASES.items()))
        return
    if options.table:
        print("\n".join(figures.table(json.loads(options.table.read_text(encoding="utf-8")))))
        return
    found = opened(options.out)
    for name in options.case or ["instant", "around"]:
        case = CASES[name]
        count = tuple(options.documents or case.documents)
        kept = found["cases"].setdefault(name, {"kind": case.kind, "documents": list(count), "turns": []})
        if kept["documents"] != list(count):
            raise UserError(f"{options.out}, case {name}", "is of other documents", "give another --out")
        for turn in turns_of(case, count, options.work, options.turns - len(kept["turns"]), options.vllm):
            kept["turns"].append(turn)
            print(name, json.dumps(turn), flush=True)
            keep(found, options.out)
    print("\n".join(figures.table(found)))


def opened(out: Path | None) -> dict[str, Any]:
    """The figures in `out`, to go on with; without it, none."""
    if out is not None and out.exists():
        found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
        return found
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    return {"machine": machine, "date": datetime.now(UTC).date().isoformat(), "cases": {}}


def keep(found: dict[str, Any], out: Path | None) -> None:
    """The figures so far, whole or not at all; a turn a line."""
    if out is None:
        return
    waiting = out.with_name(out.name + ".partial")
    waiting.write_text(json.dumps(found).replace('{"load"', '\n{"load"') + "\n", encoding="utf-8")
    waiting.replace(out)


def turns_of(case: Case, count: tuple[int, ...], work: Path, turns: int, python: Path | None) -> Iterator[Any]:
    """So many turns of a case, each as it ends."""
    work.mkdir(parents=True, exist_ok=True)
    if case.kind == "vllm":
        if turns > 0:
            yield from vllm_turns(case, count[0], work, turns, python)
        return
    for _ in range(turns):
        runs = instant_turn(case, count[0], work) if case.kind == "instant" else around_turn(case, count, work)
        yield {"load": round(os.getloadavg()[0], 1), "runs": runs}


def instant_turn(case: Case, count: int, work: Path) -> dict[str, Any]:
    return {name: measured(work, "llama3", count, settings=case.settings, **engine) for name, engine in ENGINES.items()}


def around_turn(case: Case, counts: tuple[int, ...], work: Path) -> dict[str, Any]:
    """By tokenizer and limit, the runs over fewer and over more documents."""
    return {
        f"{name}, {limit or 'default'}": [
            measured(work, name, count // part, settings={**case.settings, "max_text_tokens": limit})
            for count in counts
        ]
        for name, part in TOKENIZERS.items()
        for limit in case.limits
    }


def vllm_turns(case: Case, count: int, work: Path, turns: int, python: Path | None) -> Iterator[Any]:
    """The turns that one engine makes, as it tells of them.

    Raises:
        UserError: no Python with vLLM is given, or it failed; its words are above.
    """
    if python is None:
        raise UserError("--vllm", "is not given", "give a Python that has vLLM: tools/vllm_cpu.sh makes one")
    with tempfile.TemporaryDirectory(prefix="ipt-benchmark-", dir=work) as folder:
        case_file, corpus = Path(folder).resolve() / "case.json", Path(folder).resolve() / "documents.jsonl"
        write_jsonl(corpus, sample_documents(count, case.shortest, case.longest))
        told: dict[str, Any] = {"model": str(fetch_model(MODEL)), "corpus": str(corpus), "settings": case.settings}
        case_file.write_text(
            json.dumps({**told, "one_pair": case.one_pair, "warm_up": WARM_UP, "turns": turns}), encoding="utf-8"
        )
        command = [str(python), str(HERE / "synthesis_vllm.py"), str(case_file)]
        own = {"PYTHONPATH": str(HERE.parent), "VLLM_CPU_KVCACHE_SPACE": "1", "OMP_WAIT_POLICY": "PASSIVE"}
        environment = {**os.environ, **own, "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith("turn "):
                    yield json.loads(line.removeprefix("turn "))
        if process.returncode:
            raise UserError(str(python), f"ended with exit code {process.returncode}", "see what it says above")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        raise SystemExit(f"error: {error}") from error

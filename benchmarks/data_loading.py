#!/usr/bin/env python3
"""How long data takes to start and to read: our blend beside megatron-core's GPTDataset and BlendedDataset.

    python benchmarks/data_loading.py --work runs/data_loading --out docs/benchmarks/data_loading.json    (15 minutes)

Data: 10 sources of 100,000 documents of 125 to 375 tokens, 250 million tokens, weights 1 to 10, sequences of 512.  Each
measurement is a process of its own, imports not counted; the sides are run in turn, `--repeats` times, and a ratio is
the median of the ratios of a turn.

| figure | what is timed |
|---|---|
| plan | `ipt blend plan`, once: every byte is verified, the pack tables are written |
| ours | a run's start: the blend is opened, which hashes the ends of its files |
| cold | Megatron's builder with an empty cache, a run's first start |
| again | Megatron's builder on the cache of the first |
| rate | samples a second of one process, in the order of the run |
| step | a training step of a 10M model with our loader, beside one fed from a tensor in memory |

A start ends with its first sample.  It is measured for a run of 100,000 samples, and for 10 and 100 times as many.  The
data's files are in the page cache for all: `cold` means that no index is built.
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
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from random_tokens import chunks, write

SOURCES, DOCUMENTS, SEQ_LENGTH, VOCABULARY = 10, 100_000, 512, 32_000
SAMPLES = (100_000, 1_000_000, 10_000_000)
READ = 20_000
MODEL = {"num_layers": 8, "hidden_size": 256, "ffn_hidden_size": 1024, "num_attention_heads": 8, "vocab_size": 4096}
STEPS, BATCH = 14, 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/data_loading"), help="folder for the data (1 GB)")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--part", choices=("start", "rate", "step"), help="one part only")
    parser.add_argument("--tables", type=Path, help="print the tables of a JSON file of figures, and measure nothing")
    parser.add_argument("--run", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.tables:
        print("\n".join(tables(json.loads(options.tables.read_text(encoding="utf-8")))))
        return
    if options.run:
        print(json.dumps(RUNS[options.run[0]](options.work, int(options.run[1]))))
        return
    options.work.mkdir(parents=True, exist_ok=True)
    prepare(options.work)
    parts: dict[str, Callable[[Path, int], dict[str, Any]]] = {"start": start, "rate": rate, "step": step}
    found: dict[str, Any] = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "sources": SOURCES,
        "documents": SOURCES * DOCUMENTS,
        "seq_length": SEQ_LENGTH,
    }
    for name, part in parts.items():
        if options.part in (None, name):
            found[name] = part(options.work, options.repeats)
    text = json.dumps(found, indent=2)
    print(text)
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")


def tables(found: dict[str, Any]) -> Iterator[str]:
    """The figures as docs/benchmarks/data_loading.md has them."""
    yield (
        "| seconds to the first sample, median (least to most) | "
        + " | ".join(f"{n:,} samples" for n in SAMPLES)
        + " |"
    )
    yield "|---|" + "---|" * len(SAMPLES)
    runs = [found["start"][str(samples)] for samples in SAMPLES]
    for name in STARTS:
        yield f"| {name} | " + " | ".join(told(run["seconds"][name]) for run in runs) + " |"
    for name in ("cold", "again"):
        yield f"| {name} / ours | " + " | ".join(told(run[f"{name} / ours"], 2) for run in runs) + " |"
    yield ""
    rates, step = found["rate"], found["step"]
    yield "| | ours | beside it | ratio |"
    yield "|---|---|---|---|"
    a, b = (told(rates["samples_a_second"][side], 0) for side in ("ours", "megatron"))
    yield f"| samples a second, Megatron's beside it | {a} | {b} | {told(rates['ours / megatron'], 2)} |"
    a, b = (told(step["seconds"][side]) for side in ("loader", "memory"))
    yield f"| seconds a step, fed from memory beside it | {a} | {b} | {told(step['loader / memory'])} |"


def told(figure: dict[str, float], digits: int = 3) -> str:
    median, least, most = (f"{figure[name]:,.{digits}f}" for name in ("median", "least", "most"))
    return f"{median} ({least} to {most})"


def start(work: Path, repeats: int) -> dict[str, Any]:
    """Seconds to the first sample by the length of the run, and theirs over ours."""
    found: dict[str, Any] = {}
    for samples in SAMPLES:
        turns = []
        for turn in range(repeats):
            forget(work)
            turns.append({name: measure(work, run, samples)["seconds"] for name, run in STARTS.items()})
            tell(f"{samples} samples, turn {turn + 1}: {turns[-1]}")
        found[str(samples)] = {
            "seconds": {name: spread([turn[name] for turn in turns]) for name in STARTS},
            **{f"{name} / ours": spread([turn[name] / turn["ours"] for turn in turns]) for name in STARTS},
        }
    forget(work)
    first, last = (found[str(samples)]["seconds"] for samples in (SAMPLES[0], SAMPLES[-1]))
    flat = {name: round(last[name]["median"] / first[name]["median"], 2) for name in STARTS}
    return {**found, f"{SAMPLES[-1]} samples over {SAMPLES[0]}": flat}


# in this order: what a first start leaves behind is what a later one finds
STARTS = {"plan": "plan", "ours": "ours_start", "cold": "megatron_start", "again": "megatron_start"}


def rate(work: Path, repeats: int) -> dict[str, Any]:
    """Samples a second of one process, and ours over theirs."""
    measure(work, "plan", 0)
    turns = []
    for turn in range(repeats):
        turns.append({side: measure(work, f"{side}_rate", READ)["rate"] for side in ("ours", "megatron")})
        tell(f"rate, turn {turn + 1}: {turns[-1]}")
    return {
        "samples_a_second": {name: spread([turn[name] for turn in turns]) for name in turns[0]},
        "ours / megatron": spread([turn["ours"] / turn["megatron"] for turn in turns]),
    }


def step(work: Path, repeats: int) -> dict[str, Any]:
    """Seconds of a step, and a step with the loader over one without.  The two take turns within one process."""
    measure(work, "plan", 0)
    turns = [measure(work, "step", STEPS) for _ in range(repeats)]
    return {
        "parameters": turns[0]["parameters"],
        "seconds": {name: spread([turn[name] for turn in turns]) for name in ("loader", "memory")},
        "waited_seconds": spread([turn["waited"] for turn in turns]),
        "loader / memory": spread([turn["ratio"] for turn in turns]),
    }


def spread(values: list[float]) -> dict[str, float]:
    median = statistics.median(values)
    return {"median": round(median, 4), "least": round(min(values), 4), "most": round(max(values), 4)}


def tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def measure(work: Path, name: str, number: int) -> dict[str, Any]:
    """One measurement in a process of its own."""
    command = [sys.executable, __file__, "--work", str(work), "--run", name, str(number)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode:
        raise RuntimeError(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def prefixes(work: Path) -> list[Path]:
    return [work / f"source-{number}" for number in range(SOURCES)]


def forget(work: Path) -> None:
    """Removes every index that either side has built."""
    for folder in ("blend", "cache"):
        shutil.rmtree(work / folder, ignore_errors=True)
    for path in work.glob("source-*.pack-*"):
        path.unlink()


def blend(work: Path) -> Path:
    return work / "blend" / "blend.json"


def plan(work: Path, _: int) -> dict[str, float]:
    from data_prep.blend import plan as plan_blend
    from data_prep.settings import BlendSettings

    began = time.perf_counter()
    named = enumerate(prefixes(work), 1)
    sources = {prefix.name: {"prefix": prefix.resolve(), "weight": float(weight)} for weight, prefix in named}
    plan_blend(BlendSettings(sources=sources, seq_length=SEQ_LENGTH), blend(work).parent)
    return {"seconds": time.perf_counter() - began}


def megatron_open(work: Path, samples: int) -> Any:
    """Theirs, as pretrain_gpt.py builds it; the folder of the cache is that of the run."""
    import megatron_ipt.mcore.quiet  # noqa: F401  # isort: skip
    from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig

    config = GPTDatasetConfig(
        random_seed=1234,
        sequence_length=SEQ_LENGTH,
        blend=([str(prefix) for prefix in prefixes(work)], [float(n + 1) for n in range(SOURCES)]),
        split="1,0,0",
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
        path_to_cache=str(work / "cache"),
        tokenizer=SimpleNamespace(eod=2, pad=-1, vocab_size=VOCABULARY, unique_identifiers={}),
        mid_level_dataset_surplus=0.005,
    )
    return BlendedMegatronDatasetBuilder(GPTDataset, [samples, 0, 0], lambda: True, config).build()[0]


def ours_start(work: Path, _: int) -> dict[str, float]:
    from megatron_ipt.data.stream import BlendStream

    began = time.perf_counter()
    BlendStream(blend(work)).sample(0)
    return {"seconds": time.perf_counter() - began}


def megatron_start(work: Path, samples: int) -> dict[str, float]:
    import megatron.core.datasets.blended_megatron_dataset_builder
    import megatron.core.datasets.gpt_dataset  # noqa: F401

    began = time.perf_counter()
    megatron_open(work, samples)[0]
    return {"seconds": time.perf_counter() - began}


def ours_rate(work: Path, samples: int) -> dict[str, float]:
    from megatron_ipt.data.provider import BlendDataset, Masks

    return read(BlendDataset(blend(work), samples, Masks()), samples)


def megatron_rate(work: Path, samples: int) -> dict[str, float]:
    return read(megatron_open(work, samples), samples)


def read(dataset: Any, samples: int) -> dict[str, float]:
    """The second half of so many samples: by then the files are in memory."""
    for number in range(samples // 2):
        dataset[number]
    began = time.perf_counter()
    for number in range(samples // 2, samples):
        dataset[number]
    return {"rate": (samples - samples // 2) / (time.perf_counter() - began)}


def train_step(work: Path, steps: int) -> dict[str, float]:
    """Steps of one model, in turn with the loader and with a batch that lies in memory."""
    from megatron_ipt.architecture import Architecture
    from megatron_ipt.data.loader import Loader
    from megatron_ipt.data.loader import steps as steps_of
    from megatron_ipt.data.stream import BlendStream
    from megatron_ipt.mcore import config as configs
    from megatron_ipt.mcore import model as models
    from megatron_ipt.mcore import optimizer as optimizers
    from megatron_ipt.mcore import parallel
    from megatron_ipt.settings import TrainSettings

    stream = BlendStream(blend(work))

    def sample(index: int) -> Any:
        found = stream.sample(index)
        for tokens in (found.tokens, found.labels):
            tokens %= MODEL["vocab_size"]
        return found

    train = TrainSettings(
        global_batch_size=BATCH, micro_batch_size=BATCH, seq_length=SEQ_LENGTH, train_iters=steps, lr=1e-4, bf16=False
    )
    heads = MODEL["num_attention_heads"]
    sizes = (MODEL["num_layers"], MODEL["hidden_size"], MODEL["ffn_hidden_size"], heads, heads)
    architecture = Architecture(*sizes, MODEL["hidden_size"] // heads, 1e-5, 1e4, MODEL["vocab_size"])
    with parallel.distributed(), parallel.model_parallel(train):
        config = configs.transformer_config(architecture, train)
        chunks = models.wrap(models.build(architecture, config, train, MODEL["vocab_size"]), config, train)
        optimizer = optimizers.build(train, chunks)
        with Loader(sample, steps_of(0, 10**9, BATCH, 0, 1), BATCH) as loader:
            memory = [{name: field.clone() for name, field in batch.items()} for batch in next(loader)]
            seconds: dict[str, list[float]] = {"loader": [], "memory": []}
            waited = []
            for number in range(2 * steps):
                side = ("loader", "memory")[(number + number // 2) % 2]
                began = time.perf_counter()
                batches = next(loader) if side == "loader" else memory
                optimizers.zero_grad(optimizer, chunks)
                models.run_batch(chunks, lambda batches=batches: iter(batches), train, backward=True, sources=SOURCES)
                optimizers.step(optimizer)
                seconds[side].append(time.perf_counter() - began)
                if side == "loader":
                    waited.append(loader.waited)
    pairs = zip(seconds["loader"][2:], seconds["memory"][2:], strict=True)
    return {
        "parameters": architecture.parameters(),
        "waited": statistics.median(waited[2:]),
        "ratio": statistics.median(a / b for a, b in pairs),
        **{side: statistics.median(values[2:]) for side, values in seconds.items()},
    }


RUNS: dict[str, Callable[[Path, int], dict[str, float]]] = {
    "plan": plan,
    "ours_start": ours_start,
    "megatron_start": megatron_start,
    "ours_rate": ours_rate,
    "megatron_rate": megatron_rate,
    "step": train_step,
}


def prepare(work: Path) -> None:
    """The datasets, once."""
    for number, prefix in enumerate(prefixes(work)):
        if not prefix.with_name(f"{prefix.name}.manifest.json").exists():
            write(prefix, chunks(number, DOCUMENTS, VOCABULARY), VOCABULARY)


if __name__ == "__main__":
    main()

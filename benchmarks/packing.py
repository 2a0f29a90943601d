#!/usr/bin/env python3
"""Padding of policy `chains` on three length distributions, and time and memory of packing by number of documents.

    python benchmarks/packing.py --work runs/packing --out docs/benchmarks/packing.json      (about 20 minutes, 5 GB)

Padding: chains of M texts, each with pairs, drawn from the distributions below; their runs are written as a dataset's
PREFIX.spans, and packed with and without filling.  Five pairs a text and 52 tokens a pair are the paper's figures;
lengths of the texts are log-normal [tokens]: (median, sigma).

Scaling: an .idx of lengths by construction (its .bin is a file without blocks), packed in a process of its own; memory
is that of the process less the pages of mapped files (anonymous), and with them (peak).
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

# name: (texts a chain, median, sigma, sequence length)
DISTRIBUTIONS = {
    "web, M = 2": (2, 520, 0.9, 2048),
    "abstracts, M = 3": (3, 280, 0.35, 4096),
    "news, M = 3": (3, 700, 0.6, 4096),
}
PAIRS, PAIR_TOKENS = 5, 52


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for what is packed")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    parser.add_argument("--chains", type=int, default=100_000, help="chains of each distribution")
    parser.add_argument("--documents", type=int, nargs="*", default=[1_000_000, 10_000_000, 100_000_000])
    parser.add_argument("--workers", type=int, default=1, help="processes that pack chains")
    parser.add_argument("--run", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        print(json.dumps(build(options.work, options.run[0], int(options.run[1]), options.workers)))
        return
    options.work.mkdir(parents=True, exist_ok=True)
    found = {
        "padding": [padding(options.work, name, options.chains, fill) for name in DISTRIBUTIONS for fill in (0, 1)],
        "scaling": [
            scaling(options.work, policy, count, options.workers)
            for count in options.documents
            for policy in ("concatenate", "chains")
        ],
    }
    text = json.dumps(found, indent=2)
    print(text)
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")


def padding(work: Path, name: str, chains: int, fill: int) -> dict[str, object]:
    """Part of all positions that is padding, and of all chains that is cut."""
    from data_prep.indexing.spans import SpansReader, SpansWriter
    from data_prep.packing.chains import CUTTABLE, ChainPacker
    from data_prep.packing.table import PackWriter

    texts, median, sigma, seq_length = DISTRIBUTIONS[name]
    lengths = np.empty(chains, np.int64)
    with SpansWriter(work / "padding") as spans:
        for number, runs in enumerate(chain_runs(chains, texts, median, sigma)):
            spans.add(runs)
            lengths[number] = runs.ends[-1]
        spans.finish()
        spans.commit()
    start = time.perf_counter()
    with PackWriter(work / "padding.pack") as writer:
        packer = ChainPacker(seq_length, SpansReader(work / "padding"), writer, cuttable=CUTTABLE * fill)
        packer.add([(np.arange(chains), lengths)])
        report = packer.finish()
        sequences = writer.sequences
    found = {
        "distribution": name,
        "seq_length": seq_length,
        "fill": bool(fill),
        "mean_tokens": round(float(lengths.mean())),
        "longer_than_a_sequence": round(float((lengths > seq_length + 1).mean()), 4),
        "padding": round(report.padding / (sequences * (seq_length + 1)), 5),
        "cut": round(report.cut_documents / chains, 4),
        "repeated_tokens": round(report.repeated_tokens / report.tokens, 5),
        "dropped": report.dropped,
        "microseconds_a_chain": round((time.perf_counter() - start) / chains * 1e6, 2),
    }
    print(found, file=sys.stderr, flush=True)
    return found


def chain_runs(chains: int, texts: int, median: float, sigma: float) -> Iterator[object]:
    """The runs of each chain: BOS, text and pairs in turn, EOD."""
    from data_prep.indexing.spans import CLASSES, CONTROL, Runs

    text, question, answer, template = (CLASSES.index(name) for name in ("text", "question", "answer", "template"))
    classes = np.array([CONTROL, *[text, *[template, question, template, answer] * PAIRS] * texts, CONTROL], "u1")
    numbers = np.full(len(classes), -1, "<i4")
    numbers[classes == text] = np.arange(texts)
    numbers[(classes == question) | (classes == answer)] = np.repeat(np.arange(texts * PAIRS), 2)
    rng = np.random.default_rng(len(classes) * chains)
    for _ in range(chains):
        lengths = np.ones(len(classes), np.int64)
        lengths[classes == text] = np.maximum(20, rng.lognormal(np.log(median), sigma, texts))
        lengths[classes == template] = 3
        lengths[(classes == question) | (classes == answer)] = 2 + rng.poisson(PAIR_TOKENS / 2 - 5, 2 * PAIRS * texts)
        yield Runs(np.array([len(classes)]), np.cumsum(lengths).astype("<i4"), numbers, classes)


def scaling(work: Path, policy: str, documents: int, workers: int) -> dict[str, object]:
    """Seconds and memory of packing so many documents, each in a process of its own."""
    prepare(work, documents)
    command = [
        sys.executable,
        __file__,
        "--work",
        str(work),
        "--workers",
        str(workers),
        "--run",
        policy,
        str(documents),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = {"policy": policy, "documents": documents, **json.loads(done.stdout.splitlines()[-1])}
    print(found, file=sys.stderr, flush=True)
    return found


def prepare(work: Path, documents: int) -> None:
    """An .idx of log-normal lengths, and a .bin of the right size without blocks."""
    from data_prep.indexing.writer import write_idx

    prefix = work / f"of-{documents}"
    if prefix.with_suffix(".idx").exists():
        return

    def lengths() -> Iterator[np.ndarray]:
        rng = np.random.default_rng(documents)
        for start in range(0, documents, 1 << 20):
            size = min(1 << 20, documents - start)
            yield np.clip(rng.lognormal(np.log(700), 0.6, size), 2, 4097).astype(np.int32)

    with prefix.with_suffix(".idx").open("wb") as file:
        write_idx(file, lengths, documents, "int32")
    with prefix.with_suffix(".bin").open("wb") as file:
        file.truncate(4 * sum(int(part.sum()) for part in lengths()))


def build(work: Path, policy: str, documents: int, workers: int) -> dict[str, object]:
    from data_prep.indexing.reader import IndexedDatasetReader
    from data_prep.packing.concatenate import concatenate
    from data_prep.packing.documents import documents_in_order
    from data_prep.packing.stretches import ChainsTask, pack_chains
    from data_prep.packing.table import PackReport, PackWriter

    reader = IndexedDatasetReader(work / f"of-{documents}")
    imported, start = time.process_time(), time.perf_counter()
    with PackWriter(work / "scaling.pack") as writer:
        if policy == "chains":
            task = ChainsTask(work / f"of-{documents}", False, 4096, 1234, None, work / "scaling.pack")
            report = pack_chains(task, documents, writer, workers)
        else:
            for counts, rows in concatenate(documents_in_order(reader, 1234), 4096):
                writer.add(counts, rows)
            report = PackReport()
        writer.finish(report)
    seconds = time.perf_counter() - start
    worked = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cpu_seconds = sum(each.ru_utime + each.ru_stime for each in worked) - imported
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    (work / "scaling.pack").unlink()
    return {
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu_seconds, 2),
        "cpu_microseconds_a_document": round(cpu_seconds / documents * 1e6, 3),
        "anonymous_mb": int(status["RssAnon"].split()[0]) // 1024,
        "peak_mb": worked[0].ru_maxrss // 1024,
        "peak_mb_of_a_worker": worked[1].ru_maxrss // 1024,
    }


if __name__ == "__main__":
    main()

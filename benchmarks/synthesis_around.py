"""What synthesis costs around an engine that answers at once: one measurement in a process of its own.

The documents are 3,000 characters of the text of indexing.py: sentences of a Wikipedia sample in drawn order, in every
second one a new word, so that the cache of the tokenizer meets new words all the time.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import indexing
import orjson
from synthesis_engines import ANSWER, ANSWER_TOKENS, InstantEngine, Watched
from synthesis_server import serving

from data_prep.fetch import fetch_model
from data_prep.fetch.corpora import CORPORA
from data_prep.fetch.packages import PackageFile, fetch_file
from data_prep.indexing.tokenizer_files import read_tokenizer
from data_prep.readers import read_jsonl, write_jsonl
from data_prep.settings import SynthesizeSettings
from data_prep.synthesis import synthesize
from data_prep.synthesis.engines.server import ServerEngine

CHARACTERS = 3000


def main() -> None:
    """Reads what is to be measured from standard input, and writes the figures."""
    print(json.dumps(measure(**json.load(sys.stdin))))


def documents(count: int, seed: int) -> Iterator[dict[str, str]]:
    """So many documents of 3,000 characters."""
    drawn, sentences = random.Random(seed), indexing.read_sentences()
    words = sorted({word for sentence in sentences for word in sentence.split() if word.isalpha() and len(word) > 4})
    rest = ""
    for number in range(count):
        while len(rest) < CHARACTERS:
            rest += indexing.passage(drawn, sentences, words) + "\n\n"
        text, rest = rest[:CHARACTERS], rest[CHARACTERS:]
        yield {"id": f"document-{number}", "text": text}


def sample_documents(count: int, shortest: int, longest: int) -> list[dict[str, Any]]:
    """The first documents of the Wikipedia sample that have so many characters."""
    known = CORPORA["wikipedia-sample"]
    fitting = (each for each in known.parse(fetch_file(known.file)) if shortest <= len(each.text) <= longest)
    return [document.to_json() for document in islice(fitting, count)]


def corpus(work: Path, count: int) -> Path:
    """The file of so many documents, written unless it is there."""
    path = work / f"documents-{count}.jsonl"
    if not path.exists():
        write_jsonl(path, documents(count, seed=count))
    return path


def tokenizer(work: Path, name: str) -> Path:
    """A Hugging Face directory with that tokenizer; Llama 3's is made of the file of the llama-models package."""
    if name == "smollm2":
        return fetch_model("smollm2-135m-instruct")
    folder = work / "llama3"
    if not (folder / "tokenizer_config.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        files = read_tokenizer(fetch_file(PackageFile(**indexing.TOKENIZER)), "llama3")
        (folder / "tokenizer.json").write_bytes(orjson.dumps(files.spec))
        (folder / "tokenizer_config.json").write_bytes(orjson.dumps(dict(files.named)))
    return folder


def measured(work: Path, name: str, count: int, **further: Any) -> dict[str, Any]:
    """`measure` over that tokenizer and so many documents, in a process of its own."""
    told = {"model": str(tokenizer(work, name)), "corpus": str(corpus(work, count)), **further}
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__]
    done = subprocess.run(command, input=json.dumps(told), capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-4000:])
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(
    model: str | None,
    corpus: str,
    settings: dict[str, Any] | None = None,
    latency: float = 0.0,
    by_http: bool = False,
) -> dict[str, Any]:
    """`ipt data synthesize` over a corpus, with an engine that answers `latency` seconds after it was asked.

    Seconds and processor seconds are of all of it: the tokenizer is loaded, the inputs are read, the files written.
    With `by_http` it is the engine of servers, before one in another process, whose processor seconds do not count.
    """
    chosen = SynthesizeSettings(**(settings or {}))
    with TemporaryDirectory(prefix="ipt-benchmark-") as folder, answering(latency, chosen, by_http) as engine:
        out = Path(folder) / "chains.jsonl"
        began, processor = time.perf_counter(), time.process_time()
        summary = synthesize(chosen, corpus, model, out, None, engine)
        seconds, processor_seconds = time.perf_counter() - began, time.process_time() - processor
    assert summary is not None
    return {
        "text_bytes": sum(len(row["text"].encode()) for row in read_jsonl(corpus)),
        "documents": summary["documents"],
        "texts": summary["texts"],
        "chains": summary["chains"],
        "completion_tokens": summary["completion_tokens"],
        "seconds": round(seconds, 3),
        "processor_seconds": round(processor_seconds, 3),
        "engine_seconds": summary["seconds"],
        "most_in_flight": engine.most_in_flight,
    }


@contextmanager
def answering(latency: float, settings: SynthesizeSettings, by_http: bool) -> Iterator[Watched]:
    """The engine, watched."""
    if not by_http:
        yield Watched(InstantEngine(latency), settings.concurrency)
        return
    room = settings.concurrency
    with serving(ANSWER, ANSWER_TOKENS, latency) as url:
        yield Watched(ServerEngine([url], "m", max_new_tokens=1, temperature=0.0, concurrency=room), room)


if __name__ == "__main__":
    main()

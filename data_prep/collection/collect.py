"""ipt data collect: task datasets with contexts -> the synthesizer's tuning sequences, and its demonstrations.

Writes OUT/tuning.jsonl (training text, see sequences.py), OUT/chains.jsonl (the same sequences as chains),
OUT/examples.jsonl (their texts with pairs, which `--demonstrations` takes), OUT/held_out.jsonl (those of datasets set
apart), OUT/dropped.jsonl (rows and pairs that are none, with place and reason) and OUT/summary.json.  One dataset is in
memory at a time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import numpy as np

from data_prep.collection.rows import Gathered, files_by_dataset, gather
from data_prep.collection.sequences import Lengths, Shot, concatenate, fit, tuning_text
from data_prep.collection.settings import CollectSettings
from data_prep.draws import draw
from data_prep.errors import UserError, nearest
from data_prep.indexing.encoder import Encoder
from data_prep.indexing.tokenizer import TextTokenizer, load_tokenizer
from data_prep.readers import atomic_file, json_line, write_json
from data_prep.records import AugmentedText, Chain
from data_prep.settings import IndexSettings

__all__ = ["collect"]

FILES = ("tuning", "chains", "examples", "held_out", "dropped")
# Examples that are encoded together.
_BATCH = 256


def collect(settings: CollectSettings, inputs: Iterable[Path | str], out: Path | str) -> dict[str, Any]:
    """Writes the folder OUT and returns what its summary says.

    rows = rows used + the sum of dropped row_*; pairs = pairs written + pairs held out + the sum of dropped pair_*.

    Raises:
        UserError: no input, no tokenizer or one without BOS or EOS, an unknown dataset to hold out, a line not JSON.
    """
    datasets = files_by_dataset(inputs)
    for name in settings.held_out:
        if name not in datasets:
            raise UserError("held_out", f"no dataset '{name}' among the inputs", nearest(name, datasets))
    bos, eos, lengths = _tokenizer(settings)
    summary = {}
    with ExitStack() as stack:
        files = {name: stack.enter_context(atomic_file(Path(out) / f"{name}.jsonl")) for name in FILES}
        for dataset, paths in datasets.items():
            gathered = gather(dataset, paths, settings)
            if dataset in settings.held_out:
                _hold_out(gathered, files)
            else:
                _write(settings, dataset, gathered, files, (bos, eos, lengths))
            summary[dataset] = dict(sorted(gathered.counts.items()))
    totals = sum((Counter(counts) for counts in summary.values()), Counter())
    written = {**_by_kind(totals), "held_out_datasets": len(settings.held_out), "datasets": summary}
    write_json(Path(out) / "summary.json", written)
    return written


def choose(examples: Sequence[AugmentedText], most: int, seed: int) -> list[AugmentedText]:
    """The examples with the most pairs, ties by draws of their ids; in the order of their draws."""

    def drawn(example: AugmentedText) -> int:
        return draw(seed, example.document_id, "collect")

    chosen = sorted(examples, key=lambda example: (-len(example.pairs), drawn(example)))[:most]
    return sorted(chosen, key=drawn)


def _write(
    settings: CollectSettings,
    dataset: str,
    gathered: Gathered,
    files: dict[str, IO[bytes]],
    tokenizer: tuple[str, str, Lengths],
) -> None:
    """The sequences of a dataset that is tuned on."""
    bos, eos, lengths = tokenizer
    _put_dropped(gathered, files)
    chosen = choose(gathered.examples, settings.max_examples, settings.seed)
    kept = {example.document_id for example in chosen}
    gone = [example for example in gathered.examples if example.document_id not in kept]
    gathered.counts["examples_over_limit"] += len(gone)
    gathered.counts["pair_of_example_over_limit"] += sum(len(example.pairs) for example in gone)
    shots = _shots(chosen, settings.seq_length, lengths, gathered.counts)
    for number, texts in enumerate(concatenate(shots, settings.seq_length)):
        chain = Chain(f"{dataset}:sequence-{number}", tuple(texts))
        files["tuning"].write(json_line(tuning_text(chain, bos, eos, settings.seed).to_json()))
        files["chains"].write(json_line(chain.to_json()))
        for text in texts:
            files["examples"].write(json_line(text.to_json()))
        gathered.counts["sequences"] += 1
        gathered.counts["examples_written"] += len(texts)
        gathered.counts["pairs_written"] += sum(len(text.pairs) for text in texts)


def _shots(examples: Sequence[AugmentedText], limit: int, lengths: Lengths, counts: Counter[str]) -> Iterator[Shot]:
    """The examples that fit, some without their last pairs; the others are counted."""
    for start in range(0, len(examples), _BATCH):
        batch = examples[start : start + _BATCH]
        for example, shot in zip(batch, fit(batch, limit, lengths), strict=True):
            if shot is None:
                counts["examples_longer_than_a_sequence"] += 1
                counts["pair_of_example_longer_than_a_sequence"] += len(example.pairs)
                continue
            counts["pair_beyond_a_sequence"] += shot.cut
            counts["tokens"] += shot.tokens
            yield shot


def _hold_out(gathered: Gathered, files: dict[str, IO[bytes]]) -> None:
    """All examples of a dataset that is set apart."""
    _put_dropped(gathered, files)
    for example in gathered.examples:
        files["held_out"].write(json_line(example.to_json()))
        gathered.counts["examples_held_out"] += 1
        gathered.counts["pairs_held_out"] += len(example.pairs)


def _put_dropped(gathered: Gathered, files: dict[str, IO[bytes]]) -> None:
    for where, reason in gathered.dropped:
        files["dropped"].write(json_line({"where": where, "reason": reason}))


def _by_kind(totals: Counter[str]) -> dict[str, Any]:
    """Totals over all datasets, the dropped ones apart."""
    dropped = {name: count for name, count in totals.items() if name.startswith(("row_", "pair_")) and count}
    names = ("rows", "pairs", "examples_written", "pairs_written", "examples_held_out", "pairs_held_out")
    return {
        **{name: totals[name] for name in (*names, "sequences", "tokens")},
        "dropped": dict(sorted(dropped.items())),
    }


def _tokenizer(settings: CollectSettings) -> tuple[str, str, Lengths]:
    """What spells BOS and EOS, and what counts the tokens of texts as the indexer will make them."""
    if settings.tokenizer is None:
        raise UserError("tokenizer", "none is named", "give the synthesizer's directory or SentencePiece file")
    tokenizer = load_tokenizer(settings.tokenizer, IndexSettings(tokenizer=settings.tokenizer, append_eod=False))
    names = {place: token for token, place in tokenizer.control.items()}
    bos, eos = names.get(tokenizer.identity.bos_id), names.get(tokenizer.identity.eos_id)  # type: ignore[arg-type]
    if bos is None or eos is None:
        raise UserError(settings.tokenizer, "the tokenizer names no BOS or no EOS", "use one that does")
    return bos, eos, _lengths(tokenizer)


def _lengths(tokenizer: TextTokenizer) -> Lengths:
    encoder = Encoder(tokenizer)

    def lengths(texts: Sequence[str]) -> Sequence[int]:
        found: np.ndarray = encoder.encode(texts, [text.encode() for text in texts]).lengths()
        return [int(length) for length in found]

    return lengths

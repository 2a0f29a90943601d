"""A small tokenizer whose tokens reach over the borders of spans, and training texts with every class of span."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from data_prep.indexing.layout import bin_path, idx_path, lineage_path, spans_path
from data_prep.manifest import BlockHasher, FileHashes, content_hash, manifest_path
from data_prep.records import AugmentedText, Chain, Origin, Span, SpanClass, TrainingText

EOD, BOS = 0, 1
# Blanks and line ends, as a byte-level BPE writes them, with what stands before or after.
_MERGES = [("Ġ", "W"), ("Ġ", "D"), ("Ċ", "Ċ"), (".", "ĊĊ"), ("e", "r"), ("ĠW", "er"), ("?", "Ċ")]


def save_tokenizer(folder: Path) -> Path:
    """BOS 1, EOD 0, the bytes, and a few merges that ignore where words end."""
    folder.mkdir(parents=True, exist_ok=True)
    names = ["<|end|>", "<s>", *sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(merge) for merge in _MERGES)]
    tokenizer = Tokenizer(models.BPE({name: place for place, name in enumerate(names)}, _MERGES))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end|>", "<s>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>", "bos_token": "<s>"}))
    return folder


def training_text(chain: Chain, seed: int = 7, lead: str = "Read: ", after: str = "\n\n") -> TrainingText:
    """A chain in a plain layout: each text after `lead`, then its pairs."""
    pieces: list[tuple[str, SpanClass, int]] = []
    pair = 0
    for place, text in enumerate(chain.texts):
        pieces += [(lead, "template", -1), (text.text, "text", place)]
        for each in text.pairs:
            pieces += [(after, "template", -1), (each.question, "question", pair)]
            pieces += [("\n", "template", -1), (each.answer, "answer", pair)]
            pair += 1
        pieces.append(("\n\n", "template", -1))
    spans, end = [], 0
    for piece, kind, of in filter(lambda each: each[0], pieces):
        spans.append(Span(end, end + len(piece), kind, of))
        end += len(piece)
    places = {span.of: span.start for span in spans if span.kind == "text"}
    origins = tuple(_origin(text, places[place]) for place, text in enumerate(chain.texts))
    return TrainingText(chain.id, "".join(piece for piece, _, _ in pieces), origins, "plain/v1", seed, tuple(spans))


def _origin(text: AugmentedText, at: int) -> Origin:
    checks = tuple(" ".join(pair.checks) for pair in text.pairs)
    end = text.end if text.end >= 0 else len(text.text)
    return Origin(text.document_id, text.source, text.start, end, checks, at)


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    return path


def files_of(prefix: Path) -> dict[str, Path]:
    """The files of a dataset by their manifest's field."""
    return {
        "bin": bin_path(prefix),
        "idx": idx_path(prefix),
        "spans": spans_path(prefix),
        "lineage": lineage_path(prefix),
        "manifest": manifest_path(prefix),
    }


def vouch(prefix: Path, **changes: Any) -> None:
    """Rewrites the manifest so that it vouches for the files as they are: what a forger would do."""
    path = manifest_path(prefix)
    content = orjson.loads(path.read_bytes())
    content.pop("hash")
    content |= changes
    for name, file in files_of(prefix).items():
        if name != "manifest" and content[name] is not None and file.exists():
            content[name] = hashes_of(file).model_dump(mode="json")
    path.write_bytes(orjson.dumps({**content, "hash": content_hash(content)}))


def hashes_of(path: Path) -> FileHashes:
    hasher = BlockHasher()
    hasher.update(path.read_bytes())
    return hasher.finish()

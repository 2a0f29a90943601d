"""Training text -> PREFIX.bin/.idx with lineage and manifest: the work behind `index`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import batched
from pathlib import Path
from typing import Any, NamedTuple

from data_prep.errors import UserError
from data_prep.indexing.lineage import LineageWriter
from data_prep.indexing.tokenizer import ControlTokenError, TextTokenizer, load_tokenizer
from data_prep.indexing.writer import IndexedDatasetWriter
from data_prep.manifest import Manifest, hash_input, manifest_path, package_version
from data_prep.readers import read_jsonl
from data_prep.records import TrainingText
from data_prep.settings import IndexSettings

# Settings that leave no trace in the dataset: a folder of this machine (its fingerprint is recorded), and speed.
NOT_RECORDED = {"tokenizer", "batch_size"}

Progress = Callable[[int], None]


class _Item(NamedTuple):
    """A text and the file it came from."""

    text: TrainingText
    file: Path


def build(
    settings: IndexSettings, inputs: Sequence[Path], tokenizer_dir: Path, prefix: Path, progress: Progress | None = None
) -> Manifest:
    """See `data_prep.indexing.index`."""
    tokenizer = load_tokenizer(tokenizer_dir, settings)
    prefix.parent.mkdir(parents=True, exist_ok=True)
    dropped, text_bytes = Counter[str](empty=0), 0
    with IndexedDatasetWriter(prefix, tokenizer.identity.vocab_size) as writer, LineageWriter(prefix) as lineage:
        for batch in batched(_read(inputs, settings.text_key), settings.batch_size):
            for item, tokens in zip(batch, _encode(tokenizer, batch), strict=True):
                if not tokens.size:
                    dropped["empty"] += 1
                    continue
                lineage.add(item.text, item.file.name, writer.tokens, tokens.size)
                writer.add_document(tokens)
                text_bytes += len(item.text.text.encode())
            if progress:
                progress(len(batch))
        if not writer.documents:
            raise UserError(", ".join(map(str, inputs)), "no document with text in it", "nothing was written")
        bin_hashes, idx_hashes = writer.finish()
        manifest = Manifest(
            tokenizer=tokenizer.identity,
            dtype=writer.dtype,
            documents=writer.documents,
            tokens=writer.tokens,
            text_bytes=text_bytes,
            dropped=dict(dropped),
            bin=bin_hashes,
            idx=idx_hashes,
            settings=settings.model_dump(mode="json", exclude=NOT_RECORDED),
            inputs=tuple(hash_input(path) for path in inputs),
            created_by=package_version(),
        )
        _put_in_place(prefix, writer, lineage, manifest)
    return manifest


def _put_in_place(prefix: Path, writer: IndexedDatasetWriter, lineage: LineageWriter, manifest: Manifest) -> None:
    """A crash at any point leaves the old dataset, the new one, or files that no manifest vouches for."""
    lineage.finish()  # whatever can fail for want of room comes before the old manifest goes
    manifest_path(prefix).unlink(missing_ok=True)
    lineage.commit()
    writer.commit()
    manifest.write(prefix)


def _read(inputs: Sequence[Path], text_key: str) -> Iterator[_Item]:
    for path in inputs:
        for number, row in enumerate(read_jsonl(path), start=1):
            yield _Item(_training_text(row, path, number, text_key), path)


def _training_text(row: Mapping[str, Any], path: Path, number: int, text_key: str) -> TrainingText:
    """A TrainingText, or a Document as the training text it is without pairs; one without an id is FILE:LINE."""
    where = f"{path}:{number}"
    if not isinstance(row.get(text_key), str):
        found = f"it is of type {type(row[text_key]).__name__}" if text_key in row else "no such key"
        raise UserError(where, f"expected a string under '{text_key}', {found}", "name the text key, or mend the line")
    if text_key == "text" and "document_ids" in row:
        try:
            return TrainingText.from_json(row)
        except (KeyError, TypeError) as error:
            mend = "give the output of `ipt data render`"
            raise UserError(where, f"not a training text ({error})", mend) from error
    identifier = row.get("id")
    if isinstance(identifier, bool) or not isinstance(identifier, str | int | None):
        raise UserError(
            where, f"'id' is of type {type(identifier).__name__}", "give a string or a whole number, or none"
        )
    name = f"{path.name}:{number}" if identifier in (None, "") else str(identifier)
    return TrainingText(name, row[text_key], (name,))


def _encode(tokenizer: TextTokenizer, batch: Sequence[_Item]) -> list[Any]:
    """Tokens of each text of a batch; length 0 for one that is empty or blank."""
    texts = [item.text.text if not item.text.text.isspace() else "" for item in batch]
    try:
        return tokenizer.encode_batch(texts)
    except ControlTokenError as error:
        item = batch[error.index]
        problem = "an unknown character would become a control token"
        mend = "use a tokenizer that covers every byte, or name another eod_token"
        raise UserError(f"{item.file}: document '{item.text.id}'", problem, mend) from error

"""Holds a dataset against its manifest and its files against each other: a damaged, stale or foreign file is named.

`verify` reads every byte, in bounded memory; `verify_sample` is what a job can afford when it starts.  Threads work
side by side: reading, hashing and numpy leave the interpreter to each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np

from data_prep.draws import draw_subset
from data_prep.errors import UserError
from data_prep.indexing.layout import bin_path, idx_path, lineage_path, spans_path
from data_prep.indexing.reader import IndexedDatasetReader, open_dataset
from data_prep.indexing.spans import CONTROL, SpansReader
from data_prep.manifest import FileHashes, Manifest, read_manifest

_MEND = "write the dataset again with `ipt data index`"

# Called with the bytes read since the last call; from any thread.
Progress = Callable[[int], None]


def verify(prefix: Path, jobs: int = 1, progress: Progress | None = None) -> Manifest:
    """Reads every byte of the dataset, follows every offset, and gives its manifest.

    Errors: a UserError naming the file, and the block, sequence, document or token at fault.
    """
    for fault in find_faults(prefix, jobs, progress):
        raise fault
    return read_manifest(prefix)


def find_faults(prefix: Path, jobs: int = 1, progress: Progress | None = None) -> list[UserError]:
    """What is wrong with a dataset: each damaged block; if there is none, the first fault of each part's content."""
    try:
        manifest = read_manifest(prefix)
    except UserError as error:
        return [error]
    with ThreadPoolExecutor(jobs) as pool:
        blocks, found = _blocks(prefix, manifest)
        found += filter(None, pool.map(partial(_try, _check_block, progress), blocks))
        if found:
            return found
        try:
            dataset = _open(prefix)
            parts = [*dataset.document_parts(4 * jobs), *dataset.lineage_parts()]
        except UserError as error:
            return [error]
        return [fault for fault in pool.map(partial(_try, _run, progress), parts) if fault]


def verify_sample(
    prefix: Path, rank: int = 0, world_size: int = 1, blocks: int = 16, seed: int = 0, jobs: int = 1
) -> list[tuple[Path, int]]:
    """Holds a sample of all files' blocks against the manifest, spread over ranks, which together check all of it.

    The sample depends on the manifest, `blocks` and `seed` only.  Every rank checks manifest, sizes and header; of the
    `blocks` that are drawn (64 MiB each, all if there are fewer) it reads its share, and gives their files and numbers.
    Errors: a UserError naming the file, and the block.
    """
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} of {world_size}")
    manifest = read_manifest(prefix)
    all_blocks, faults = _blocks(prefix, manifest)
    for fault in faults:
        raise fault
    IndexedDatasetReader(prefix)
    named = {f"{block.path.name}:{block.number}": block for block in all_blocks}
    drawn = [named[name] for name in draw_subset(seed, named, "verify", blocks)][rank::world_size]
    with ThreadPoolExecutor(jobs) as pool:
        for found in pool.map(partial(_try, _check_block, None), drawn):
            if found:
                raise found
    return [(block.path, block.number) for block in drawn]


def work_bytes(manifest: Manifest) -> int:
    """What `verify` reports to `progress` over a whole dataset [bytes]; the .bin is read twice."""
    files = [hashes.bytes for hashes in (manifest.idx, manifest.lineage, manifest.spans) if hashes]
    return 2 * manifest.bin.bytes + sum(files)


@dataclass(frozen=True, slots=True)
class _Block:
    path: Path
    hashes: FileHashes
    number: int


def _blocks(prefix: Path, manifest: Manifest) -> tuple[list[_Block], list[UserError]]:
    """Every block of the files that are there and of the right size, and what is wrong with the others."""
    files = [(bin_path(prefix), manifest.bin), (idx_path(prefix), manifest.idx)]
    for path, hashes in ((lineage_path(prefix), manifest.lineage), (spans_path(prefix), manifest.spans)):
        if hashes is not None:
            files.append((path, hashes))
    blocks, faults = list[_Block](), list[UserError]()
    for path, hashes in files:
        try:
            hashes.check_size(path)
            blocks += [_Block(path, hashes, number) for number in range(len(hashes.blocks))]
        except UserError as error:
            faults.append(error)
    if manifest.spans is None and spans_path(prefix).exists():
        problem = "its manifest knows of no spans: a file of another dataset"
        faults.append(UserError(spans_path(prefix), problem, "remove it"))
    return blocks, faults


def _check_block(progress: Progress | None, block: _Block) -> None:
    block.hashes.check_block(block.path, block.number)
    if progress:
        progress(min(block.hashes.block_bytes, block.hashes.bytes - block.number * block.hashes.block_bytes))


def _run(progress: Progress | None, part: Callable[[Progress | None], None]) -> None:
    part(progress)


def _try[T](check: Callable[[Progress | None, T], None], progress: Progress | None, task: T) -> UserError | None:
    """What is wrong with one task, so that one fault does not hide those of the others."""
    try:
        check(progress, task)
    except UserError as error:
        return error
    return None


def _open(prefix: Path) -> _Dataset:
    manifest, reader = open_dataset(prefix)
    reader.check_layout()
    spans = SpansReader(prefix) if manifest.spans else None
    if spans:
        spans.check_frame(reader.documents)
    return _Dataset(manifest, reader, spans)


@dataclass(frozen=True)
class _Dataset:
    """A dataset whose blocks are right, and its .idx: what is left is whether the files agree with each other."""

    manifest: Manifest
    reader: IndexedDatasetReader
    spans: SpansReader | None

    def document_parts(self, count: int) -> Iterator[Callable[[Progress | None], None]]:
        """Checks of ranges of documents, about `count` of them."""
        bounds = np.linspace(0, self.reader.documents, count + 1).astype(int).tolist()
        for start, stop in pairwise(bounds):
            if start < stop:
                yield partial(self._check_documents, start, stop)

    def lineage_parts(self) -> Iterator[Callable[[Progress | None], None]]:
        """Checks of the row groups of the lineage.  Errors: a UserError if its rows are not the documents."""
        # Imported here: opening a dataset for training does without pyarrow.
        from data_prep.indexing.lineage import open_lineage, read_text_bytes

        if self.manifest.lineage is None:
            return
        path = lineage_path(self.reader.prefix)
        with open_lineage(path) as file:
            groups = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        if sum(groups) != self.reader.documents:
            raise UserError(path, f"{sum(groups)} rows where the .idx has {self.reader.documents} documents", _MEND)
        text_bytes = int(read_text_bytes(self.reader.prefix).sum())
        if text_bytes != self.manifest.text_bytes:
            problem = f"its rows have {text_bytes} bytes of text where the manifest has {self.manifest.text_bytes}"
            raise UserError(path, problem, _MEND)
        for group, start in enumerate(np.cumsum([0, *groups[:-1]]).tolist()):
            yield partial(self._check_rows, group, start)

    def _check_rows(self, group: int, start: int, progress: Progress | None) -> None:
        from data_prep.indexing.lineage import open_lineage, read_group

        path = lineage_path(self.reader.prefix)
        with open_lineage(path) as file:
            table = read_group(file, group, path)
        lengths = self.reader.document_lengths(start, start + table.num_rows)
        first = self.reader.first_token(start) if table.num_rows else 0
        columns = {"first_token": first + np.cumsum(lengths) - lengths, "tokens": lengths}
        for name, expected in columns.items():
            wrong = np.flatnonzero(table[name].to_numpy() != expected)
            if wrong.size:
                row = int(wrong[0])
                problem = f"{name} of document {start + row} is {table[name][row]}, and in the .idx {expected[row]}"
                raise UserError(path, problem, _MEND)

    def _check_documents(self, start: int, stop: int, progress: Progress | None) -> None:
        path = bin_path(self.reader.prefix)
        with path.open("rb") as file:
            file.seek(self.reader.first_token(start) * self.reader.dtype.itemsize)
            for first, lengths in self.reader.chunks(start, stop):
                # Read, not mapped: pages of a map would count as memory of this process.
                tokens = np.fromfile(file, self.reader.dtype, int(lengths.sum()))
                fault = self._fault_of(first, lengths, tokens)
                if fault:
                    raise UserError(path, fault, _MEND)
                self.reader.forget_pages()
                if self.spans:
                    self.spans.forget_pages()
                if progress:
                    progress(tokens.nbytes)

    def _fault_of(self, first: int, lengths: np.ndarray, tokens: np.ndarray) -> str:
        """What is wrong with some documents, the first of them number `first`; empty if nothing is."""
        policy = self.manifest.tokenizer
        before, after = int(policy.prepend_bos), int(policy.append_eod)
        stops = np.cumsum(lengths)
        short = np.flatnonzero(lengths < max(1, before + after))
        if short.size:
            return f"document {first + short[0]} has {lengths[short[0]]} tokens, too few"
        wrong = np.flatnonzero((tokens < 0) | (tokens >= policy.vocab_size))
        if wrong.size:
            problem = f"is {tokens[wrong[0]]}, outside of the vocabulary of {policy.vocab_size}"
            return _place(first, lengths, stops, int(wrong[0]), problem)
        edges = (
            (before, stops - lengths, policy.bos_id, "begin", "BOS"),
            (after, stops - 1, policy.eod_id, "end", "EOD"),
        )
        for due, places, token, verb, name in edges:
            wrong = np.flatnonzero(tokens[places] != token) if due else places[:0]
            if wrong.size:
                return f"document {first + wrong[0]} does not {verb} with {name}, token {token}"
        control = self._control(first, lengths, stops)
        if control is None:
            return ""
        special = {token for token in (policy.bos_id, policy.eos_id, policy.eod_id) if token is not None}
        marked = np.zeros(len(tokens), bool)
        for token in special:
            marked |= tokens == token
        wrong = np.flatnonzero(marked & ~control)
        if wrong.size:
            problem = f"is {tokens[wrong[0]]}, a control token where a text is"
            return _place(first, lengths, stops, int(wrong[0]), problem)
        return ""

    def _control(self, first: int, lengths: np.ndarray, stops: np.ndarray) -> np.ndarray | None:
        """Which tokens may be control tokens; None where that is not known."""
        if self.spans:
            runs = self.spans.runs_of(first, first + len(lengths), lengths)
            ends = runs.ends + np.repeat(stops - lengths, runs.counts)
            return np.repeat(runs.classes == CONTROL, np.diff(ends, prepend=0))
        if self.manifest.settings.get("spans") is False:  # a chat template's control tokens may stand anywhere
            return None
        control = np.zeros(int(stops[-1]), bool)
        if self.manifest.tokenizer.prepend_bos:
            control[stops - lengths] = True
        if self.manifest.tokenizer.append_eod:
            control[stops - 1] = True
        return control


def _place(first: int, lengths: np.ndarray, stops: np.ndarray, token: int, problem: str) -> str:
    document = int(np.searchsorted(stops, token, side="right"))
    return f"token {token - int(stops[document] - lengths[document])} of document {first + document} {problem}"

"""The labels of a source's pieces that count, by its loss policy (data_prep/packing/labels.py has the rules)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_prep.errors import UserError
from data_prep.indexing.spans import SpansReader
from data_prep.manifest import read_manifest
from data_prep.packing import Piece
from data_prep.packing.labels import counted_runs
from data_prep.settings import LossPolicy


class Counted:
    """The labels of a source's documents that count, by its policy.  Opens PREFIX.spans, memory-mapped."""

    def __init__(self, prefix: Path, name: str, policy: LossPolicy) -> None:
        """Errors: a UserError for a source without spans, or with those of another dataset."""
        manifest = read_manifest(prefix)
        if manifest.spans is None:
            problem = f"its loss is of '{policy}', and {prefix} has no spans: the class of each token is not known"
            raise UserError(f"source '{name}'", problem, "index rendered text, with spans; or give it the loss 'all'")
        self._policy, self._spans = policy, SpansReader(prefix)
        manifest.spans.check(self._spans.path, every_block=False)
        self._spans.check_frame(manifest.documents)

    def of(self, pieces: Sequence[Piece]) -> np.ndarray:
        """Whether each token of some pieces, one behind the other, counts as a label; bool [tokens]."""
        bounds = self._spans.bounds
        parts = [slice(int(bounds[piece.document]), int(bounds[piece.document + 1])) for piece in pieces]
        ends = np.concatenate([self._spans.ends[part] for part in parts])
        kinds = np.concatenate([self._spans.classes[part] for part in parts])
        runs = np.array([part.stop - part.start for part in parts])
        counted, first_only = counted_runs(self._policy, kinds, runs)
        lengths = np.array([piece.length for piece in pieces])
        begin = np.repeat(np.cumsum(lengths) - lengths, runs)
        # where each run ends in what is asked for, were its document there whole
        whole = ends - np.repeat([piece.offset for piece in pieces], runs) + begin
        stops = np.minimum(np.maximum(whole, begin), begin + np.repeat(lengths, runs))
        found = np.repeat(counted, np.diff(stops, prepend=0))
        for run in np.flatnonzero(first_only).tolist():  # never the first run of its document
            found[max(int(whole[run - 1]) + 1, int(begin[run])) : stops[run]] = False
        return found

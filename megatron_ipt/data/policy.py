r"""Which tokens of a document count as labels, by the loss policy of its source.

    all       every token: the paper's pre-training
    pairs     questions and answers with what opens and closes them: the synthesizer's tuning
    answers   answers, and the control token right behind each, so that a model learns to stop

The paper's tuning has its loss "on the pairs, closing `</s>` included; none on the context", and the tags of its wire
format must be learned, since a prompt ends before `<QUE>`: so under `pairs` template tokens inside pairs count.  What
is between two texts or pairs is a class of its own in PREFIX.spans (`template`, `control`), without a pair's number:

    between two pair parts          inside, counts          ` <ANS> `, ` </END>\n\n<QUE> `, a chat's turns
    template right before a pair    opens it, counts        `<QUE> ` after a text
    behind a pair, up to and with   closes it, counts       `</END>\n\n`, and `</s>` of `</s><s>`
      the first control token
    anything else                   context                 `<s> <CON> text`

A pair's opening and the end of its text's frame (` </CON>`) are one run where a writer calls both `template`; one that
wants the latter masked gives it to the text.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_prep.errors import UserError
from data_prep.indexing.spans import CLASSES, CONTROL, SpansReader
from data_prep.manifest import read_manifest
from data_prep.packing import Piece
from data_prep.settings import LossPolicy

_TEXT, _QUESTION, _ANSWER, _TEMPLATE = (CLASSES.index(name) for name in ("text", "question", "answer", "template"))
_LAST_CONTENT = max(_TEXT, _QUESTION, _ANSWER)


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
        counted, first_only = (_answers if self._policy == "answers" else _pairs)(kinds, runs)
        lengths = np.array([piece.length for piece in pieces])
        begin = np.repeat(np.cumsum(lengths) - lengths, runs)
        # where each run ends in what is asked for, were its document there whole
        whole = ends - np.repeat([piece.offset for piece in pieces], runs) + begin
        stops = np.minimum(np.maximum(whole, begin), begin + np.repeat(lengths, runs))
        found = np.repeat(counted, np.diff(stops, prepend=0))
        for run in np.flatnonzero(first_only).tolist():  # never the first run of its document
            found[max(int(whole[run - 1]) + 1, int(begin[run])) : stops[run]] = False
        return found


def _answers(kinds: np.ndarray, runs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(runs that count, those of which the first token alone does), bool [all runs]; `runs` is a document's number."""
    closing = np.zeros(len(kinds), bool)
    closing[1:] = (kinds[1:] == CONTROL) & (kinds[:-1] == _ANSWER)
    closing[np.cumsum(runs) - runs] = False  # behind another document's answer
    return (kinds == _ANSWER) | closing, closing


def _pairs(kinds: np.ndarray, runs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As `_answers`, under the policy `pairs`."""
    count, last = len(kinds), np.cumsum(runs)
    places, stop = np.arange(count), np.repeat(last, runs)
    start = stop - np.repeat(runs, runs)
    content = kinds <= _LAST_CONTENT
    # the nearest content run before and after, of the same document; `start - 1` and `stop` where there is none
    before = np.maximum(np.maximum.accumulate(np.where(content, places, -1)), start - 1)
    after = np.minimum(np.minimum.accumulate(np.where(content, places, count)[::-1])[::-1], stop)
    is_pair = np.zeros(count + 1, bool)
    is_pair[:-1] = (kinds == _QUESTION) | (kinds == _ANSWER)
    follows, leads = is_pair[before] & (before >= start), is_pair[after] & (after < stop)
    control = kinds == CONTROL
    controls = np.concatenate(([0], np.cumsum(control)))
    ended = controls[after] > controls[before + 1]  # else nothing in the gap says where the pair ends
    first = controls[places] == controls[before + 1]
    closing = follows & ~leads & first & (ended | (after == stop))
    opening = leads & ~follows & (kinds == _TEMPLATE)
    counted = is_pair[:-1] | (~content & ((follows & leads) | closing | opening))
    return counted, control & closing

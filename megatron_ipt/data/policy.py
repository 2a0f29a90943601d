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
from typing import Literal

import numpy as np

from data_prep.errors import UserError
from data_prep.indexing.spans import CLASSES, CONTROL, SpansReader
from data_prep.manifest import read_manifest
from data_prep.packing import Piece

LossPolicy = Literal["all", "pairs", "answers"]

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
        return np.concatenate([self._piece(piece) for piece in pieces])

    def _piece(self, piece: Piece) -> np.ndarray:
        first, stop = self._spans.bounds[piece.document : piece.document + 2].tolist()
        ends, kinds = self._spans.ends[first:stop].astype(np.int64), self._spans.classes[first:stop]
        counted, first_only = _answers(kinds) if self._policy == "answers" else _pairs(kinds)
        stops = np.clip(ends - piece.offset, 0, piece.length)
        found = np.repeat(counted, np.diff(stops, prepend=0))
        for run in np.flatnonzero(first_only).tolist():
            start = int(ends[run - 1]) - piece.offset
            found[max(start + 1, 0) : max(int(stops[run]), 0)] = False
        return found


def _answers(kinds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(runs that count, those of which the first token alone does), bool [runs]."""
    closing = (kinds == CONTROL) & (np.concatenate(([_TEXT], kinds[:-1])) == _ANSWER)
    return (kinds == _ANSWER) | closing, closing


def _pairs(kinds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As `_answers`, under the policy `pairs`."""
    places = np.arange(len(kinds))
    content = kinds <= _LAST_CONTENT
    before = np.maximum.accumulate(np.where(content, places, -1))
    after = np.minimum.accumulate(np.where(content, places, len(kinds))[::-1])[::-1]
    is_pair = np.concatenate((((kinds == _QUESTION) | (kinds == _ANSWER)), [False]))
    follows, leads = is_pair[before], is_pair[after]  # place -1 and place `runs` are the False at the end
    control = kinds == CONTROL
    controls = np.concatenate(([0], np.cumsum(control)))
    # control runs between the content before and this run
    passed = controls[places] - controls[before + 1]
    closing = follows & ~leads & (passed == 0)
    # behind the last content of a gap without a control token nothing says where the pair ends: all of it may be frame
    reach = controls[after] - controls[before + 1]
    closing &= (reach > 0) | (after == len(kinds))
    opening = leads & ~follows & (kinds == _TEMPLATE)
    counted = is_pair[:-1] | (~content & ((follows & leads) | closing | opening))
    return counted, control & closing

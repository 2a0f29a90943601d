r"""Which labels count, by the loss policy of a source (pure).

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

import numpy as np

from data_prep.indexing.spans import CLASSES, CONTROL, SpansReader
from data_prep.settings import LossPolicy

_TEXT, _QUESTION, _ANSWER, _TEMPLATE = (CLASSES.index(name) for name in ("text", "question", "answer", "template"))
_LAST_CONTENT = max(_TEXT, _QUESTION, _ANSWER)
# Documents that are looked at together.
_CHUNK = 1 << 14


def counted_runs(policy: LossPolicy, kinds: np.ndarray, runs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(runs that count, those of which the first token alone does), bool [all runs]; `policy` is not `all`.

    Args:
        kinds: class code of each run, of some documents one behind the other.
        runs: number of runs of each document.
    """
    return (_answers if policy == "answers" else _pairs)(kinds, runs)


def count_labels(spans: SpansReader, policy: LossPolicy) -> int:
    """Tokens of all documents of a dataset that count as labels.  Streams."""
    found = 0
    for start in range(0, spans.documents, _CHUNK):
        runs = spans.runs_of(start, min(start + _CHUNK, spans.documents))
        counted, first_only = counted_runs(policy, runs.classes, runs.counts)
        begins = np.cumsum(runs.counts) - runs.counts
        lengths = np.diff(runs.ends.astype(np.int64), prepend=0)
        lengths[begins] = runs.ends[begins]
        lengths[first_only] = 1
        found += int(lengths[counted].sum())
        spans.forget_pages()
    return found


def count_pairs(spans: SpansReader) -> int:
    """Pairs of all documents of a dataset, which are numbered within each.  Streams."""
    found = 0
    for start in range(0, spans.documents, _CHUNK):
        runs = spans.runs_of(start, min(start + _CHUNK, spans.documents))
        is_pair = (runs.classes == _QUESTION) | (runs.classes == _ANSWER)
        numbers = np.where(is_pair, runs.of, -1)
        found += int((np.maximum.reduceat(numbers, np.cumsum(runs.counts) - runs.counts) + 1).sum())
        spans.forget_pages()
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

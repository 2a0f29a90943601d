"""A batch of texts -> the documents of a dataset: token ids with BOS and EOD, and the class of each token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from data_prep.draws import draw
from data_prep.errors import UserError
from data_prep.indexing.encoder import Encoder
from data_prep.indexing.offsets import TokenOffsets, starts_before
from data_prep.indexing.ragged import Ragged, ragged
from data_prep.indexing.rows import Batch, has_spans, span_columns
from data_prep.indexing.spans import CONTROL, CharacterSpans, Runs, byte_ends, plain_runs, token_runs
from data_prep.indexing.tokenizer import TextTokenizer
from data_prep.manifest import TokenizerIdentity

# Of the first batch of a shard and of each CHECKED_BATCHES-th after it, the tokens of a text are held against the
# oracle: of a whole text, up to so many characters, in the first batch up to more; of a longer one those of a piece.
CHECKED_BATCHES, CHECKED_CHARACTERS, FIRST_CHECKED_CHARACTERS = 4, 1 << 15, 1 << 20


@dataclass(frozen=True, slots=True)
class Documents:
    """`kept` are the places of the batch's texts that have a token; all else is of those only.

    `text_bytes` are the lengths of the texts in UTF-8, int64, and `lost` the characters that no token stands for.
    """

    kept: Sequence[int]
    tokens: Ragged
    runs: Runs
    text_bytes: np.ndarray
    lost: Sequence[int]


class DocumentMaker:
    """Makes documents of texts by one tokenizer and its policy."""

    def __init__(self, tokenizer: TextTokenizer, encoder: Encoder) -> None:
        self._tokenizer, self._encoder = tokenizer, encoder
        identity = tokenizer.identity
        self._before, self._after = int(identity.prepend_bos), int(identity.append_eod)
        forbidden = np.flatnonzero(tokenizer.forbidden)
        self._forbidden = (forbidden[0], forbidden[-1]) if forbidden.size else (identity.vocab_size, -1)

    @cached_property
    def _offsets(self) -> TokenOffsets:
        return TokenOffsets(self._tokenizer)

    def make(self, batch: Batch, text_key: str) -> Documents:
        """The documents of a batch.

        Errors: a UserError naming file and line of a text that would yield a control id, of spans that do not fit
        their text, or of a text on which encoder and oracle disagree.
        """
        blobs = [text.encode() for text in batch.texts]
        spans = span_columns(batch, text_key) if has_spans(batch, text_key) else None
        if spans is not None and (spans.classes == CONTROL).any():
            tokens, starts = self._with_control(batch, spans)
        else:
            tokens, starts = self._encode(batch.texts, blobs, batch.where), None
            self._check(batch, tokens)
        kept = np.flatnonzero(tokens.lengths())
        runs = self._runs(batch, blobs, tokens, starts, spans)
        if len(kept) < len(blobs):
            tokens, blobs = Ragged(tokens.values, tokens.bounds[np.append(kept, -1)]), [blobs[index] for index in kept]
        documents = surround(tokens, self._tokenizer.identity)
        complete = self._tokenizer.coverage.complete
        lost = () if complete else [self._tokenizer.uncovered(batch.texts[index]) for index in kept]
        sizes = np.array([len(blob) for blob in blobs], np.int64)
        return Documents(kept.tolist(), documents, runs, sizes, lost)

    def _runs(
        self,
        batch: Batch,
        blobs: Sequence[bytes],
        tokens: Ragged,
        starts: Ragged | None,
        spans: CharacterSpans | None,
    ) -> Runs:
        """The runs of those texts that have a token; `starts` are their first characters, where known already."""
        if spans is None:
            lengths = tokens.lengths()
            return plain_runs(lengths[lengths > 0] + self._before + self._after, self._before, self._after)
        if starts is not None:
            stops = starts_before(starts, spans.text_of(), spans.ends)
        else:
            ends = byte_ends(spans, blobs, np.array([len(text) for text in batch.texts]))
            stops = self._offsets.before(tokens, batch.texts, blobs, spans.text_of(), ends)
        return token_runs(spans, stops, tokens.lengths(), self._before, self._after)

    def _encode(self, texts: Sequence[str], blobs: Sequence[bytes], where: Sequence[str]) -> Ragged:
        tokens = self._encoder.encode(texts, blobs)
        ids = tokens.values
        if not ids.size or ids.max() < self._forbidden[0] or ids.min() > self._forbidden[1]:
            return tokens
        wrong = np.flatnonzero(self._tokenizer.forbidden[ids])
        if wrong.size:
            index = int(np.searchsorted(tokens.bounds, wrong[0], side="right")) - 1
            problem = "an unknown character would become a control token"
            mend = "use a tokenizer that covers every byte, or name another eod_token"
            raise UserError(where[index], problem, mend)
        return tokens

    def _check(self, batch: Batch, tokens: Ragged) -> None:
        """Holds the tokens of a drawn text against the oracle; of one that is too long, a piece encoded by itself."""
        index = self._drawn(batch)
        if index is None:
            return
        text, ids = batch.texts[index], tokens[index]
        if len(text) > (CHECKED_CHARACTERS if batch.number else FIRST_CHECKED_CHARACTERS):
            start = draw(0, batch.where[index], "oracle") % (len(text) - CHECKED_CHARACTERS + 1)
            text = text[start : start + CHECKED_CHARACTERS]
            ids = self._encoder.encode([text], [text.encode()]).values
        self._encoder.check(text, ids, batch.where[index])

    def _drawn(self, batch: Batch) -> int | None:
        """Which text of a batch is held against the oracle, if any is."""
        if not self._encoder.is_checked or not batch.texts or batch.number % CHECKED_BATCHES:
            return None
        return draw(0, batch.where[0], "oracle") % len(batch.texts)

    def _with_control(self, batch: Batch, spans: CharacterSpans) -> tuple[Ragged, Ragged]:
        """Tokens and their first characters, where spans of class control stand for control tokens."""
        tokens, starts, stops, drawn = [], [], np.cumsum(spans.counts), self._drawn(batch)
        for index, text in enumerate(batch.texts):
            part = slice(stops[index] - spans.counts[index], stops[index])
            where, columns = batch.where[index], (spans.ends[part], spans.classes[part])
            ids, places = self._one_with_control(text, *columns, where, check=index == drawn)
            tokens.append(ids)
            starts.append(places)
        return ragged(tokens), ragged(starts)

    def _one_with_control(
        self, text: str, ends: np.ndarray, classes: np.ndarray, where: str, check: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        ids, starts = [np.empty(0, np.uint32)], [np.empty(0, np.int64)]
        for start, end, control in pieces(ends, classes == CONTROL):
            piece = text[start:end]
            if control:
                if piece not in self._tokenizer.control:
                    mend = "render the chat template with the tokenizer that indexes"
                    raise UserError(where, f"'{piece}' is no control token of this tokenizer", mend)
                found, places = np.array([self._tokenizer.control[piece]], np.uint32), np.zeros(1, np.int64)
            else:
                blob = piece.encode()
                encoded = self._encode([piece], [blob], [where])
                found = encoded.values
                if check:
                    self._encoder.check(piece, found, where)
                first_bytes = self._offsets.starts(encoded, [piece], [blob]).values
                lead = (np.frombuffer(blob, np.uint8) & 0xC0) != 0x80
                places = np.cumsum(lead)[first_bytes] - 1
            ids.append(found)
            starts.append(places + start)
        return np.concatenate(ids), np.concatenate(starts)


def pieces(ends: np.ndarray, control: np.ndarray) -> list[tuple[int, int, bool]]:
    """(start, end, control) of the parts of a text that are encoded one by one: each control span, and all between."""
    found: list[tuple[int, int, bool]] = []
    start = 0
    for end, is_control in zip(ends.tolist(), control.tolist(), strict=True):
        if found and not is_control and not found[-1][2]:
            found[-1] = (found[-1][0], end, False)
        else:
            found.append((start, end, is_control))
        start = end
    return found


def surround(tokens: Ragged, identity: TokenizerIdentity) -> Ragged:
    """The documents of some texts: BOS and EOD around each, as the policy says; uint32."""
    before, after = int(identity.prepend_bos), int(identity.append_eod)
    bounds = tokens.bounds + (before + after) * np.arange(len(tokens.bounds))
    if not before and not after:
        return tokens
    values = np.empty(bounds[-1], np.uint32)
    inside = np.ones(bounds[-1], bool)
    if before:
        values[bounds[:-1]] = identity.bos_id
        inside[bounds[:-1]] = False
    if after:
        values[bounds[1:] - 1] = identity.eod_id
        inside[bounds[1:] - 1] = False
    values[inside] = tokens.values
    return Ragged(values, bounds)

"""A tokenizer, of any kind, as an encoder of raw text that can never emit a control token.

A literal `<|end_of_text|>` in a web page is text.  Tokenizers by default turn it into the control id,
and the document ends there.  Three ways lead to that, and all are closed by renaming every control
token, in the copy that encodes, to a name no text spells:
- added tokens marked special are matched in raw text, unless `encode_special_tokens` is set;
- BOS or EOS may be an added token that is not marked special, which that switch does not know;
- a model whose own vocabulary holds `</s>` (Unigram, WordLevel, BPE by its merges) spells it anyway.
Added tokens that are neither special nor named as control tokens are text (GPT-NeoX's runs of blanks).
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from tokenizers import Tokenizer

from data_prep.errors import UserError, nearest
from data_prep.indexing.coverage import Coverage, coverage_of
from data_prep.indexing.spelling import Spelling, spelling_of, with_every_byte
from data_prep.indexing.tokenizer_files import possible_readings, read_tokenizer
from data_prep.manifest import TokenizerIdentity
from data_prep.settings import IndexSettings


@dataclass(frozen=True)
class TextTokenizer:
    """Encodes documents; made by `load_tokenizer`, and light enough to be sent to a worker process.

    `spec` is a tokenizer.json in which no text spells a control token, `fast_spec` the same for gigatoken; `control`
    are the ids of those tokens by their true names.  `forbidden` [vocab_size] marks BOS, EOS and EOD, which no text
    may yield.  `spelling` says what the tokens spell, and `coverage` which characters none of them stands for.
    """

    identity: TokenizerIdentity
    spec: bytes = field(repr=False)
    fast_spec: bytes = field(repr=False)
    control: Mapping[str, int] = field(repr=False)
    forbidden: np.ndarray = field(repr=False)
    spelling: Spelling = field(repr=False)
    coverage: Coverage

    @cached_property
    def encoder(self) -> Tokenizer:
        """The tokenizers library over `spec`."""
        return Tokenizer.from_str(self.spec.decode())

    def uncovered(self, text: str) -> int:
        """Characters of a text that no token, or UNK alone, stands for: they are lost.  At once 0 where none can be."""
        return 0 if self.coverage.complete else self.coverage.uncovered(text, self.encoder)


def load_tokenizer(path: Path, settings: IndexSettings) -> TextTokenizer:
    """The tokenizer at `path` (see tokenizer_files.py), with the BOS and EOD policy of `settings`.

    `prepend_bos` defaults to what the tokenizer's own post-processor does to an empty text.
    Errors: a UserError for a missing or unreadable file and for a token that does not exist.
    """
    files = read_tokenizer(path, settings.tiktoken_scheme)
    spec, named, file = files.spec, files.named, files.file
    tokenizer = _parse(spec, file)
    tokens = {"bos": named.get("bos_token"), "eos": named.get("eos_token")}
    tokens["eod"] = settings.eod_token or tokens["eos"]
    if settings.append_eod and tokens["eod"] is None:
        raise UserError(file, "the tokenizer names no eos_token to end documents with", "set eod_token")
    ids = {f"{key}_id": _token_id(tokenizer, token, file, f"{key}_token") for key, token in tokens.items()}
    identity = TokenizerIdentity(
        fingerprint=_fingerprint(spec, ids),
        vocab_size=max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1,
        **ids,
        prepend_bos=_prepend_bos(tokenizer, ids["bos_id"], settings, file),
        append_eod=settings.append_eod,
    )
    special = {token["content"] for token in spec.get("added_tokens", ()) if token["special"]}
    control = special | set(named.values()) | {token for token in tokens.values() if token is not None}
    forbidden = np.zeros(identity.vocab_size, np.bool_)
    forbidden[[token for token in ids.values() if token is not None]] = True
    known = {token: place for token in sorted(control) if (place := tokenizer.token_to_id(token)) is not None}
    del tokenizer  # a hundred megabytes with a large vocabulary
    encoding = without_control_tokens(spec, control)
    encoder = _parse(encoding, file)
    _check_unknown(encoder, file)
    spelling = spelling_of(encoding, identity.vocab_size)
    coverage = coverage_of(encoding, encoder.get_vocab(with_added_tokens=False))
    fast = encoding if spelling.every_byte else with_every_byte(encoding, identity.vocab_size)
    raw = orjson.dumps(encoding)
    fast_raw = raw if fast is encoding else orjson.dumps(fast)
    return TextTokenizer(identity, raw, fast_raw, known, forbidden, spelling, coverage)


def check_tokenizer(path: Path, identity: TokenizerIdentity, where: object) -> None:
    """Refuses a tokenizer that is not the one `where` was written with."""
    ids = identity.model_dump(include={"bos_id", "eos_id", "eod_id"})
    if not any(_fingerprint(files.spec, ids) == identity.fingerprint for files in possible_readings(path)):
        mend = "give the files of that tokenizer, or index the text again with this one"
        raise UserError(where, f"was written with another tokenizer than the one in {path}", mend)


def without_control_tokens(spec: dict[str, Any], control: set[str]) -> dict[str, Any]:
    """A tokenizer.json in which no text spells a control token; every id stays as it was.

    Post-processor, truncation and padding go too: what surrounds a text is the policy's business.
    """
    secret = secrets.token_hex(16)  # a name that could be known could be spelled
    renamed = {name: f"\U0010ffff{secret}-{index}\U0010ffff" for index, name in enumerate(sorted(control))}
    model = dict(spec["model"])
    if isinstance(model["vocab"], dict):
        model["vocab"] = {renamed.get(token, token): index for token, index in model["vocab"].items()}
    else:
        model["vocab"] = [[renamed.get(token, token), score] for token, score in model["vocab"]]
    if isinstance(model.get("unk_token"), str):
        model["unk_token"] = renamed.get(model["unk_token"], model["unk_token"])
    if "merges" in model:
        pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"])
        model["merges"] = [pair for pair in pairs if "".join(pair) not in control and not control & set(pair)]
    added = [
        {**token, "content": renamed.get(token["content"], token["content"])} for token in spec.get("added_tokens", ())
    ]
    nothing = {"post_processor": None, "truncation": None, "padding": None}
    return {**spec, **nothing, "model": model, "added_tokens": added}


def _parse(spec: dict[str, Any], file: Path) -> Tokenizer:
    try:
        return Tokenizer.from_str(orjson.dumps(spec).decode())
    except Exception as error:  # the library raises nothing narrower
        raise UserError(file, f"not a tokenizer ({error})", "fetch it again") from error


def _check_unknown(encoder: Tokenizer, file: Path) -> None:
    """Some kinds without UNK fail on the first character they do not know, others leave it out."""
    try:
        encoder.encode("\U0010fffd", add_special_tokens=False)
    except Exception as error:  # the library raises nothing narrower
        problem = f"it cannot encode a character outside its vocabulary ({error})"
        raise UserError(file, problem, "give a tokenizer with an unk_token, or one that covers every byte") from error


def _token_id(tokenizer: Tokenizer, token: str | None, file: Path, key: str) -> int | None:
    if token is None:
        return None
    found = tokenizer.token_to_id(token)
    if found is None:
        added = [added.content for added in tokenizer.get_added_tokens_decoder().values()]
        raise UserError(file, f"{key} '{token}' is not in the vocabulary", nearest(token, added))
    return int(found)


def _prepend_bos(tokenizer: Tokenizer, bos_id: int | None, settings: IndexSettings, file: Path) -> bool:
    if settings.prepend_bos is None:
        ids = tokenizer.encode("", add_special_tokens=True).ids
        return bool(ids) and ids[0] == bos_id
    if settings.prepend_bos and bos_id is None:
        raise UserError(file, "prepend_bos is set, but the tokenizer names no bos_token", "drop prepend_bos")
    return settings.prepend_bos


def _fingerprint(spec: dict[str, Any], ids: dict[str, int | None]) -> str:
    """sha256 of the control ids and of tokenizer.json, less the truncation and padding that a run leaves in it."""
    content = {key: value for key, value in spec.items() if key not in ("truncation", "padding")}
    return hashlib.sha256(orjson.dumps([content, ids], option=orjson.OPT_SORT_KEYS)).hexdigest()

"""A Hugging Face tokenizer directory as an encoder of raw text that can never emit a control token.

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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from tokenizers import Tokenizer

from data_prep.errors import UserError, nearest
from data_prep.indexing.spelling import Spelling, spelling_of, with_every_byte
from data_prep.manifest import TokenizerIdentity
from data_prep.settings import IndexSettings

CONTROL_KEYS = ("bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token")


@dataclass(frozen=True)
class TextTokenizer:
    """Encodes documents; made by `load_tokenizer`, and light enough to be sent to a worker process.

    `spec` is a tokenizer.json in which no text spells a control token, `fast_spec` the same for gigatoken; `control`
    are the ids of those tokens by their true names.  `forbidden` [vocab_size] marks BOS, EOS and EOD, which no text
    may yield.  `spelling` says what the tokens spell.
    """

    identity: TokenizerIdentity
    spec: bytes
    fast_spec: bytes
    control: Mapping[str, int]
    forbidden: np.ndarray
    spelling: Spelling

    @cached_property
    def encoder(self) -> Tokenizer:
        """The tokenizers library over `spec`."""
        return Tokenizer.from_str(self.spec.decode())

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Token ids (int64) of each text as a document: BOS if the policy says so, the text, EOD.

        An array of length 0 stands for a text without a token.  Errors: a ValueError naming the
        position in the batch if a text yields a control id (an unknown character where UNK is EOD).
        """
        encodings = self.encoder.encode_batch_fast(list(texts), add_special_tokens=False)
        return [self._document(index, encoding.ids) for index, encoding in enumerate(encodings)]

    def _document(self, index: int, ids: list[int]) -> np.ndarray:
        if not ids:
            return np.empty(0, np.int64)
        identity = self.identity
        head = [identity.bos_id] if identity.prepend_bos else []
        tail = [identity.eod_id] if identity.append_eod else []
        tokens = np.array([*head, *ids, *tail], np.int64)
        if self.forbidden[tokens[len(head) : len(head) + len(ids)]].any():
            raise ControlTokenError(index)
        return tokens


class ControlTokenError(ValueError):
    """Text `index` of a batch would have put a control token inside its document."""

    def __init__(self, index: int) -> None:
        super().__init__(f"text {index} of the batch yields a control token")
        self.index = index


def load_tokenizer(directory: Path, settings: IndexSettings) -> TextTokenizer:
    """The tokenizer in `directory`, with the BOS and EOD policy of `settings`.

    `prepend_bos` defaults to what the tokenizer's own post-processor does to an empty text.
    Errors: a UserError for a missing or unreadable file and for a token that does not exist.
    """
    spec, named = _read_directory(directory)
    tokenizer = _parse(spec, directory)
    tokens = {"bos": named.get("bos_token"), "eos": named.get("eos_token")}
    tokens["eod"] = settings.eod_token or tokens["eos"]
    if settings.append_eod and tokens["eod"] is None:
        raise UserError(directory, "the tokenizer names no eos_token to end documents with", "set eod_token")
    ids = {f"{key}_id": _token_id(tokenizer, token, directory, f"{key}_token") for key, token in tokens.items()}
    identity = TokenizerIdentity(
        fingerprint=_fingerprint(spec, ids),
        vocab_size=max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1,
        **ids,
        prepend_bos=_prepend_bos(tokenizer, ids["bos_id"], settings, directory),
        append_eod=settings.append_eod,
    )
    special = {token["content"] for token in spec.get("added_tokens", ()) if token["special"]}
    control = special | set(named.values()) | {token for token in tokens.values() if token is not None}
    forbidden = np.zeros(identity.vocab_size, np.bool_)
    forbidden[[token for token in ids.values() if token is not None]] = True
    known = {token: place for token in sorted(control) if (place := tokenizer.token_to_id(token)) is not None}
    del tokenizer  # a hundred megabytes with a large vocabulary
    encoding = without_control_tokens(spec, control)
    _parse(encoding, directory)
    spelling = spelling_of(encoding, identity.vocab_size)
    fast = encoding if spelling.every_byte else with_every_byte(encoding, identity.vocab_size)
    raw = orjson.dumps(encoding)
    fast_raw = raw if fast is encoding else orjson.dumps(fast)
    return TextTokenizer(identity, raw, fast_raw, known, forbidden, spelling)


def check_tokenizer(directory: Path, identity: TokenizerIdentity, where: object) -> None:
    """Refuses a tokenizer directory that is not the one `where` was written with."""
    spec, _ = _read_directory(directory)
    if _fingerprint(spec, identity.model_dump(include={"bos_id", "eos_id", "eod_id"})) != identity.fingerprint:
        mend = "give the directory of that tokenizer, or index the text again with this one"
        raise UserError(where, f"was written with another tokenizer than the one in {directory}", mend)


def without_control_tokens(spec: dict[str, Any], control: set[str]) -> dict[str, Any]:
    """A tokenizer.json in which no text spells a control token; every id stays as it was.

    Post-processor, truncation and padding go too: what surrounds a text is the policy's business.
    """
    renamed = {name: f"\U0010ffff control {index} \U0010ffff" for index, name in enumerate(sorted(control))}
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


def _read_directory(directory: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """tokenizer.json, and the control tokens that the files beside it name (key -> content)."""
    path = directory / "tokenizer.json"
    if not path.is_file():
        mend = "give the directory of a Hugging Face tokenizer; `save_pretrained` of a fast one writes the file"
        raise UserError(path, "no such file", mend)
    named: dict[str, str] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (directory / name).is_file():
            named |= _named_tokens(_read_json(directory / name))
    return _read_json(path), named


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError as error:
        raise UserError(path, f"not JSON ({error})", "fetch the tokenizer again") from error
    if not isinstance(content, dict):
        raise UserError(path, "not a JSON object", "fetch the tokenizer again")
    return content


def _named_tokens(config: dict[str, Any]) -> dict[str, str]:
    """Contents of the tokens a config names; each is a string or an object with `content`."""
    values = {key: config[key] for key in CONTROL_KEYS if config.get(key)}
    extra = config.get("additional_special_tokens") or config.get("extra_special_tokens") or ()
    values |= {f"additional {index}": token for index, token in enumerate(extra) if not isinstance(extra, dict)}
    return {key: token["content"] if isinstance(token, dict) else token for key, token in values.items()}


def _parse(spec: dict[str, Any], directory: Path) -> Tokenizer:
    try:
        return Tokenizer.from_str(orjson.dumps(spec).decode())
    except Exception as error:  # the library raises nothing narrower
        raise UserError(directory / "tokenizer.json", f"not a tokenizer ({error})", "fetch it again") from error


def _token_id(tokenizer: Tokenizer, token: str | None, directory: Path, key: str) -> int | None:
    if token is None:
        return None
    found = tokenizer.token_to_id(token)
    if found is None:
        added = [added.content for added in tokenizer.get_added_tokens_decoder().values()]
        raise UserError(directory, f"{key} '{token}' is not in the vocabulary", nearest(token, added))
    return int(found)


def _prepend_bos(tokenizer: Tokenizer, bos_id: int | None, settings: IndexSettings, directory: Path) -> bool:
    if settings.prepend_bos is None:
        ids = tokenizer.encode("", add_special_tokens=True).ids
        return bool(ids) and ids[0] == bos_id
    if settings.prepend_bos and bos_id is None:
        raise UserError(directory, "prepend_bos is set, but the tokenizer names no bos_token", "drop prepend_bos")
    return settings.prepend_bos


def _fingerprint(spec: dict[str, Any], ids: dict[str, int | None]) -> str:
    """sha256 of the control ids and of tokenizer.json, less the truncation and padding that a run leaves in it."""
    content = {key: value for key, value in spec.items() if key not in ("truncation", "padding")}
    return hashlib.sha256(orjson.dumps([content, ids], option=orjson.OPT_SORT_KEYS)).hexdigest()

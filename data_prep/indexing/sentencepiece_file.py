"""A SentencePiece model as a tokenizer.json that gives the sentencepiece library's ids.

Taken over exactly: the dummy prefix (one `▁` before a text that is not empty), blanks as `▁`, removal
of extra blanks, byte fallback, user-defined symbols (text, never split) and control symbols (never
text).  Refused, because the tokenizers library cannot give the same ids: a table of character
normalisation (`nmt_nfkc`, the trainer's default; decomposed accents and half-width kana differ),
pieces marked unused, whitespace as a suffix, and models of words or characters.

BOS stands before each text wherever the model has one, as Llama's and Mistral's own code does; a
model trained with `bos_id=-1` has none.  An `add_bos_token` in the tokenizer_config.json beside it
has the last word.  Merges come from transformers; the result is held against the library itself on a
sample of the model's pieces.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from data_prep.errors import UserError
from data_prep.indexing.tokenizer_json import AGAIN, bos_template, hold_against, json_object, without_post_processor

UNIGRAM, BPE = 1, 2
MODEL_TYPES = {UNIGRAM: "unigram", BPE: "bpe", 3: "word", 4: "char"}
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
SPACE = "▁"
# Below any path of real pieces, so that no text is spelled with a control, byte or unknown piece.
NEVER = -1e6
_TRAIN = "train it with --normalization_rule_name=identity, or give a tokenizer.json of it whose ids you trust"


def convert(file: Path, content: bytes) -> tuple[dict[str, Any], dict[str, str]]:
    """A tokenizer.json of the model in `content`, and its control tokens (key -> piece).

    Errors: a UserError for a damaged file and for a model whose ids could not be the library's.
    """
    model = _parse(file, content)
    _check(file, model)
    processor = _processor(file, content)
    ids = {key: int(getattr(processor, f"{key}_id")()) for key in ("bos", "eos", "pad", "unk")}
    named = {f"{key}_token": model.pieces[index].piece for key, index in ids.items() if index >= 0}
    user = [piece.piece for piece in model.pieces if piece.type == USER_DEFINED]
    spec = _spec(model, user, ids["unk"])
    _check_user_symbols(file, user, spec)
    if "bos_token" in named and _add_bos(file):
        spec["post_processor"] = bos_template(named["bos_token"], ids["bos"])
    pieces = [piece.piece.replace(SPACE, " ") for piece in model.pieces if piece.type == NORMAL]
    pieces += [f"a{symbol}b" for symbol in user]
    hold_against(file, spec, "sentencepiece", pieces, processor.encode)
    return spec, named


def _parse(file: Path, content: bytes) -> Any:
    try:
        from google.protobuf.message import DecodeError
        from sentencepiece import sentencepiece_model_pb2
    except Exception as error:  # protobuf refuses generated code that is newer than itself by an error of its own
        raise UserError(file, f"a SentencePiece model needs protobuf ({error})", "pip install -U protobuf") from error
    model = sentencepiece_model_pb2.ModelProto()
    try:
        model.ParseFromString(content)
    except (DecodeError, ValueError) as error:
        raise _damaged(file, f"not a SentencePiece model, nor lines of a tiktoken file ({error})") from error
    # protobuf hands over a string that is not UTF-8 as bytes.
    if not model.pieces or not all(isinstance(piece.piece, str) for piece in model.pieces):
        raise _damaged(file, "not a SentencePiece model, nor lines of a tiktoken file")
    return model


def _processor(file: Path, content: bytes) -> Any:
    import sentencepiece

    try:
        return sentencepiece.SentencePieceProcessor(model_proto=content)
    except (RuntimeError, OSError, ValueError, TypeError) as error:
        raise _damaged(file, f"the sentencepiece library cannot load it ({error})") from error


def _damaged(file: Path, problem: str) -> UserError:
    return UserError(file, problem, AGAIN)


def _check(file: Path, model: Any) -> None:
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    kind = MODEL_TYPES.get(trainer.model_type, str(trainer.model_type))
    if trainer.model_type not in (UNIGRAM, BPE):
        raise UserError(file, f"a SentencePiece model of type '{kind}'", "legal: bpe, unigram")
    refused = {
        f"normalises characters by its own table ({normalizer.name})": bool(normalizer.precompiled_charsmap),
        "puts whitespace behind words (treat_whitespace_as_suffix)": trainer.treat_whitespace_as_suffix,
        "leaves blanks as they are (escape_whitespaces is off)": not normalizer.escape_whitespaces,
        "has pieces marked unused": any(piece.type == UNUSED for piece in model.pieces),
        "has pieces with a character that is no piece": trainer.model_type == UNIGRAM and not _closed(model),
    }
    for reason, found in refused.items():
        if found:
            raise UserError(file, f"this SentencePiece model {reason}, which tokenizers cannot do to the id", _TRAIN)
    if len({piece.piece for piece in model.pieces}) != len(model.pieces) or not all(p.piece for p in model.pieces):
        raise _damaged(file, "pieces that are empty or stand twice")
    if not all(math.isfinite(piece.score) for piece in model.pieces):
        raise _damaged(file, "a piece whose score is not a finite number")


def _closed(model: Any) -> bool:
    """Whether each character of a unigram piece is a piece: the score of an unknown one then decides nothing."""
    normal = {piece.piece for piece in model.pieces if piece.type == NORMAL}
    return set("".join(normal)) <= normal


def _spec(model: Any, user: list[str], unk_id: int) -> dict[str, Any]:
    normalizer, fallback = model.normalizer_spec, model.trainer_spec.byte_fallback
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if normalizer.add_dummy_prefix else []
    decoders = [_replace({"String": SPACE}, " "), {"type": "ByteFallback"}, {"type": "Fuse"}, *strip]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            _added(index, piece.piece, piece.type == CONTROL)
            for index, piece in enumerate(model.pieces)
            if piece.type in (CONTROL, USER_DEFINED)
        ],
        "normalizer": {"type": "Sequence", "normalizers": _normalizers(normalizer, user)},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": (_bpe if model.trainer_spec.model_type == BPE else _unigram)(model.pieces, unk_id, fallback),
    }


def _replace(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def _added(index: int, content: str, control: bool) -> dict[str, Any]:
    """User-defined symbols are found in the normalised text, so that the dummy prefix stands before the first too."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": not control, "special": control}
    return {"id": index, "content": content, **flags}


def _normalizers(normalizer: Any, user: list[str]) -> list[dict[str, Any]]:
    steps: list[dict[str, Any]] = []
    if normalizer.remove_extra_whitespaces:
        trims = ((r"\A +", ""), (r" {2,}", " "), (rf"[ {SPACE}]+\z", ""))
        steps += [_replace({"Regex": regex}, content) for regex, content in trims]
    if normalizer.add_dummy_prefix and not user:
        steps.append({"type": "Prepend", "prepend": SPACE})
    elif normalizer.add_dummy_prefix:
        # The library normalises the symbols themselves by these steps; a text that is one symbol is the price.
        symbols = "|".join(re.escape(symbol) for symbol in user)
        steps.append(_replace({"Regex": rf"\A(?!(?:{symbols})\z)(?=[\s\S])"}, SPACE))
    return [*steps, _replace({"String": " "}, SPACE)]


def _check_user_symbols(file: Path, user: list[str], spec: dict[str, Any]) -> None:
    """A symbol that the normaliser changes would be looked for in another form than the library's."""
    normalizer = without_post_processor(file, spec).normalizer
    for symbol in user:
        if normalizer.normalize_str(symbol) != symbol:
            raise UserError(file, f"the user-defined symbol {symbol!r} does not survive its own normalisation", _TRAIN)


def _bpe(pieces: Any, unk_id: int, fallback: bool) -> dict[str, Any]:
    from transformers.convert_slow_tokenizer import generate_merges

    normal = {piece.piece: piece.score for piece in pieces if piece.type == NORMAL}
    order = {piece.piece: index for index, piece in enumerate(pieces) if piece.type == NORMAL}
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": pieces[unk_id].piece,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": fallback,
        "ignore_merges": False,
        "vocab": {piece.piece: index for index, piece in enumerate(pieces)},
        "merges": generate_merges(order, normal),
    }


def _unigram(pieces: Any, unk_id: int, fallback: bool) -> dict[str, Any]:
    scores = [[piece.piece, piece.score if piece.type == NORMAL else NEVER] for piece in pieces]
    return {"type": "Unigram", "unk_id": unk_id, "byte_fallback": fallback, "vocab": scores}


def _add_bos(file: Path) -> bool:
    """What the tokenizer_config.json beside a model says of BOS; yes, where it says nothing."""
    config = file.with_name("tokenizer_config.json")
    return not config.is_file() or json_object(config, config.read_bytes()).get("add_bos_token") is not False

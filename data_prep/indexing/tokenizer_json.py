"""What the conversions to a tokenizer.json share: its parts, and the check against the library it came from."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import orjson

from data_prep.errors import UserError

AGAIN = "fetch the tokenizer again"


def json_object(file: Path, data: bytes) -> dict[str, Any]:
    """The JSON object in `data`, the content of `file`."""
    try:
        content = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise UserError(file, f"not JSON ({error})", AGAIN) from error
    if not isinstance(content, dict):
        raise UserError(file, "not a JSON object", AGAIN)
    return content


def bos_template(bos: str, bos_id: int) -> dict[str, Any]:
    """A post-processor that puts BOS before a text."""
    token = {"SpecialToken": {"id": bos, "type_id": 0}}
    first, second = ({"Sequence": {"id": name, "type_id": kind}} for kind, name in enumerate("AB"))
    known = {bos: {"id": bos, "ids": [bos_id], "tokens": [bos]}}
    pair = [token, first, second]
    return {"type": "TemplateProcessing", "single": [token, first], "pair": pair, "special_tokens": known}


def hold_against(
    file: Path,
    spec: dict[str, Any],
    library: str,
    pieces: list[str],
    encode: Callable[[list[str]], list[list[int]]],
    sample: int = 2048,
) -> None:
    """Refuses a converted tokenizer whose ids are not the library's, on a sample of its pieces and their neighbours."""
    ours = without_post_processor(file, spec)
    ours.encode_special_tokens = True
    step = max(1, len(pieces) // sample)
    pairs = (f"{first} {second}" for first, second in zip(pieces[::step], pieces[1::step], strict=False))
    texts = list(chain(pieces[::step], pairs, ["", " ", "a  b\t\n\n c", "Zwölf 数据 😀 1234567 don't  "]))
    found = [encoding.ids for encoding in ours.encode_batch(texts, add_special_tokens=False)]
    for text, expected, ids in zip(texts, encode(texts), found, strict=True):
        if list(expected) != ids:
            problem = f"converted, it gives {text!r} other ids than the {library} library does"
            raise UserError(file, problem, "give a tokenizer.json of it whose ids you trust")


def without_post_processor(file: Path, spec: dict[str, Any]) -> Any:
    """The tokenizer of a converted `spec`."""
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_str(orjson.dumps({**spec, "post_processor": None}).decode())
    except Exception as error:  # the library raises nothing narrower
        raise UserError(file, f"the tokenizers library cannot load it ({error})", AGAIN) from error

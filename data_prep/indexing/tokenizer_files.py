"""A tokenizer on disk, of any kind, as the contents of one tokenizer.json and the control tokens it names.

- Hugging Face: a directory with tokenizer.json, or that file; what lies beside it
  (tokenizer_config.json, special_tokens_map.json) names the control tokens.
- SentencePiece, BPE or Unigram (`*.model`): sentencepiece_file.py.
- tiktoken ranks (`*.tiktoken`, Llama-3's tokenizer.model): tiktoken_file.py.

A `tokenizer.model` may be either of the last two: content decides, not the name.  In a directory
with several kinds tokenizer.json wins.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.errors import UserError
from data_prep.indexing.tokenizer_json import AGAIN, json_object

CONTROL_KEYS = ("bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token")
_PATTERNS = ("*.model", "*.model.v*", "*.tiktoken")
_EXPECTED = "a Hugging Face directory or tokenizer.json, a SentencePiece .model, or a .tiktoken file"


@dataclass(frozen=True)
class TokenizerFiles:
    """`spec`: contents of an equivalent tokenizer.json, read from `file`; `named`: control tokens, key -> content."""

    file: Path
    spec: dict[str, Any]
    named: dict[str, str]


def read_tokenizer(path: Path, scheme: str | None = None) -> TokenizerFiles:
    """The tokenizer at `path`, a directory or a file; `scheme` is the `tiktoken_scheme` of IndexSettings.

    Errors: a UserError for what is missing, damaged, or of a kind whose ids would not be the original library's.
    """
    file = _file_of(path)
    content = file.read_bytes()
    if not content.strip():
        raise UserError(file, f"is empty where {_EXPECTED} was expected", AGAIN)
    if file.suffix == ".json" or content.lstrip()[:1] == b"{":
        return TokenizerFiles(file, json_object(file, content), _named_beside(file))
    from data_prep.indexing import sentencepiece_file, tiktoken_file

    if tiktoken_file.is_tiktoken(file, content):
        spec, named = tiktoken_file.convert(file, content, scheme)
        return TokenizerFiles(file, spec, named)
    spec, named = sentencepiece_file.convert(file, content)
    return TokenizerFiles(file, spec, named)


def possible_readings(path: Path) -> Iterator[TokenizerFiles]:
    """The tokenizer at `path` under every tiktoken scheme that its name leaves open; once, for other kinds."""
    from data_prep.indexing import tiktoken_file

    file = _file_of(path)
    open_schemes = tiktoken_file.open_schemes(file) if file.suffix != ".json" else ()
    for scheme in open_schemes or (None,):
        yield read_tokenizer(file, scheme)


def _file_of(path: Path) -> Path:
    """The file that holds the tokenizer."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise UserError(path, "no such file or directory", f"give {_EXPECTED}")
    if (path / "tokenizer.json").is_file():
        return path / "tokenizer.json"
    found = sorted({file for pattern in _PATTERNS for file in path.glob(pattern) if file.is_file()})
    if path / "tokenizer.model" in found:
        return path / "tokenizer.model"
    if len(found) > 1:
        names = ", ".join(file.name for file in found)
        raise UserError(path, f"several tokenizers where one was expected ({names})", "give the file itself")
    if not found:
        problem = "no tokenizer.json, *.model or *.tiktoken in it"
        raise UserError(path, problem, f"give {_EXPECTED}; `save_pretrained` of a fast tokenizer writes tokenizer.json")
    return found[0]


def _named_beside(file: Path) -> dict[str, str]:
    """The control tokens that the files beside tokenizer.json name."""
    named: dict[str, str] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        beside = file.with_name(name)
        if beside.is_file():
            named |= _named_tokens(beside, json_object(beside, beside.read_bytes()))
    return named


def _named_tokens(file: Path, config: dict[str, Any]) -> dict[str, str]:
    """Contents of the tokens a config names; each is a string or an object with `content`."""
    values = {key: config[key] for key in CONTROL_KEYS if config.get(key)}
    extra = config.get("additional_special_tokens") or config.get("extra_special_tokens") or ()
    if isinstance(extra, dict):
        extra = list(extra.values())
    values |= {f"additional {index}": token for index, token in enumerate(extra)}
    named: dict[str, str] = {}
    for key, token in values.items():
        content = token.get("content") if isinstance(token, dict) else token
        if not isinstance(content, str):
            raise UserError(file, f"{key} is neither a string nor an object with 'content'", AGAIN)
        named[key] = content
    return named

"""A tiktoken file (lines of base64 token and rank) as a tokenizer.json.

The file holds neither the pattern that splits a text nor the control tokens: a scheme names both.
Merges come from transformers' converter; the patterns are the published ones of each scheme, in
Oniguruma's dialect (no possessive intervals; `\\z` where tiktoken's `$` is the end of the text).
The result is held against tiktoken itself on a sample of its tokens, and refused where they differ.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.errors import UserError, nearest
from data_prep.indexing.tokenizer_json import bos_template, hold_against

_LINE = re.compile(rb"[A-Za-z0-9+/]+={0,2} \d+")
_SUFFIX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LETTERS = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_LEAD = r"[^\r\n\p{L}\p{N}]?"
_LLAMA3 = rf"{_SUFFIX}|{_LEAD}\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_R50K = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+\z|\s+(?!\S)|\s"
_CL100K = (
    rf"'(?i:[sdmt]|ll|ve|re)|{_LEAD}\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*"
    r"|\s+\z|\s*[\r\n]|\s+(?!\S)|\s"
)
_O200K = (
    rf"{_LEAD}{_LETTERS[0]}*{_LETTERS[1]}+{_SUFFIX}?|{_LEAD}{_LETTERS[0]}+{_LETTERS[1]}*{_SUFFIX}?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class Scheme:
    """`control`: tokens -> their distance from the first id after the ranks of the file; `ranks`: of the original."""

    ranks: int
    pattern: str
    control: dict[str, int]
    bos: str | None
    eos: str


_LLAMA3_NAMES = """
begin_of_text end_of_text reserved_special_token_0 reserved_special_token_1 finetune_right_pad_id step_id
start_header_id end_header_id eom_id eot_id python_tag image
"""
# GROUP:a-b stands for GROUP_reserved_special_token_a and so on up to b.
_LLAMA4_NAMES = """
begin_of_text end_of_text fim_prefix fim_middle fim_suffix header_start header_end eom eot step
text_post_train:0-5 python_start python_end finetune_right_pad text_post_train:8-68
image_start image_end vision:0-1 tile_x_separator tile_y_separator vision:2-5 image vision:6-6 patch vision:7-1047
reasoning:0-7 reasoning_thinking_start reasoning_thinking_end
"""


def _control(names: str, total: int, first_reserved: int) -> dict[str, int]:
    """Control tokens in the order of their ids, filled up to `total` by reserved ones."""
    tokens: list[str] = []
    for name in names.split():
        group, colon, span = name.partition(":")
        first, last = map(int, span.split("-")) if colon else (0, 0)
        reserved = [f"{group}_reserved_special_token_{index}" for index in range(first, last + 1)]
        tokens += reserved if colon else [name]
    tokens += [f"reserved_special_token_{first_reserved + index}" for index in range(total - len(tokens))]
    return {f"<|{token}|>": index for index, token in enumerate(tokens)}


_END, _PROMPT = "<|endoftext|>", "<|endofprompt|>"
_FIM = {"<|fim_prefix|>": 2, "<|fim_middle|>": 3, "<|fim_suffix|>": 4}
SCHEMES = {
    "llama3": Scheme(128_000, _LLAMA3, _control(_LLAMA3_NAMES, 256, 2), "<|begin_of_text|>", "<|end_of_text|>"),
    "llama4": Scheme(200_000, _O200K, _control(_LLAMA4_NAMES, 2048, 0), "<|begin_of_text|>", "<|end_of_text|>"),
    "r50k_base": Scheme(50_256, _R50K, {_END: 0}, None, _END),
    "cl100k_base": Scheme(100_256, _CL100K, {_END: 1, **_FIM, _PROMPT: 20}, None, _END),
    "o200k_base": Scheme(199_998, _O200K, {_END: 1, _PROMPT: 20}, None, _END),
}


def is_tiktoken(file: Path, content: bytes) -> bool:
    """Whether the file is, or by its name should be, lines of base64 and rank."""
    return file.suffix == ".tiktoken" or bool(_LINE.fullmatch(content.lstrip().split(b"\n", 1)[0].rstrip()))


def open_schemes(file: Path) -> tuple[str, ...]:
    """The schemes a tiktoken file may be of where its name does not tell, the likeliest first; none for other files."""
    content = file.read_bytes()
    if not is_tiktoken(file, content) or file.stem in SCHEMES:
        return ()
    ranks = len(content.split()) // 2
    return tuple(sorted(SCHEMES, key=lambda name: SCHEMES[name].ranks != ranks))


def convert(file: Path, content: bytes, scheme: str | None) -> tuple[dict[str, Any], dict[str, str]]:
    """A tokenizer.json of the ranks in `content` under a scheme, and its BOS and EOS (key -> token).

    Errors: a UserError for a damaged file, and for a scheme that is unknown or not told.
    """
    ranks = _ranks(file, content)
    found = SCHEMES[_scheme_name(file, len(ranks), scheme)]
    control = {token: len(ranks) + distance for token, distance in found.control.items()}
    spec = _spec(found, ranks, control)
    _hold_against_tiktoken(file, spec, found, ranks)
    named = {"bos_token": found.bos, "eos_token": found.eos}
    return spec, {key: token for key, token in named.items() if token is not None}


def _scheme_name(file: Path, ranks: int, scheme: str | None) -> str:
    legal = ", ".join(SCHEMES)
    if scheme is None and file.stem in SCHEMES:
        return file.stem
    if scheme is None:
        likely = next((name for name, known in SCHEMES.items() if known.ranks == ranks), None)
        hint = f"; {ranks} ranks are those of {likely}" if likely else ""
        problem = "a tiktoken file does not tell its split pattern and control tokens"
        raise UserError(file, problem, f"set tiktoken_scheme (legal: {legal}{hint})")
    if scheme not in SCHEMES:
        raise UserError(file, f"unknown tiktoken_scheme '{scheme}'", nearest(scheme, SCHEMES))
    return scheme


def _ranks(file: Path, content: bytes) -> dict[bytes, int]:
    """Token -> rank, in order of rank; ranks are 0 .. n-1 and every byte has one."""
    tokens: dict[int, bytes] = {}
    for number, line in enumerate(content.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            token, rank = line.split()
            key, value = int(rank), base64.b64decode(token, validate=True)
        except (ValueError, binascii.Error) as error:
            raise _damaged(f"{file}:{number}", "expected a base64 token, a blank and its rank") from error
        if key in tokens or not value:
            raise _damaged(f"{file}:{number}", f"rank {key} stands twice" if value else "an empty token")
        tokens[key] = value
    ranks = {tokens[rank]: rank for rank in sorted(tokens)}
    if len(ranks) != len(tokens):
        raise _damaged(file, f"{len(tokens)} ranks for {len(ranks)} different tokens")
    if sorted(tokens) != list(range(len(tokens))):
        raise _damaged(file, f"expected ranks 0 to {len(tokens) - 1} without a gap")
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing:
        raise _damaged(file, f"byte 0x{missing[0]:02X} has no rank, where tiktoken needs all 256")
    return ranks


def _damaged(where: object, problem: str) -> UserError:
    return UserError(where, f"not a tiktoken file: {problem}", "fetch the tokenizer again")


def _spec(scheme: Scheme, ranks: dict[bytes, int], control: dict[str, int]) -> dict[str, Any]:
    vocab, merges = _vocab_and_merges(ranks)
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": scheme.pattern}, "behavior": "Isolated", "invert": False}
    model = {"type": "BPE", "dropout": None, "unk_token": None, "fuse_unk": False, "byte_fallback": False}
    nothing = {"continuing_subword_prefix": None, "end_of_word_suffix": None}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": index, "content": token, **flags} for token, index in control.items()],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": bos_template(scheme.bos, control[scheme.bos]) if scheme.bos else None,
        "decoder": byte_level,
        # Control tokens stand in the vocabulary too: ids after a gap cannot be had otherwise.
        "model": {**model, **nothing, "ignore_merges": True, "vocab": {**vocab, **control}, "merges": merges},
    }


def _vocab_and_merges(ranks: dict[bytes, int]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    from transformers.convert_slow_tokenizer import TikTokenConverter

    class FromRanks(TikTokenConverter):
        """tiktoken's own reader of files keeps a copy by path in a folder for temporary files, for ever."""

        @staticmethod
        def load_tiktoken_bpe(_: str) -> dict[bytes, int]:
            return ranks

    vocab, merges = FromRanks("").extract_vocab_merges_from_model("")
    return vocab, merges


def _hold_against_tiktoken(file: Path, spec: dict[str, Any], scheme: Scheme, ranks: dict[bytes, int]) -> None:
    import tiktoken

    theirs = tiktoken.Encoding(file.name, pat_str=scheme.pattern, mergeable_ranks=ranks, special_tokens={})
    texts = (text for token in ranks if (text := token.decode(errors="replace")).isprintable())
    hold_against(file, spec, "tiktoken", list(texts), theirs.encode_ordinary_batch)

"""Instructions in a tokenizer's own chat template, with the control tokens that the template writes marked.

The template is rendered once with sentinels in place of the contents; what stands between them is the template's own,
and the control tokens spelled there become spans of class `control`.  The contents are put in afterwards: a literal
`<|im_end|>` in them stays text.  A leading BOS is left out, as indexing puts it in (unless the same token opens each
turn, as in SmolLM2); an EOS at the end stays, as only who indexes knows which token ends a document (`append_eod`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import xxhash

from data_prep.errors import UserError
from data_prep.templates.instructions import Instruction, Renderer
from data_prep.templates.parts import Piece, template

# Private-use characters: no template asks about them.
SENTINELS = {"system": "\ue0f0s\ue0f1", "user": "\ue0f0u\ue0f1", "assistant": "\ue0f0a\ue0f1"}
_SENTINEL = re.compile("|".join(map(re.escape, SENTINELS.values())))

Apply = Callable[[Sequence[Mapping[str, str]]], str]


def load_chat(folder: Path) -> tuple[str, Renderer]:
    """The name that training texts get, chat@HASH of the template, and what renders a row.

    Raises:
        UserError: no tokenizer there, it has no chat template, or the template takes no single exchange.
    """
    tokenizer = _tokenizer(folder)
    written = tokenizer.get_chat_template()

    def apply(messages: Sequence[Mapping[str, str]]) -> str:
        return str(tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=False))

    control = sorted({str(token) for token in tokenizer.all_special_tokens} | _special(tokenizer), key=len)[::-1]
    bos = tokenizer.bos_token or ""
    skeletons = {False: _skeleton(folder, apply, ("user", "assistant"))}
    trims = _trims(apply)
    render = partial(_render, folder, apply, skeletons, _pattern(control), bos, trims)
    return f"chat@{xxhash.xxh3_64_hexdigest(written.encode())[:8]}", render


def _render(
    folder: Path,
    apply: Apply,
    skeletons: dict[bool, str],
    control: re.Pattern[str],
    bos: str,
    trims: bool,
    row: Instruction,
) -> list[Piece] | str:
    contents = {"user": row.question, "assistant": row.response, **({"system": row.system} if row.system else {})}
    if trims:
        contents = {role: content.strip() for role, content in contents.items()}
    has_system = "system" in contents
    if has_system not in skeletons:
        skeletons[has_system] = _skeleton(folder, apply, ("system", "user", "assistant"))
    pieces = _pieces(skeletons[has_system], contents, control)
    if apply(_messages(contents)) != "".join(piece.text for piece in pieces):
        return "rewritten_by_template"
    return pieces[1:] if _begins_with(bos, pieces) else pieces


def _begins_with(bos: str, pieces: Sequence[Piece]) -> bool:
    """Whether the template wrote a BOS: first and nowhere else, as some use the same token to open each turn."""
    token = Piece("control", bos)
    return bool(bos) and pieces[0] == token and pieces.count(token) == 1


def _messages(contents: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": contents[role]} for role in SENTINELS if role in contents]


def _pieces(skeleton: str, contents: Mapping[str, str], control: re.Pattern[str]) -> list[Piece]:
    """The skeleton with the contents in place of the sentinels."""
    pieces: list[Piece] = []
    roles = {sentinel: role for role, sentinel in SENTINELS.items()}
    own = _SENTINEL.split(skeleton)
    for place, wording in enumerate(own):
        for odd, piece in enumerate(control.split(wording)):
            if piece:
                pieces.append(Piece("control", piece) if odd % 2 else template(piece))
        if place < len(own) - 1:
            role = roles[_SENTINEL.findall(skeleton)[place]]
            pieces.append(Piece("answer" if role == "assistant" else "question", contents[role], 0))
    return pieces


def _skeleton(folder: Path, apply: Apply, roles: Sequence[str]) -> str:
    """The template around sentinels, each of which it must write once and in order."""
    from jinja2 import TemplateError

    try:
        text = apply(_messages({role: SENTINELS[role] for role in roles}))
    except (TemplateError, ValueError, TypeError) as error:
        raise UserError(folder, f"the chat template refuses {', '.join(roles)} ({error})", "use another one") from error
    if _SENTINEL.findall(text) != [SENTINELS[role] for role in roles]:
        problem = f"the chat template does not write {', '.join(roles)} once and in order"
        raise UserError(folder, problem, "use another one, or render as plain text")
    return text


def _trims(apply: Apply) -> bool:
    """Whether the template strips blanks around a content, as Llama 3's does."""
    contents = {role: f" {SENTINELS[role]} " for role in ("user", "assistant")}
    return any(content not in apply(_messages(contents)) for content in contents.values())


def _pattern(control: Sequence[str]) -> re.Pattern[str]:
    """Any of the control tokens, longest first, in a group; with none, a pattern that never matches."""
    return re.compile("(" + "|".join(map(re.escape, control)) + ")") if control else re.compile("((?!))")


def _special(tokenizer: Any) -> set[str]:
    return {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    if not folder.is_dir():
        raise UserError(folder, "no such directory", "give a Hugging Face tokenizer directory")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise UserError(folder, f"no tokenizer could be loaded ({error})", "expected tokenizer.json there") from error
    if not tokenizer.chat_template:
        raise UserError(folder, "the tokenizer has no chat template", "use one that has, or render as plain text")
    return tokenizer

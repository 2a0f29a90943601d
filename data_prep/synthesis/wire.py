"""The paper's wire format: prompts as token ids, completions back into pairs.

    example = BOS + " <CON> text </CON>" + "\\n\\n" + "<QUE> q <ANS> a </END>" + "\\n\\n" + "<QUE> ... </END>" + EOS

BOS and EOS are single ids of the tokenizer, never doubled and never made from text: what stands
between them is encoded as ordinary text, whatever it spells.  A control tag inside a text or a
pair is escaped (`<QUE>` -> `<\\QUE>`, reversibly), so a document cannot forge a pair.  Records hold
the plain form; the escaped form exists between a prompt and its completion only.
(method: https://arxiv.org/abs/2406.14491, section 2; the format is that of the authors' code.)
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from data_prep.errors import UserError
from data_prep.records import AugmentedText, Pair

if TYPE_CHECKING:
    from tokenizers import Tokenizer

THINK_LINE = "Let's think step by step."
CONCLUSION = "Therefore, the answer is "

_TAG = re.compile(r"<(\\*)(/?(?:CON|QUE|ANS|END))>")
_ESCAPED_TAG = re.compile(r"<\\(\\*)(/?(?:CON|QUE|ANS|END))>")
_OPTIONS = re.compile(r"\nOptions:((?:\n- [^\n]+){2,})$")
_CONCLUSION = re.compile(rf"(?:^|\n){re.escape(CONCLUSION)}\S")


@dataclass(frozen=True, slots=True)
class Rejection:
    """A fragment of a completion that is no pair, and why."""

    reason: str
    fragment: str


def escape(text: str) -> str:
    """Control tags made harmless by one backslash (more, where there are some already)."""
    return _TAG.sub(r"<\\\1\2>", text)


def unescape(text: str) -> str:
    """The inverse of `escape`."""
    return _ESCAPED_TAG.sub(r"<\1\2>", text)


def context_part(text: str) -> str:
    """What stands between BOS and the pairs."""
    return f" <CON> {escape(text)} </CON>\n\n"


def pairs_part(pairs: Sequence[Pair]) -> str:
    """What stands between the context and EOS."""
    return "\n\n".join(f"<QUE> {escape(pair.question)} <ANS> {escape(pair.answer)} </END>" for pair in pairs)


def parse(completion: str) -> tuple[list[Pair], list[Rejection]]:
    """The pairs of a completion, and everything in it that is none.

    Reasons: cut_off (a last fragment without `</END>`), no_question_tag, no_answer_tag,
    several_answer_tags, stray_tag (a context or second question inside), empty_question,
    empty_answer, duplicate_question (case-folded, within this completion).
    """
    *fragments, last = completion.split("</END>")
    pairs: list[Pair] = []
    rejections: list[Rejection] = []
    seen: set[str] = set()
    for fragment in fragments:
        parsed = _parse_fragment(fragment.strip())
        if isinstance(parsed, Pair) and parsed.question.casefold() in seen:
            parsed = "duplicate_question"
        if isinstance(parsed, Pair):
            seen.add(parsed.question.casefold())
            pairs.append(parsed)
        else:
            rejections.append(Rejection(parsed, fragment.strip()))
    if last.strip():
        rejections.append(Rejection("cut_off", last.strip()))
    return pairs, rejections


def _parse_fragment(fragment: str) -> Pair | str:
    """The pair, or the reason why it is none."""
    if not fragment.startswith("<QUE>"):
        return "no_question_tag"
    question, *answers = fragment.removeprefix("<QUE>").split("<ANS>")
    if len(answers) != 1:
        return "several_answer_tags" if answers else "no_answer_tag"
    question, answer = question.strip(), answers[0].strip()
    if any(tag in question or tag in answer for tag in ("<QUE>", "<CON>", "</CON>")):
        return "stray_tag"
    if not question or not answer:
        return "empty_answer" if question else "empty_question"
    return recognise(unescape(question), unescape(answer))


def recognise(question: str, answer: str) -> Pair:
    """A pair with its options and its chain of thought recognised from the wording."""
    _, options = split_question(question)
    return Pair(question, answer, options, rationale=bool(_CONCLUSION.search(answer)))


def split_question(question: str) -> tuple[str, tuple[str, ...]]:
    """The stem of a question, without options and "Let's think" line, and its options."""
    stem = question.removesuffix(THINK_LINE).rstrip()
    match = _OPTIONS.search(stem)
    if match is None:
        return stem, ()
    return stem[: match.start()], tuple(match.group(1).removeprefix("\n- ").split("\n- "))


class Wire:
    """The format over one tokenizer.

    Args:
        tokenizer: a copy is taken, in which special tokens inside text are ordinary text.
        bos_id, eos_id: what `<s>` and `</s>` of the paper are here.
    """

    def __init__(self, tokenizer: Tokenizer, bos_id: int, eos_id: int) -> None:
        self.tokenizer = type(tokenizer).from_str(tokenizer.to_str())
        self.tokenizer.encode_special_tokens = True
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.bos_id, self.eos_id = bos_id, eos_id

    def encode(self, text: str) -> list[int]:
        """Ids of ordinary text: nothing is added, nothing in it is special."""
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def example(self, text: AugmentedText) -> list[int]:
        """A full example, a shot: BOS, context, pairs, EOS."""
        return [self.bos_id, *self.encode(context_part(text.text) + pairs_part(text.pairs)), self.eos_id]

    def opening(self, text: str) -> list[int]:
        """An example up to where its first pair begins.

        These ids are a prefix of `example`'s: a tokenizer that merges the line ends differently
        before a tag than at the end of a text would otherwise show the model one thing and ask
        it to go on from another.
        """
        context = context_part(text)
        ids = self.encode(context + "<QUE>")
        for cut in range(len(ids) - 1, 0, -1):
            tail = self.tokenizer.decode(ids[cut:], skip_special_tokens=False)
            if tail == "<QUE>":
                return [self.bos_id, *ids[:cut]]
            if len(tail) > len("<QUE>"):
                break  # a token straddles the two
        return [self.bos_id, *self.encode(context)]


def load_wire(model_dir: Path | str) -> Wire:
    """The wire format over the tokenizer of a Hugging Face model directory.

    Raises:
        UserError: no tokenizer there, or it names no BOS or EOS.
    """
    from transformers import AutoTokenizer

    if not Path(model_dir).is_dir():
        raise UserError(model_dir, "no such directory", "give a Hugging Face model directory, or see `ipt data fetch`")
    try:
        tokenizer = AutoTokenizer.from_pretrained(model_dir)
    except (OSError, ValueError) as error:
        raise UserError(
            model_dir, f"no tokenizer could be loaded ({error})", "expected tokenizer.json there"
        ) from error
    if tokenizer.bos_token_id is None or tokenizer.eos_token_id is None:
        raise UserError(
            model_dir, "the tokenizer names no BOS or no EOS", "add bos_token and eos_token to tokenizer_config.json"
        )
    return Wire(tokenizer.backend_tokenizer, tokenizer.bos_token_id, tokenizer.eos_token_id)

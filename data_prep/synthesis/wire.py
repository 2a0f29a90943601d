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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from data_prep.errors import UserError
from data_prep.records import AugmentedText, Pair

Ids = NDArray[np.integer[Any]]

TAGS = ("<CON>", "</CON>", "<QUE>", "<ANS>", "</END>")
THINK_LINE = "Let's think step by step."
CONCLUSION = "Therefore, the answer is "

_CONTEXT_BEGINS = " <CON> "
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
    return f"{_CONTEXT_BEGINS}{escape(text)} </CON>\n\n"


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
        encode: ids of ordinary text; no text gives it BOS or EOS.
        decode: the text of ids.
        bos_id, eos_id: what `<s>` and `</s>` of the paper are here.
        name: which tokenizer it is; two of one name encode alike.
        token_bytes: bytes of the text that each id stands for, where each stands for one at least (byte-level BPE), so
            that the bytes of a text bound its tokens; None where it is not so.
    """

    def __init__(
        self,
        encode: Callable[[str], Sequence[int] | Ids],
        decode: Callable[[Sequence[int]], str],
        bos_id: int,
        eos_id: int,
        name: str,
        *,
        token_bytes: Ids | None = None,
    ) -> None:
        self._encode, self.decode, self.name = encode, decode, name
        self.bos_id, self.eos_id, self._token_bytes = bos_id, eos_id, token_bytes
        self._question = self._ids_of_question()
        self._stub = self.opening("x")

    @property
    def byte_level(self) -> bool:
        """Whether a token is at least one byte of the text."""
        return self._token_bytes is not None

    def encode(self, text: str) -> list[int]:
        """Ids of ordinary text, without BOS and EOS."""
        found: list[int] = self._ids(text).tolist()
        return found

    def _ids(self, text: str) -> Ids:
        return np.asarray(self._encode(text), np.uint32)

    def _ids_of_question(self) -> list[int]:
        """The ids of a question's tag as they stand after a context, where they stand by themselves there."""
        ids = self.encode(context_part("x") + "<QUE>")
        cut = self._before_question(ids)
        return ids[cut:] if cut else []

    def _before_question(self, ids: list[int]) -> int:
        """How many of the ids come before the tag at their end; 0 where a token straddles the two."""
        for cut in range(len(ids) - 1, 0, -1):
            tail = self.decode(ids[cut:])
            if tail == "<QUE>":
                return cut
            if len(tail) > len("<QUE>"):
                break
        return 0

    def opening(self, text: str) -> list[int]:
        """An example up to where its first pair begins: BOS, context."""
        return [self.bos_id, *self.context_ids(text).tolist()]

    def context_ids(self, text: str) -> Ids:
        """The ids of an opening behind its BOS.

        They are a prefix of `example`'s: a tokenizer that merges the line ends differently before a tag than at the
        end of a text would otherwise show the model one thing and ask it to go on from another.
        """
        context = context_part(text)
        ids = self._ids(context + "<QUE>")
        length = len(self._question)
        if length and ids[-length:].tolist() == self._question:
            return ids[:-length]
        cut = self._before_question(ids.tolist())
        return ids[:cut] if cut else self._ids(context)

    def token_ends(self, text: str, context_ids: Ids) -> Ids | None:
        """Characters of a text behind which its tokens end, rising; None where the tokenizer or an escape hides them.

        A token that ends within a character ends behind it.
        """
        if self._token_bytes is None or escape(text) != text:
            return None
        content = np.frombuffer(text.encode(), np.uint8)
        ends = np.cumsum(self._token_bytes[context_ids]) - len(_CONTEXT_BEGINS)
        ends = ends[(ends > 0) & (ends <= len(content))]
        if len(content) == len(text):
            return ends
        begins = (content & 0xC0) != 0x80  # the first byte of a character in UTF-8 (RFC 3629)
        characters: Ids = np.cumsum(begins)[ends - 1]
        return characters

    def closing(self, pairs: Sequence[Pair]) -> list[int]:
        """What follows an opening in an example: the pairs, EOS.  They are encoded as after a context."""
        ids = [self.bos_id, *self.encode(context_part("x") + pairs_part(pairs))]
        if ids[: len(self._stub)] != self._stub:  # a token straddles the context's end and the first pair
            ids = [*self._stub, *self.encode(pairs_part(pairs))]
        return [*ids[len(self._stub) :], self.eos_id]

    def example(self, text: AugmentedText) -> list[int]:
        """A full example, a shot: BOS, context, pairs, EOS."""
        return self.opening(text.text) + self.closing(text.pairs)


def check_tags(wire: Wire, where: object) -> None:
    """Whether prompts show the tags, and pairs can be read from completions.

    Raises:
        UserError: the tokenizer does not give a tag back, as one that has no token for its signs.
    """
    shown = wire.decode(wire.encode(context_part("x") + pairs_part((Pair("x", "x"),))))
    if lost := [tag for tag in TAGS if tag not in shown]:
        problem = f"its tokenizer does not give {' '.join(lost)} back: an example reads {shown.strip()!r}"
        raise UserError(where, problem, "take a model whose tokenizer spells any text, as byte-level ones do")


def load_wire(model: Path | str) -> Wire:
    """The wire format over the tokenizer of a Hugging Face model directory, or of a file that `ipt data index` takes.

    Raises:
        UserError: no tokenizer there, or it names no BOS or EOS.
    """
    from data_prep.indexing.encoder import Encoder
    from data_prep.indexing.tokenizer import load_tokenizer
    from data_prep.settings import IndexSettings

    if not Path(model).exists():
        raise UserError(model, "no such directory", "give a Hugging Face model directory, or see `ipt data fetch`")
    tokenizer = load_tokenizer(Path(model), IndexSettings(append_eod=False))
    bos_id, eos_id = tokenizer.identity.bos_id, tokenizer.identity.eos_id
    if bos_id is None or eos_id is None:
        raise UserError(
            model, "the tokenizer names no BOS or no EOS", "add bos_token and eos_token to tokenizer_config.json"
        )
    encoder, plain = Encoder(tokenizer), tokenizer.encoder
    names = {str(plain.id_to_token(number)): name for name, number in tokenizer.control.items()}

    def decode(ids: Sequence[int]) -> str:
        text: str = plain.decode(ids, skip_special_tokens=False)
        for renamed, name in names.items() if "\U0010ffff" in text else ():
            text = text.replace(renamed, name)
        return text

    name, lengths = tokenizer.identity.fingerprint, _token_bytes(orjson.loads(tokenizer.spec))
    return Wire(encoder.encode_one, decode, bos_id, eos_id, name, token_bytes=lengths)


def _token_bytes(spec: dict[str, Any]) -> Ids | None:
    """Bytes that each id stands for, by a tokenizer.json; None unless it is byte-level without a normalizer."""
    if spec.get("normalizer") or b'"ByteLevel"' not in orjson.dumps(spec.get("pre_tokenizer")):
        return None
    vocabulary: dict[str, int] = spec["model"]["vocab"]  # a character a byte, as ByteLevel spells them
    lengths = np.ones(max(vocabulary.values()) + 1, np.int64)
    lengths[list(vocabulary.values())] = [len(token) for token in vocabulary]
    return lengths


def byte_wire() -> Wire:
    """The wire format without a tokenizer, for an engine without a model: an id is a byte of UTF-8, or BOS, or EOS."""

    def decode(ids: Sequence[int]) -> str:
        return bytes(i for i in ids if i < 256).decode("utf-8", "replace")

    def encode(text: str) -> Ids:
        return np.frombuffer(text.encode(), np.uint8)

    return Wire(encode, decode, 256, 257, "bytes", token_bytes=np.ones(256, np.int64))

"""One shard: its documents cut into texts, its chains, and the rows of its result.

A result is a file of rows, one kind each, in the order of the chains: `chain`, `leftover` (a text without pairs in any
sample, with the reason), `failed` (a text and sample that the engine failed on), `rejected` (a fragment of a completion
that is no pair), `dropped` (a document), and last `done` with the counts of the shard.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from data_prep.draws import draw
from data_prep.intake import Drop
from data_prep.readers import write_jsonl
from data_prep.records import AugmentedText, Document
from data_prep.settings import SynthesizeSettings
from data_prep.splitting import pieces
from data_prep.synthesis.chains import chain_of, plan_chains
from data_prep.synthesis.conversation import Conversation
from data_prep.synthesis.prompts import Prompter
from data_prep.synthesis.work import AXIS, Work

Row = dict[str, Any]
Place = tuple[str, str, int]


@dataclass
class Shard:
    """The chains of a shard, and what of its input is in none."""

    number: int
    conversations: list[Conversation]
    dropped: list[Drop]
    counts: Counter[str] = field(default_factory=Counter)
    _waiting: Counter[tuple[str, str]] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._waiting.update((text.source, text.document_id) for each in self.conversations for text in each.planned)

    def is_last_of_document(self, text: AugmentedText) -> bool:
        """Whether, with this text asked about, all of its document is; to be called once a text."""
        name = (text.source, text.document_id)
        self._waiting[name] -= 1
        return not self._waiting[name]


async def open_shard(work: Work, number: int, settings: SynthesizeSettings, prompter: Prompter) -> Shard:
    """Reads and cuts the documents of a shard; it lets others work now and then, since this may take seconds."""
    documents: list[Document] = []
    texts: list[AugmentedText] = []
    dropped: list[Drop] = []
    for item in work.texts_of(number):
        if isinstance(item, Drop):
            dropped.append(item)
        elif isinstance(item, Document):
            documents.append(item)
        else:
            texts.append(item)
    documents.sort(key=lambda document: (draw(settings.seed, document.id, AXIS), document.id))
    for document in documents:
        for text in cut(document, prompter):
            texts.append(text)
            await asyncio.sleep(0)
    samples = 1 if work.is_retry else settings.samples
    chains = plan_chains(texts, settings.rounds, by_source=settings.pairing == "source", samples=samples)
    counts = Counter(documents=len(documents), texts=len(texts))
    return Shard(number, [Conversation(chain) for chain in chains], dropped, counts)


def cut(document: Document, prompter: Prompter) -> Iterator[AugmentedText]:
    """The document, in pieces that fit a prompt."""
    most, ends = (prompter.most, prompter.token_ends) if prompter.wire.byte_level else (None, None)
    limit = prompter.text_limit
    for start, end in pieces(document.text, limit, prompter.count, most_tokens=most, token_ends=ends):
        text = document.text[start:end]
        prompter.keep(text)
        yield AugmentedText(document.id, text, (), start, end, document.source)


def write_result(work: Work, shard: Shard, identity: Mapping[str, Any]) -> Counter[str]:
    """Puts the result of a finished shard in place; returns its counts."""
    for conversation in shard.conversations:
        shard.counts.update(conversation.counts)
    rows = [*_rows(shard.conversations), *({"dropped": asdict(drop)} for drop in shard.dropped)]
    done = {"counts": dict(shard.counts), "engine": dict(identity)}
    write_jsonl(work.result(shard.number), [*rows, {"done": done}])
    return shard.counts


def _rows(conversations: Sequence[Conversation]) -> Iterator[Row]:
    with_pairs = {_place(text) for each in conversations for text in each.texts if text.pairs}
    left: set[Place] = set()
    for each in conversations:
        chain = chain_of(each.texts)
        if chain is not None:
            yield {"chain": chain.to_json()}
        for number, text in enumerate(each.texts):
            reason = each.reason(number)
            if number in each.failed:
                yield {"failed": {**text.to_json(), "reason": reason}}
            place = _place(text)
            if not text.pairs and place not in with_pairs and place not in left:
                left.add(place)
                yield {"leftover": {**text.to_json(), "reason": reason}}
            for item in each.rejected.get(number, ()):
                where = {"document_id": text.document_id, "start": text.start}
                yield {"rejected": {**where, "reason": item.reason, "fragment": item.fragment}}


def _place(text: AugmentedText) -> Place:
    return text.source, text.document_id, text.start


def reasons_of(row: Row) -> tuple[str, str] | None:
    """(kind, reason) of a row that is counted by its reason."""
    for kind in ("leftover", "rejected", "dropped"):
        if kind in row:
            return kind, str(row[kind]["reason"]).partition(":")[0]
    return None

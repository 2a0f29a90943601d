"""ipt data synthesize: a synthesizer model reads documents and writes pairs about them.

Writes OUT (chains), OUT.leftover.jsonl (texts without pairs, with the reason), OUT.rejected.jsonl
(every fragment of a completion that is no pair), OUT.summary.json, and OUT.journal.jsonl, from
which a killed run goes on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.draws import draw_subset
from data_prep.errors import UserError
from data_prep.readers import beside, read_documents, write_json, write_jsonl
from data_prep.records import AugmentedText, Document
from data_prep.settings import SynthesizeSettings
from data_prep.splitting import split
from data_prep.synthesis.chains import build_chains
from data_prep.synthesis.demonstrations import load_demonstrations
from data_prep.synthesis.engines import Engine
from data_prep.synthesis.journal import Journal
from data_prep.synthesis.progress import ProgressCallback, SynthesisProgress, progress_bar
from data_prep.synthesis.schedule import Synthesis
from data_prep.synthesis.wire import Wire, load_wire

__all__ = ["SynthesisProgress", "progress_bar", "synthesize"]

# Below this there is no room to show a text worth asking about [tokens].
SMALLEST_TEXT_ROOM = 64


def synthesize(
    settings: SynthesizeSettings,
    documents_path: Path | str,
    model_dir: Path | str,
    out_path: Path | str,
    progress: ProgressCallback | None = None,
    engine: Engine | None = None,
) -> dict[str, Any]:
    """Synthesizes the documents into chains and returns what the summary says.

    texts = texts_with_pairs + the sum of leftover.  Token counts are of all texts; seconds and
    tokens_per_second (tokens generated) are of this run, a resumed one does not count what the
    journal gave.

    Args:
        model_dir: a Hugging Face model directory; its tokenizer encodes the prompts.
        progress: called after each batch; `progress_bar()` gives one.
        engine: generates in place of the one `settings.engine` names.

    Raises:
        UserError: bad documents, model or settings; an engine that fails on every text.
    """
    wire = load_wire(model_dir)
    demonstrations = load_demonstrations(settings.demonstrations)
    documents = _choose(settings, documents_path)
    texts = list(_texts(settings, documents, wire, demonstrations))
    engine = engine or _make_engine(settings, model_dir)
    journal = Journal(beside(out_path, "journal.jsonl"), engine)
    run = Synthesis(texts, wire, engine, journal, settings, demonstrations, progress)
    run.run()
    return _write(run, len(documents), Path(out_path))


def _choose(settings: SynthesizeSettings, path: Path | str) -> list[Document]:
    """The documents to synthesize, in the order of their draws."""
    documents = {document.id: document for document in read_documents(path)}
    if not documents:
        raise UserError(path, "there are no documents in it", "give a corpus")
    count = settings.documents or len(documents)
    return [documents[identifier] for identifier in draw_subset(settings.seed, documents, "synthesize", count)]


def _texts(
    settings: SynthesizeSettings, documents: list[Document], wire: Wire, demonstrations: list[AugmentedText]
) -> Iterator[AugmentedText]:
    """The documents, long ones in pieces that fit behind the demonstrations."""
    shown = sum(len(wire.example(demonstration)) for demonstration in demonstrations)
    room = settings.max_model_len - settings.max_new_tokens - shown
    if room < SMALLEST_TEXT_ROOM:
        problem = f"{room} tokens are left for a text after {settings.max_new_tokens} new and {shown} of demonstrations"
        raise UserError("max_model_len", problem, "raise it, or lower max_new_tokens, or show fewer demonstrations")
    limit = min(room, settings.max_text_tokens or room)
    for document in documents:
        for start, end in split(document.text, limit, lambda piece: len(wire.opening(piece))):
            yield AugmentedText(document.id, document.text[start:end], (), start, end, document.source)


def _make_engine(settings: SynthesizeSettings, model_dir: Path | str) -> Engine:
    from data_prep.synthesis.engines.transformers import TransformersEngine

    return TransformersEngine(model_dir, settings)


def _write(run: Synthesis, documents: int, out: Path) -> dict[str, Any]:
    texts = [run.done.get(index, text) for index, text in enumerate(run.texts)]
    chains, _ = build_chains(texts, run.settings.rounds)
    reasons = {index: _leftover_reason(run, index) for index, text in enumerate(texts) if not text.pairs}
    rejected = [(texts[index], item) for index, items in sorted(run.rejections.items()) for item in items]
    write_jsonl(out, (chain.to_json() for chain in chains))
    write_jsonl(
        beside(out, "leftover.jsonl"),
        ({**texts[index].to_json(), "reason": reason} for index, reason in reasons.items()),
    )
    write_jsonl(
        beside(out, "rejected.jsonl"),
        (
            {"document_id": text.document_id, "start": text.start, "reason": item.reason, "fragment": item.fragment}
            for text, item in rejected
        ),
    )
    names = ("pairs", "shots", "shots_dropped", "prompt_tokens", "completion_tokens", "new_completion_tokens")
    summary = {
        "documents": documents,
        "texts": len(texts),
        "texts_with_pairs": len(texts) - len(reasons),
        "chains": len(chains),
        **{name: run.counts[name] for name in names},
        "seconds": round(run.seconds, 2),
        "tokens_per_second": round(run.counts["new_completion_tokens"] / run.seconds, 1) if run.seconds else 0.0,
        "leftover": dict(Counter(reason.partition(":")[0] for reason in reasons.values())),
        "rejected": dict(Counter(item.reason for _, item in rejected)),
        "engine": dict(run.engine.identity),
    }
    write_json(beside(out, "summary.json"), summary)
    return summary


def _leftover_reason(run: Synthesis, index: int) -> str:
    return f"engine_failed: {run.failed[index]}" if index in run.failed else "no_pairs"

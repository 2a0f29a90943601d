"""ipt data fetch: a corpus (and a small model) by name, held-out documents set apart first.

Writes OUT/train.jsonl, OUT/held_out.jsonl and OUT/summary.json.  Which documents are held out
depends on (seed, document id) only, and is decided before anything else is done with the text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from data_prep.draws import draw_subset
from data_prep.errors import UserError
from data_prep.fetch.corpora import CORPORA, find_corpus
from data_prep.fetch.models import MODELS, fetch_model
from data_prep.fetch.packages import cache_dir, fetch_file
from data_prep.readers import write_json, write_jsonl
from data_prep.records import Document
from data_prep.settings import FetchSettings

__all__ = ["CORPORA", "MODELS", "cache_dir", "fetch", "fetch_model"]


def fetch(settings: FetchSettings, out_dir: Path | str) -> dict[str, Any]:
    """Fetches the corpus into `out_dir` and returns what summary.json says.

    documents = train + held_out + the sum of dropped; characters count train and held out together.

    Raises:
        UserError: unknown corpus or model, no download, or fewer documents than are to be held out.
    """
    corpus = find_corpus(settings.corpus)
    if settings.model is not None and settings.model not in MODELS:
        fetch_model(settings.model)  # raises, before the corpus is downloaded
    kept, dropped = _select(corpus.parse(fetch_file(corpus.file)), settings.min_characters)
    if settings.held_out_documents >= len(kept):
        problem = f"{settings.held_out_documents} documents asked for, the corpus has {len(kept)}"
        raise UserError("held_out_documents", problem, "lower it, or lower min_characters")
    ids = [document.id for document in kept]
    held_out = set(draw_subset(settings.seed, ids, "held_out", settings.held_out_documents))
    folder = Path(out_dir)
    summary: dict[str, Any] = {
        "corpus": corpus.name,
        "licence": corpus.licence,
        "package": corpus.file.requirement,
        "documents": len(kept) + dropped.total(),
        "train": write_jsonl(folder / "train.jsonl", (item.to_json() for item in kept if item.id not in held_out)),
        "held_out": write_jsonl(folder / "held_out.jsonl", (item.to_json() for item in kept if item.id in held_out)),
        "dropped": dict(dropped),
        "characters": sum(len(document.text) for document in kept),
        "seed": settings.seed,
    }
    if settings.model is not None:
        summary["model"] = settings.model
        summary["model_dir"] = str(fetch_model(settings.model))
    write_json(folder / "summary.json", summary)
    return summary


def _select(documents: Iterable[Document], min_characters: int) -> tuple[list[Document], Counter[str]]:
    """The documents that stay, and the number of those that do not, by reason."""
    kept: list[Document] = []
    dropped: Counter[str] = Counter()
    texts: set[str] = set()
    for document in documents:
        if len(document.text) < min_characters:
            dropped["shorter than min_characters"] += 1
        elif document.text in texts:
            dropped["text met before"] += 1
        else:
            texts.add(document.text)
            kept.append(document)
    return kept, dropped

"""What packing made of each source, for the plan: padding, documents cut, what is in no sequence, labels that count.

The figures are of the pack table, of one epoch; with a split, of its training side.  A source without what its policy
or its loss needs is refused before it is packed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from data_prep import packing
from data_prep.blend.model import BlendSource
from data_prep.errors import UserError
from data_prep.indexing.spans import SpansReader
from data_prep.manifest import Manifest, read_manifest
from data_prep.packing.chains import LONG_PAIR, PAIRS_OF_LONG_TEXT, PAIRS_UNTOLD
from data_prep.packing.labels import count_labels, count_pairs
from data_prep.settings import SourceSettings

# Parts above which what is lost is flagged, and of the tokens that count as labels below which that is.
MUCH, FEW_LABELS = 0.03, 0.01
LOST_PAIRS = (LONG_PAIR, PAIRS_OF_LONG_TEXT, PAIRS_UNTOLD)


def check_spans(name: str, source: SourceSettings, manifest: Manifest) -> None:
    """UserError for a source without spans whose policy or loss needs them."""
    if manifest.spans is not None:
        return
    if source.loss != "all":
        problem = f"it has no spans, so which tokens are of '{source.loss}' is not known"
        raise UserError(f"sources.{name}.loss", problem, "index rendered text, with spans; or give it the loss 'all'")
    if source.policy == "chains" and source.kind == "augmented":
        problem = "it has no spans, so nothing tells its questions from its texts, to keep them together"
        mend = "index what `ipt data render` writes, with spans; or give it the policy concatenate"
        raise UserError(f"sources.{name}.policy", problem, mend)


def packed(source: BlendSource, seq_length: int) -> dict[str, Any]:
    """The pack table's report as JSON, and besides: `padding_share` of all positions; `all_documents`, those of the
    dataset; `all_pairs`, where some are lost; `label_share`, tokens that count as labels, where not all do.
    """
    table = packing.open_pack(source.prefix.with_name(source.pack))
    # A sequence of chains has its label to itself, one of concatenate gives it to the next as first token.
    positions = table.sequences * (seq_length + (source.policy == "chains"))
    found: dict[str, Any] = {**table.report.model_dump(), "padding_share": table.report.padding / positions}
    manifest = read_manifest(source.prefix)
    found["all_documents"] = manifest.documents
    if any(table.report.dropped.get(reason) for reason in LOST_PAIRS):
        found["all_pairs"] = count_pairs(SpansReader(source.prefix))
    if source.loss != "all":
        found["label_share"] = count_labels(SpansReader(source.prefix), source.loss) / manifest.tokens
    return found


def packing_flags(source: BlendSource, found: Mapping[str, Any]) -> tuple[str, ...]:
    """What of it is more than a few per cent."""
    flags, dropped = [], found["dropped"]
    if source.policy == "chains" and found["padding_share"] > MUCH:
        flags.append(f"{found['padding_share']:.1%} of its positions are padding: its documents fill sequences badly")
    lost = sum(dropped.get(reason, 0) for reason in LOST_PAIRS)
    if lost and lost > MUCH * found["all_pairs"]:
        flags.append(
            f"{lost / found['all_pairs']:.1%} of its pairs are in no sequence: take longer sequences, or texts"
        )
    mixed = dropped.get(packing.BOTH_SIDES, 0)
    if mixed > MUCH * found["all_documents"]:
        flags.append(
            f"{mixed / found['all_documents']:.1%} of its documents are of both sides of the split, and on none"
        )
    if found.get("label_share", 1.0) < FEW_LABELS:
        flags.append(f"{found['label_share']:.2%} of its tokens count under the loss '{source.loss}'")
    return tuple(flags)


def packing_line(found: Mapping[str, Any]) -> str:
    """The figures that are not zero, in words; empty if all are."""
    told = [f"{found['padding_share']:.1%} padding"] if found["padding_share"] >= 0.0005 else []
    if found["cut_documents"]:
        told.append(f"{found['cut_documents']:,} of {found['documents']:,} documents cut")
    if found["repeated_tokens"]:
        told.append(f"{found['repeated_tokens']:,} tokens repeated")
    if "label_share" in found:
        told.append(f"{found['label_share']:.1%} of the tokens count as labels")
    lost = {reason: count for reason, count in found["dropped"].items() if reason != packing.OTHER_SIDE}
    told += [f"in no sequence: {count:,} {reason}" for reason, count in lost.items()]
    return "; ".join(told)

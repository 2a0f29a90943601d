"""Data preparation as sections of the page: raw text, pairs, examples, blend.  Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from data_prep.blend.packed import packing_line
from data_prep.blend.plan import PlanRow, PlanTable
from data_prep.records import AugmentedText
from data_prep.settings import AMOUNT_UNITS
from megatron_ipt.report.data import Checked, RawText, Synthesis
from megatron_ipt.report.parts import Example, ExamplePair, Section
from megatron_ipt.report.tables import Cell, Table, count, decimal, percent, seconds, share_of, table, words

MAX_TEXT_CHARACTERS = 1200
MAX_PAIR_CHARACTERS = 600
MAX_PAIRS = 6


def raw_text(raw: RawText) -> Section:
    sentence = (
        f"{raw.documents:,} documents of {raw.corpus}: {raw.train:,} to train on, {raw.held_out:,} held out before "
        f"anything else was done, {sum(raw.dropped.values()):,} dropped. "
        f"The kept ones have {raw.characters:,} characters."
    )
    rows = [
        (words("train"), words(""), count(raw.train), percent(share_of(raw.train, raw.documents))),
        (words("held out"), words(""), count(raw.held_out), percent(share_of(raw.held_out, raw.documents))),
        *((words("dropped"), *rest) for rest in _by_reason(raw.dropped, raw.documents)),
    ]
    columns = "documents went to:to, reason, documents, share"
    fates = table("raw-text-documents", "Where the documents went", columns, rows)
    return Section("raw-text", "Raw text", (sentence, f"Licence: {raw.licence}."), tables=(fates,))


def pairs(synthesis: Synthesis | None, checked: Checked | None) -> Section | None:
    """Synthesis and checks, either or both."""
    sentences: list[str] = []
    tables: list[Table] = []
    if synthesis:
        sentences.append(_synthesis_sentence(synthesis))
        tables += [_synthesis_table(synthesis), *_lost_in_synthesis(synthesis)]
    if checked:
        lost = checked.pairs - checked.kept
        kept = percent(share_of(checked.kept, checked.pairs)).text
        sentences.append(f"The checks kept {checked.kept:,} of {checked.pairs:,} pairs ({kept}) and dropped {lost:,}.")
        rows = [
            (words(check), *rest)
            for check, reasons in checked.dropped.items()
            for rest in _by_reason(reasons, checked.pairs)
        ]
        if rows:
            columns = "check, reason, pairs dropped, share of all:share"
            tables.append(table("check-drops", "Pairs dropped by the checks", columns, rows))
    return Section("pairs", "Pairs", tuple(sentences), tables=tuple(tables)) if sentences else None


def _synthesis_sentence(found: Synthesis) -> str:
    mean = found.pairs / found.texts_with_pairs if found.texts_with_pairs else 0.0
    return (
        f"From {found.documents:,} documents, read as {found.texts:,} texts, the synthesizer wrote {found.pairs:,} "
        f"pairs for {found.texts_with_pairs:,} of the texts ({mean:.1f} a text), joined to {found.chains:,} chains; "
        "the other texts go on as raw text."
    )


def _synthesis_table(found: Synthesis) -> Table:
    rows = [
        (words("documents"), count(found.documents)),
        (words("texts"), count(found.texts)),
        (words("texts with pairs"), count(found.texts_with_pairs)),
        (words("pairs"), count(found.pairs)),
        (words("chains"), count(found.chains)),
        (words("prompt tokens"), count(found.prompt_tokens)),
        (words("generated tokens"), count(found.completion_tokens)),
        (words("generated tokens a second"), decimal(found.tokens_per_second, 1)),
        (words("time of the last call"), seconds(found.seconds)),
    ]
    return table("synthesis", "Synthesis", "what, value", rows, facts=True)


def _lost_in_synthesis(found: Synthesis) -> Iterator[Table]:
    """Texts left without pairs and fragments that are no pair, each only where there are any."""
    if found.leftover:
        rows = _by_reason(found.leftover, found.texts)
        yield table("leftover", "Texts without pairs", "reason, texts, share of texts:share", rows)
    if found.rejected:
        rows = _by_reason(found.rejected, sum(found.rejected.values()))
        yield table("rejected", "Parts of completions that are no pair", "reason, parts, share", rows)


def examples(texts: tuple[AugmentedText, ...]) -> Section:
    sentence = "The first of the file, not picked; the file's order is a random draw. Long ones are clipped."
    return Section(
        "examples",
        "Documents with their pairs",
        (sentence,),
        examples=tuple(_example(text) for text in texts),
    )


def _example(text: AugmentedText) -> Example:
    shown = tuple(
        ExamplePair(clip(pair.question, MAX_PAIR_CHARACTERS), clip(pair.answer, MAX_PAIR_CHARACTERS))
        for pair in text.pairs[:MAX_PAIRS]
    )
    place = f"characters {text.start:,} to {text.end:,}" if text.end >= 0 else ""
    clipped = clip(text.text, MAX_TEXT_CHARACTERS)
    return Example(text.document_id, text.source, place, clipped, shown, max(0, len(text.pairs) - MAX_PAIRS))


def clip(text: str, most: int) -> str:
    """At most `most` characters of `text`, cut between words where there is a gap near, with how much is left out."""
    text = text.strip()
    if len(text) <= most:
        return text
    cut = text[: most + 1]
    gap = max(cut.rfind(" "), cut.rfind("\n"))
    kept = (cut[:gap] if gap > most * 3 // 4 else cut[:most]).rstrip()
    return f"{kept} \N{HORIZONTAL ELLIPSIS} [{len(text) - len(kept):,} more characters]"


def blend(plan: PlanTable) -> Section:
    if plan.train_samples:
        drawn = f"The run draws {plan.train_samples:,} sequences of {plan.seq_length:,} tokens."
    else:
        drawn = f"Sequences of {plan.seq_length:,} tokens; the length of the run was not given, so no epochs are shown."
    flagged = sum(bool(row.flags) for row in plan.rows)
    warning = f"Flagged: {flagged} of {len(plan.rows)} sources." if flagged else "No source is flagged."
    columns = (
        "source, documents, tokens, weight, share, sequences drawn:samples_drawn, tokens drawn, epochs, "
        "effective tokens, flags"
    )
    rows = [
        (
            words(row.source),
            count(row.documents),
            count(row.tokens),
            Cell(row.weight, asked_for(row)),
            percent(row.share),
            count(row.samples_drawn),
            count(row.tokens_drawn),
            decimal(row.epochs, 2),
            Cell(row.effective_tokens, count(_whole(row.effective_tokens)).text),
            words("; ".join(row.flags)),
        )
        for row in plan.rows
    ]
    note = "Effective tokens count a repeated token at what it is worth beside a fresh one (arXiv 2305.16264, eq. 5)."
    shares = table("blend-plan", "What each source gives to the run", columns, rows)
    packings = [(row.source, packing_line(row.packing)) for row in plan.rows if row.packing is not None]
    packed = (f"Packing of {source}: {line}." for source, line in packings if line)
    told = (f"{drawn} {warning}", *packed, *(f"Note: {line}." for line in plan.notes), note)
    return Section("blend", "Blend", told, tables=(shares,))


def asked_for(row: PlanRow) -> str:
    """The amount with its unit; of a mode its name."""
    if row.unit not in AMOUNT_UNITS:
        return row.unit
    return f"{row.weight:.4g}" if row.unit == "weight" else f"{row.weight:,.4g} {row.unit}"


def _by_reason(reasons: Mapping[str, int], whole: int) -> list[tuple[Cell, Cell, Cell]]:
    """(reason, number, share of `whole`), the most frequent first."""
    ordered = sorted(reasons.items(), key=lambda item: -item[1])
    return [(words(reason), count(number), percent(share_of(number, whole))) for reason, number in ordered]


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)

"""A chain becomes training texts: open book (texts with their pairs), closed book (pairs alone), or one of each (pure).

Every draw is made for (seed, id, axis): mode, inversion and delimiter for the document, styles for each text, the order
of options for each pair.  So a document depends on nothing but its chain, the styles and the settings.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from data_prep.records import AugmentedText, Chain, Origin, Pair, TrainingText
from data_prep.settings import RenderSettings
from data_prep.synthesis.wire import THINK_LINE, split_question
from data_prep.templates.draws import Draws
from data_prep.templates.modes import INVERTIBLE, WITHOUT_ANSWERS, Mode, Stage, Turn, lay_out, mode_of
from data_prep.templates.options import list_options
from data_prep.templates.parts import Piece, fill, joined, spans_of, template
from data_prep.templates.styles import Styles


@dataclass(frozen=True, slots=True)
class Rendered:
    """A training text, the mode it has, and what `summary.json` counts of it."""

    text: TrainingText
    mode: Mode
    inverted: bool
    counts: Counter[str]


def render_chain(chain: Chain, styles: Styles, settings: RenderSettings) -> list[Rendered]:
    """The training texts of a chain in the layout of the settings; none that would be empty."""
    books = {"open_book": (True,), "closed_book": (False,), "both": (True, False)}[settings.layout]
    documents = (_document(chain, styles, settings, with_text) for with_text in books)
    return [document for document in documents if document.text.text]


def _document(chain: Chain, styles: Styles, settings: RenderSettings, with_text: bool) -> Rendered:
    """One training text; spans cover it without gap."""
    book = "open_book" if with_text else "closed_book"
    identifier = chain.id if with_text else f"{chain.id}:closed_book"
    draws = Draws(settings.seed, identifier)
    mode = mode_of(chain, settings.mode, draws)
    inverted = with_text and mode in INVERTIBLE and draws.below("inversion", settings.inversion)
    delimiter = draws.choose("delimiter", styles.lists["spacing.delimiters"])[0]
    said = [styles.name, book, mode, *(["inverted"] if inverted else []), str(draws)]
    names, groups = [" ".join(said)], []
    counts: Counter[str] = Counter({f"{book}_documents": 1})
    first_pair = 0
    for origin, text in enumerate(chain.texts):
        if not with_text and not text.pairs:
            continue
        text_draws = Draws(settings.seed, f"{text.document_id}:{text.start}" + ("" if with_text else ":closed_book"))
        gap = template(text_draws.choose("gap", styles.lists["spacing.gaps"])[0])
        stage = Stage(styles, text_draws, with_text, inverted, gap)
        turns = [
            _turn(pair, place, first_pair + place, stage, settings, counts) for place, pair in enumerate(text.pairs)
        ]
        groups.append(lay_out(Piece("text", text.text, origin), turns, mode, stage))
        names.append(str(text_draws))
        first_pair += len(turns)
    counts["answers_lost"] += first_pair if mode in WITHOUT_ANSWERS else 0
    pieces = joined(groups, delimiter)
    joint = "".join(piece.text for piece in pieces)
    spans = spans_of(pieces)
    places = {span.of: span.start for span in reversed(spans) if span.kind == "text"}
    origins = tuple(origin_of(text, places.get(number, -1)) for number, text in enumerate(chain.texts))
    written = TrainingText(identifier, joint, origins, "; ".join(names), settings.seed, spans)
    return Rendered(written, mode, inverted, counts)


def origin_of(text: AugmentedText, at: int) -> Origin:
    """Where a text of a chain is from, where it stands in the training text, and what its pairs passed."""
    checks = tuple(" ".join(pair.checks) for pair in text.pairs)
    return Origin(text.document_id, text.source, text.start, text.start + len(text.text), checks, at)


def pair_kind(pair: Pair) -> str:
    """The list of styles that fits a pair."""
    if pair.options:
        return "options_rationale" if pair.rationale else "options"
    return "rationale" if pair.rationale else "free"


def stem_of(pair: Pair) -> str:
    """The question without what a style brings itself: its options, and its "Let's think" line."""
    stem = pair.question.removesuffix(THINK_LINE).rstrip() if pair.rationale else pair.question
    if pair.options:
        stem = split_question(stem)[0]
    return stem or pair.question


def _turn(pair: Pair, place: int, of: int, stage: Stage, settings: RenderSettings, counts: Counter[str]) -> Turn:
    """A pair in the style that its text has for pairs of its kind."""
    kind = pair_kind(pair)
    lists = (f"{kind}.anywhere", f"{kind}.with_text") if stage.with_text else (f"{kind}.anywhere",)
    ask, reply = stage.choose(kind, *lists)
    values = {"question": Piece("question", stem_of(pair), of), "answer": Piece("answer", pair.answer, of)}
    if pair.options:
        pair_draws = Draws(settings.seed, f"{stage.draws.identifier}:{place}")
        listed = list_options(pair, stage.styles, stage.draws, pair_draws, settings.unanswerable)
        values["options"] = Piece("question", listed.block, of)
        values["answer"] = Piece("answer", listed.answer, of)
        counts["unanswerable_options"] += listed.added
        counts["questions_in_order"] += listed.in_order
    return Turn(place + 1, fill(ask, values), fill(reply, values), bool(pair.options))

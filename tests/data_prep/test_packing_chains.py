"""Policy chains: no pair without its text, nothing lost uncounted, whatever the lengths."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_dataset import save_tokenizer, training_text, write_rows

from data_prep.errors import UserError
from data_prep.indexing import index
from data_prep.indexing.spans import CLASSES, Runs, SpansReader, SpansWriter
from data_prep.packing import PackSpec, PackTable, open_pack, pack
from data_prep.packing.chains import LONG_PAIR, ONE_TOKEN, PAIRS_OF_LONG_TEXT, PAIRS_UNTOLD, ChainPacker
from data_prep.packing.pair_order import PairOrder
from data_prep.packing.table import PackWriter
from data_prep.records import AugmentedText, Chain, Pair
from data_prep.settings import IndexSettings


@dataclass(frozen=True)
class Made:
    """A document: runs of (class, of, length), and which text each pair is about (none where texts are not shown).

    `pairs_first`: each text's pairs stand before it.
    """

    runs: tuple[tuple[str, int, int], ...]
    text_of: dict[int, int]
    pairs_first: bool = False

    @property
    def length(self) -> int:
        return sum(length for _, _, length in self.runs)

    def tokens(self, kinds: set[str], of: int) -> set[int]:
        found, start = set[int](), 0
        for kind, number, length in self.runs:
            if kind in kinds and number == of:
                found |= set(range(start, start + length))
            start += length
        return found


@st.composite
def documents(draw: st.DrawFn) -> Made:
    """Texts with pairs, as the modes lay them out: in order or inverted, questions apart, or without the texts."""
    kind = draw(st.sampled_from(["open", "open", "inverted", "numbered", "closed"]))
    size = st.integers(1, 12)
    runs, text_of, pair = [("control", -1, 1)], dict[int, int](), 0
    for text in range(draw(st.integers(1, 4))):
        count = draw(st.integers(0, 4))
        body, last = list[tuple[str, int, int]](), list[tuple[str, int, int]]()
        for _ in range(count):
            asked = [("template", -1, draw(st.integers(1, 3))), ("question", pair, draw(size))]
            answered = [("template", -1, 1), ("answer", pair, draw(size))]
            body += asked if kind == "numbered" else asked + answered
            last += answered if kind == "numbered" else []
            text_of |= {} if kind == "closed" else {pair: text}
            pair += 1
        shown = [] if kind == "closed" else [("text", text, draw(st.integers(1, 40)))]
        runs += [*body, *last, *shown] if kind == "inverted" else [*shown, *body, *last]
        runs += [("template", -1, 1)]
    runs += [("control", -1, 1)]
    return Made(tuple(runs), text_of, kind == "inverted")


def packed(
    folder: Path, made: list[Made], seq_length: int, window: int, fill: bool = True, told: bool = True
) -> PackTable:
    """The table of documents, through files of spans and of the table; `told` which of them have their pairs first."""
    pairs_first = np.array([number for number, document in enumerate(made) if document.pairs_first], np.int64)
    with SpansWriter(folder / "d") as spans:
        for document in made:
            ends = np.cumsum([length for _, _, length in document.runs])
            of = [number for _, number, _ in document.runs]
            classes = [CLASSES.index(kind) for kind, _, _ in document.runs]
            spans.add(Runs(np.array([len(ends)]), ends.astype("<i4"), np.array(of, "<i4"), np.array(classes, "u1")))
        spans.finish()
        spans.commit()
    lengths = np.array([document.length for document in made])
    order = PairOrder(pairs_first) if told else None
    with PackWriter(folder / "d.pack") as writer:
        packer = ChainPacker(seq_length, SpansReader(folder / "d"), writer, window, 3 * fill, order)
        packer.add([(np.arange(len(made)), lengths)])
        writer.finish(packer.finish())
    return open_pack(folder / "d.pack", check_bytes=True)


def sequences(table: PackTable) -> list[Counter[tuple[int, int]]]:
    """The (document, token) of each sequence."""
    found = []
    for number in range(table.sequences):
        pieces = table.pieces(number)
        found.append(Counter((p.document, p.offset + i) for p in pieces for i in range(p.length)))
    return found


@settings(deadline=None)
@given(st.lists(documents(), min_size=1, max_size=12), st.integers(4, 80), st.integers(1, 5), *[st.booleans()] * 2)
def test_no_pair_stands_without_its_text_and_nothing_is_lost_uncounted(made, seq_length, window, fill, told) -> None:
    with TemporaryDirectory() as folder:
        table = packed(Path(folder), made, seq_length, window, fill, told)
    there = sequences(table)
    assert all(sum(sequence.values()) <= seq_length + 1 for sequence in there)
    everywhere = sum(there, Counter())
    missing = 0
    for number, document in enumerate(made):
        assert all(token < document.length for d, token in everywhere if d == number)
        texts = {of for kind, of, _ in document.runs if kind == "text"}
        tokens_of_text = {of: document.tokens({"text"}, of) for of in texts}
        for tokens in tokens_of_text.values():
            assert all(everywhere[number, token] for token in tokens)  # no text is lost
        for pair in {of for kind, of, _ in document.runs if kind in ("question", "answer")}:
            tokens = document.tokens({"question", "answer"}, pair)
            holders = [sequence for sequence in there if any((number, token) in sequence for token in tokens)]
            missing += not holders
            assert len(holders) <= 1
            needed = tokens | tokens_of_text.get(document.text_of.get(pair, -1), set())
            assert all(sequence[number, token] for sequence in holders for token in needed)
    report = table.report
    assert sum(report.dropped.get(reason, 0) for reason in (LONG_PAIR, PAIRS_OF_LONG_TEXT, PAIRS_UNTOLD)) == missing
    assert not (told and report.dropped.get(PAIRS_UNTOLD))
    assert report.tokens == everywhere.total()
    assert report.padding == table.sequences * (seq_length + 1) - report.tokens
    holders = Counter(d for sequence in there for d in {d for d, _ in sequence})
    assert report.documents == len(holders)
    assert report.cut_documents >= sum(count > 1 for count in holders.values())


def test_a_text_with_too_many_pairs_is_repeated_before_the_rest(tmp_path: Path) -> None:
    pairs = [("question", 0, 3), ("answer", 0, 2), ("question", 1, 4), ("answer", 1, 1), ("question", 2, 5)]
    made = [Made((("text", 0, 10), *pairs, ("answer", 2, 1), ("control", -1, 1)), {0: 0, 1: 0, 2: 0})]
    table = packed(tmp_path, made, 19, 1)
    found = [[(piece.offset, piece.length) for piece in table.pieces(number)] for number in range(2)]
    assert sorted(found) == [[(0, 10), (20, 7)], [(0, 20)]]
    assert (table.report.repeated_tokens, table.report.cut_documents) == (10, 1)


def test_questions_apart_from_their_answers_are_taken_together(tmp_path: Path) -> None:
    runs = [("text", 0, 4), ("question", 0, 3), ("question", 1, 3), ("answer", 0, 2), ("answer", 1, 2)]
    table = packed(tmp_path, [Made(tuple(runs), {0: 0, 1: 0})], 9, 1)
    found = [[(piece.offset, piece.length) for piece in table.pieces(number)] for number in range(2)]
    assert sorted(found) == [[(0, 4), (7, 3), (12, 2)], [(0, 7), (10, 2)]]


def test_raw_text_longer_than_a_sequence_has_each_label_once(tmp_path: Path) -> None:
    table = packed(tmp_path, [Made((("text", 0, 100),), {}), Made((("text", 0, 1),), {})], 16, 3)
    labels = Counter(p.offset + i for n in range(table.sequences) for p in table.pieces(n) for i in range(1, p.length))
    assert labels == Counter(range(1, 100))
    assert table.report.dropped == {ONE_TOKEN: 1}


def test_filling_takes_whole_texts_of_the_next_document(tmp_path: Path) -> None:
    """Of two texts with a pair each, 8 + 8 tokens, the first fills what a document of 20 leaves of 28."""
    two = Made(tuple((kind, of, 4) for of in (0, 1) for kind in ("text", "question")), {0: 0, 1: 1})
    made = [Made((("text", 0, 20),), {}), Made((("text", 0, 17),), {}), two]
    filled, bare = (packed(tmp_path, made, 27, 3, fill) for fill in (True, False))
    found = [[(p.document, p.offset, p.length) for p in filled.pieces(n)] for n in range(filled.sequences)]
    assert found == [[(0, 0, 20), (2, 0, 8)], [(2, 8, 8), (1, 0, 17)]]
    assert bare.sequences == 3
    assert (filled.report.cut_documents, bare.report.cut_documents) == (1, 0)


def of_units(*lengths: int) -> Made:
    """A document of texts with a question of one token each."""
    runs = [
        (kind, of, size) for of, length in enumerate(lengths) for kind, size in (("text", length - 1), ("question", 1))
    ]
    return Made(tuple(runs), {of: of for of in range(len(lengths))})


def test_the_oldest_stays_whole_where_a_beginning_of_another_fits_beside_it(tmp_path: Path) -> None:
    table = packed(tmp_path, [of_units(10, 10), of_units(8, 14)], 27, 2)
    found = [[(p.document, p.offset, p.length) for p in table.pieces(n)] for n in range(table.sequences)]
    assert found == [[(0, 0, 20), (1, 0, 8)], [(1, 8, 14)]]
    assert table.report.cut_documents == 1


def test_a_document_that_is_cut_again_is_counted_once(tmp_path: Path) -> None:
    """The first text fills what 18 of 28 tokens leave; nothing fits beside the other two, so that they are cut too."""
    table = packed(tmp_path, [of_units(18), of_units(10, 12, 5), of_units(25)], 27, 3)
    found = [[(p.document, p.offset, p.length) for p in table.pieces(n)] for n in range(table.sequences)]
    assert found == [[(0, 0, 18), (1, 0, 10)], [(1, 10, 12), (1, 22, 5)], [(2, 0, 25)]]
    assert table.report.cut_documents == 1


def test_through_rendering_and_indexing(tmp_path: Path) -> None:
    save_tokenizer(tmp_path / "tokenizer")
    chains = [
        Chain(f"c{n}", tuple(AugmentedText(f"{n}:{i}", "Die Wand. " * (3 + n % 5), (Pair("Was?", "Das."),) * 3)
                             for i in range(3)))
        for n in range(40)
    ]  # fmt: skip
    rows = [training_text(chain, seed=1).to_json() for chain in chains]
    source = write_rows(tmp_path / "c.jsonl", rows)
    manifest = index(IndexSettings(encoder="tokenizers"), [source], tmp_path / "tokenizer", tmp_path / "d")
    table = pack(tmp_path / "d", manifest, PackSpec(120, 1, "chains"))
    spans = SpansReader(tmp_path / "d")
    seen = 0
    for number in range(table.sequences):
        there = {(p.document, p.offset + i) for p in table.pieces(number) for i in range(p.length)}
        for document in {d for d, _ in there}:
            runs = list(spans.document(document))
            texts = {of: set(range(start, stop)) for start, stop, kind, of in runs if kind == "text"}
            for start, stop, kind, of in runs:
                if kind == "answer" and (document, start) in there:
                    seen += 1
                    needed = texts[of // 3] | set(range(start, stop))
                    assert all((document, token) in there for token in needed)
    assert seen + table.report.dropped.get(LONG_PAIR, 0) == 40 * 9
    plain = pack(tmp_path / "d", manifest, PackSpec(120, 1))
    assert plain.path != table.path


def test_a_dataset_whose_classes_were_not_recorded_is_refused(tmp_path: Path) -> None:
    save_tokenizer(tmp_path / "tokenizer")
    chain = Chain("c", (AugmentedText("t", "Die Wand.", (Pair("Was?", "Das."),)),))
    source = write_rows(tmp_path / "c.jsonl", [training_text(chain, seed=1).to_json()])
    settings = IndexSettings(encoder="tokenizers", spans=False)
    manifest = index(settings, [source], tmp_path / "tokenizer", tmp_path / "d")
    with pytest.raises(UserError, match=r"indexed without spans.*; index it again with spans, or pack it"):
        pack(tmp_path / "d", manifest, PackSpec(32, 1, "chains"))

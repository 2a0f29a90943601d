"""`trace` against the raw texts themselves: chains, checked, laid out, indexed, and led back token by token."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_dataset import BOS, EOD, save_tokenizer, training_text, write_rows
from tokenizers import Tokenizer

from data_prep.checks import check
from data_prep.errors import UserError
from data_prep.indexing import index
from data_prep.indexing.reader import IndexedDatasetReader
from data_prep.indexing.trace import Trace, trace
from data_prep.readers import read_chains
from data_prep.records import AugmentedText, Chain, Pair, TrainingText
from data_prep.settings import CheckSettings, IndexSettings

RAW = {
    "cell": "Die Zelle teilt sich alle 🙂 Tage.",
    "bees": "Wer Bienen hält, hat Honig. Der Imker\nMüller hält sie im Dorf. Dort wachsen Linden.",
    "short": "Der Weg ist das Ziel.",
}


def chains() -> list[Chain]:
    piece = RAW["bees"][28:62]
    bees = AugmentedText(
        "bees",
        piece,
        (Pair("Wer hält sie?", "Der Imker\nMüller hält sie."), Pair("Wo?", "Auf dem Mond.")),
        28,
        62,
        "farm",
    )
    cells = (Pair("Was teilt sich?", "Die Zelle teilt sich."),)
    cell = AugmentedText("cell", RAW["cell"], cells, source="wiki")
    cell_again = AugmentedText("cell", RAW["cell"], (Pair("Wie oft?", "Alle 🙂 Tage."),), source="wiki")
    other = AugmentedText("bees", piece, (Pair("Wo hält der Imker sie?", "Im Dorf."),), 28, 62, "farm")
    return [Chain("first", (cell, bees)), Chain("second", (other,)), Chain("third", (cell_again,))]


# What stands before the texts of each chain: a token reaches over the first border only.
LEADS = ("Read: ", "", "Read:\n")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[TrainingText]]:
    """(prefix, tokenizer, training texts): two chains and a raw document, BOS and EOD around each."""
    folder = tmp_path_factory.mktemp("trace")
    tokenizer = save_tokenizer(folder / "tokenizer")
    write_rows(folder / "chains.jsonl", [chain.to_json() for chain in chains()])
    check(CheckSettings(), folder / "chains.jsonl", folder / "checked.jsonl")
    texts = [
        training_text(chain, lead=lead)
        for chain, lead in zip(read_chains(folder / "checked.jsonl"), LEADS, strict=True)
    ]
    rows = [text.to_json() for text in texts] + [{"id": "short", "text": RAW["short"], "source": "wiki"}]
    index(
        IndexSettings(prepend_bos=True, encoder="tokenizers"),
        [write_rows(folder / "in.jsonl", rows)],
        tokenizer,
        folder / "d",
    )
    return folder / "d", tokenizer, texts


def offsets(tokenizer: Path, text: str) -> list[tuple[int, int]]:
    """Characters of each token, by the tokenizers library."""
    return Tokenizer.from_file(str(tokenizer / "tokenizer.json")).encode(text, add_special_tokens=False).offsets


def test_each_token_leads_back_to_its_characters(made: tuple[Path, Path, list[TrainingText]]) -> None:
    prefix, tokenizer, texts = made
    reader = IndexedDatasetReader(prefix)
    seen: set[str] = set()
    for number, text in enumerate(texts):
        first = reader.first_token(number)
        for place, (start, _) in enumerate(offsets(tokenizer, text.text)):
            found = trace(prefix, first + 1 + place, tokenizer_dir=tokenizer).token
            (span,) = [span for span in text.spans if span.start <= start < span.end]
            assert found is not None
            seen.add(found.kind)
            assert (found.kind, found.place) == (span.kind, place + 1)
            assert found.pair == (span.of if span.kind in ("question", "answer") else -1)
            if span.kind != "text":
                assert found.character is None
                continue
            origin = text.origins[span.of]
            assert found.character is not None and found.exact and found.origin == span.of
            raw = RAW[origin.document_id]
            expected = origin.start + start - span.start
            assert found.character == expected
            assert found.text is not None
            spelled = found.text.split("\n\n")[0]
            assert "\ufffd" in spelled or raw.startswith(spelled[: len(raw) - expected], expected)
    assert seen == {"text", "question", "answer", "template"}


def test_a_raw_document_is_exact(made: tuple[Path, Path, list[TrainingText]]) -> None:
    prefix, tokenizer, texts = made
    first = IndexedDatasetReader(prefix).first_token(len(texts))
    for place, (start, end) in enumerate(offsets(tokenizer, RAW["short"])):
        found = trace(prefix, first + 1 + place, tokenizer_dir=tokenizer)
        assert found.token is not None
        assert (found.token.character, found.token.exact, found.token.text) == (start, True, RAW["short"][start:end])
        assert (found.id, found.template, found.seed, found.pairs) == ("short", "", None, [])
        estimate = trace(prefix, first + 1 + place).token
        assert estimate is not None and estimate.character is not None
        assert (estimate.exact, estimate.text) == (False, None)
        assert abs(estimate.character - start) <= 3


def test_the_document_its_pairs_and_their_checks(made: tuple[Path, Path, list[TrainingText]]) -> None:
    prefix, tokenizer, _ = made
    found = trace(prefix, document=0, tokenizer_dir=tokenizer)
    assert (found.id, found.template, found.seed, found.source_file) == ("first", "plain/v1", 7, "in.jsonl")
    assert [(each.document_id, each.source, each.start, each.end) for each in found.origins] == [
        ("cell", "wiki", 0, len(RAW["cell"])),
        ("bees", "farm", 28, 62),
    ]
    checks = ("form", "length", "duplicates", "grounding", "degenerate")
    assert [(pair.origin, pair.question, pair.answer, pair.checks) for pair in found.pairs] == [
        (0, "Was teilt sich?", "Die Zelle teilt sich.", checks),
        (1, "Wer hält sie?", "Der Imker\nMüller hält sie.", checks),
    ]
    assert sum(found.tokens_by_class.values()) == found.tokens == len(IndexedDatasetReader(prefix).document(0))
    without = trace(prefix, document=0)
    assert [pair.answer for pair in without.pairs] == [None, None]
    assert without.pairs[0].answer_tokens > 10


def test_bos_eod_and_the_edges(made: tuple[Path, Path, list[TrainingText]]) -> None:
    prefix, tokenizer, _ = made
    tokens = IndexedDatasetReader(prefix).tokens

    def at(token: int) -> tuple[int, int, str, str | None]:
        found: Trace = trace(prefix, token, tokenizer_dir=tokenizer)
        assert found.token is not None and found.token.number == token
        return found.document, found.token.id, found.token.kind, found.token.text

    second = IndexedDatasetReader(prefix).first_token(1)
    assert at(0) == (0, BOS, "control", "<s>")
    assert at(second - 1) == (0, EOD, "control", "<|end|>")
    assert at(second) == (1, BOS, "control", "<s>")
    assert at(tokens - 1) == (3, EOD, "control", "<|end|>")
    for outside in (-1, tokens, 1 << 70):
        with pytest.raises(UserError, match=rf"d\.bin: there is no token {outside}: .* from 0 to {tokens - 1}"):
            trace(prefix, outside)
    with pytest.raises(UserError, match="there is no document 4: they are numbered from 0 to 3"):
        trace(prefix, document=4)
    for neither_or_both in ({}, {"token": 1, "document": 1}):
        with pytest.raises(UserError, match="give --token N or --document N"):
            trace(prefix, **neither_or_both)


def test_another_tokenizer_is_refused(made: tuple[Path, Path, list[TrainingText]], tmp_path: Path) -> None:
    prefix, _, _ = made
    other = save_tokenizer(tmp_path)
    path = other / "tokenizer.json"
    path.write_text(path.read_text().replace('"ĠW"', '"ĠX"').replace('"W"', '"X"', 1))
    with pytest.raises(UserError, match="was written with another tokenizer"):
        trace(prefix, 0, tokenizer_dir=other)


def test_without_a_lineage_nothing_leads_back(tmp_path: Path, write_dataset) -> None:
    write_dataset(tmp_path / "d", [[1, 2, 0]])
    with pytest.raises(UserError, match="no lineage table"):
        trace(tmp_path / "d", 0)

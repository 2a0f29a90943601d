"""Each mistake that a blend file may hold is warned of or refused, and let pass where it is said to be meant."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from small_dataset import save_tokenizer, training_text, write_rows

from data_prep.blend import PlanTable, plan
from data_prep.blend.copies import count_common, count_texts
from data_prep.errors import UserError
from data_prep.indexing import index
from data_prep.records import AugmentedText, Chain, Pair
from data_prep.settings import BlendSettings, IndexSettings

TEXT = "A hive has one queen. She lays all the eggs, and the others feed them."


def documents(*numbers: int, source: str = "farm") -> Iterable[dict[str, Any]]:
    return (
        {"id": f"d{number}", "source": source, "text": f"{number}: {TEXT * (number % 5 + 1)}"} for number in numbers
    )


def chains(*texts: tuple[int, int, int]) -> Iterable[dict[str, Any]]:
    """Two texts a chain, each characters [start, end) of document d<number>."""
    pairs = (Pair("Who lays the eggs?", "The queen."),)
    made = [AugmentedText(f"d{n}", TEXT, pairs, start, end, "farm") for n, start, end in texts]
    for place in range(0, len(made), 2):
        yield training_text(Chain(f"c{place}", tuple(made[place : place + 2]))).to_json()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("data")
    tokenizer = save_tokenizer(found / "tokenizer")
    rows = {
        "web": documents(*range(20)),
        "apart": chains(*((number, 0, -1) for number in range(20, 28))),
        "copy": chains((3, 0, -1), (21, 0, -1), (4, 0, -1), (4, 10, 20)),
        "first_half": chains((30, 0, 40), (31, 0, 40)),
        "second_half": ({**next(iter(documents(30))), "origins": origin(30, 40, 90)} for _ in range(1)),
        "elsewhere": documents(*range(20, 28), source="another farm"),
        "held_out": documents(5, 6, 40),
        "held_out_copy": documents(22),
        "held_out_apart": documents(50, 51),
        "long": documents(*[104, 109, 114, 119] * 1),
        "short": documents(*range(100, 145, 5)),
    }
    for name, lines in rows.items():
        settings = IndexSettings(tokenizer=tokenizer, encoder="tokenizers")
        index(settings, [write_rows(found / f"{name}.jsonl", list(lines))], tokenizer, found / name)
    return found


def origin(number: int, start: int, end: int) -> list[dict[str, Any]]:
    checks: list[str] = []
    return [{"document_id": f"d{number}", "source": "farm", "start": start, "end": end, "checks": checks, "at": 0}]


def planned(folder: Path, sources: dict[str, dict[str, Any]], **changes: Any) -> PlanTable:
    filled = {name: {"prefix": name, **source} for name, source in sources.items()}
    return plan(BlendSettings(sources=filled, seq_length=32, **changes), folder / "out", folder)


RAW, AUGMENTED = {"weight": 1}, {"weight": 1, "kind": "augmented"}


def test_texts_are_counted_once_and_by_where_they_stand(folder: Path) -> None:
    counts = {name: count_texts(folder / name) for name in ("web", "apart", "copy")}
    assert counts == {"web": 20, "apart": 8, "copy": 4}
    # d3, d4 and a stretch of it; d21; halves of one document; the same ids of another corpus
    expected = {("web", "copy"): 3, ("apart", "copy"): 1, ("first_half", "second_half"): 0, ("apart", "elsewhere"): 0}
    for (one, other), common in expected.items():
        found = {count_common(folder / one, folder / other), count_common(folder / other, folder / one)}
        assert found == {common}


def test_raw_text_and_its_augmented_copy_are_not_both_drawn(folder: Path) -> None:
    with pytest.raises(UserError, match="sources 'web' and 'copy': 3 raw texts stand in both: the same text twice"):
        planned(folder, {"web": RAW, "copy": AUGMENTED})
    assert planned(folder, {"web": RAW, "apart": AUGMENTED}).notes == ()
    assert planned(folder, {"second_half": RAW, "first_half": AUGMENTED}).notes == ()
    (note,) = planned(folder, {"web": RAW, "copy": AUGMENTED}, allow=("copies",)).notes
    assert note.startswith("'web' and 'copy'")


def test_a_copy_that_is_declared_needs_no_lineage(folder: Path) -> None:
    with pytest.raises(UserError, match="'apart' is a copy of 'web', and both are drawn"):
        planned(folder, {"web": RAW, "apart": {**AUGMENTED, "copy_of": "web"}})


def test_one_dataset_under_two_names_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="sources 'web' and 'again': are one dataset under two names"):
        planned(folder, {"web": RAW, "again": {**RAW, "prefix": "web"}})


@pytest.mark.parametrize(
    ("held_out", "told"),
    [
        ("held_out", "2 of its texts stand in the source 'web' .raw."),
        ("held_out_copy", "1 of its texts stand in the source 'apart' .augmented."),
        ("web", "20 of its texts stand in the source 'web'"),
    ],
)
def test_held_out_text_is_not_trained_on(folder: Path, held_out: str, told: str) -> None:
    sources = {"web": RAW, "apart": AUGMENTED}
    with pytest.raises(UserError, match=f"held_out.news: {told}"):
        planned(folder, sources, held_out={"news": held_out})
    assert planned(folder, sources, held_out={"news": held_out}, allow=("held_out",)).notes
    assert planned(folder, sources, held_out={"news": "held_out_apart"}).notes == ()


def test_held_out_text_is_tokenized_alike(folder: Path, write_dataset: Any) -> None:
    write_dataset(folder / "foreign", [[1, 2, 0]] * 30)
    with pytest.raises(UserError, match=r"held_out\.news: was tokenized unlike the sources"):
        planned(folder, {"web": RAW}, held_out={"news": "foreign"})


def test_weights_of_documents_are_told_from_those_of_tokens(folder: Path) -> None:
    """4 documents of 5 texts, 9 of one."""
    (note,) = planned(folder, {"long": {"weight": 4}, "short": {"weight": 9}}).notes
    assert "the weights are those of the documents, and they count tokens" in note
    assert planned(folder, {"long": {"weight": 4}, "short": {"weight": 9}}, unit="documents").notes == ()
    assert planned(folder, {"long": {"weight": 4}, "short": {"weight": 8}}).notes == ()


def test_weights_of_two_scales_are_refused_in_a_phase_and_told_over_phases(folder: Path) -> None:
    mixed = {"web": {"weight": 70}, "apart": {**AUGMENTED, "weight": 30}, "elsewhere": {"weight": 1}}
    with pytest.raises(UserError, match="the weights of web, apart sum to 100, those of elsewhere to 1"):
        planned(folder, mixed)
    planned(folder, mixed, allow=("scales",))
    two = {"web": {"weight": 70}, "apart": {**AUGMENTED, "weight": 30}}
    later = [{"from_tokens": 3200, "sources": {"web": {"weight": 0.6}, "apart": {"weight": 0.4}}}]
    (note,) = planned(folder, two, phases=later).notes
    assert note == "weights of phase 2 sum to 1, those of phase 1 to 100; each phase is normalised by itself"


def test_repeats_are_flagged_then_refused_and_a_source_may_have_its_own_limit(folder: Path) -> None:
    sources = {"web": RAW, "apart": AUGMENTED}
    epoch = planned(folder, sources).rows[1].sequences

    def after(epochs: float, **own: Any) -> tuple[str, ...]:
        samples = round(2 * epochs * epoch)
        table = planned(
            folder, {"web": {**RAW, "max_epochs": 99}, "apart": {**AUGMENTED, **own}}, train_samples=samples
        )
        return table.rows[1].flags

    assert after(3.9) == ()
    assert after(5) == ("5.00 epochs, more than max_epochs 4",)
    with pytest.raises(UserError, match=r"sources.apart: 17\.\d\d epochs, more than refuse_epochs 16"):
        after(17.5)
    assert after(17.5, max_epochs=20) == ()
    with pytest.raises(UserError, match=r"3\.\d\d epochs, more than sources.apart.max_epochs 2"):
        after(3.5, max_epochs=2)


def test_a_source_shorter_than_a_sequence_is_refused(folder: Path, write_dataset: Any) -> None:
    write_dataset(folder / "tiny", [[1, 2, 0]])
    with pytest.raises(UserError, match=r"sources.tiny: 3 tokens, shorter than a sequence and its label \(33\)"):
        planned(folder, {"tiny": RAW})
    (row,) = planned(folder, {"tiny": RAW}, allow=("short_source",)).rows
    assert row.flags == ("under one sequence: 3 tokens of 33, the rest is padding",)

"""Each mistake that a blend file may hold is warned of or refused, and let pass where it is said to be meant."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_dataset import save_tokenizer, training_text, vouch, write_rows

from data_prep.blend import PlanTable, plan
from data_prep.blend.copies import count_common, count_texts
from data_prep.errors import UserError
from data_prep.indexing import index
from data_prep.indexing.layout import lineage_path
from data_prep.indexing.lineage import read_lineage
from data_prep.manifest import read_manifest
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
        "closed_book": ({**next(iter(documents(n))), "id": f"c{n}", "origins": origin(n, 0, 40, -1)} for n in (60, 61)),
        "to_its_end": ({**next(iter(documents(n))), "origins": origin(n, 10, 90)} for n in (30, 31)),
        "web_in_part": documents(0, 1, 2, 70),
        "augmented_in_part": chains((20, 0, -1), (21, 0, -1)),
        "long": documents(*[104, 109, 114, 119] * 1),
        "short": documents(*range(100, 145, 5)),
    }
    for name, lines in rows.items():
        settings = IndexSettings(tokenizer=tokenizer, encoder="tokenizers")
        index(settings, [write_rows(found / f"{name}.jsonl", list(lines))], tokenizer, found / name)
    forget_ends(found / "to_its_end")
    return found


def forget_ends(prefix: Path) -> None:
    """As a dataset was written before ends were known."""
    table = read_lineage(prefix)
    rows = [[{**origin, "end": -1} for origin in origins] for origins in table["origins"].to_pylist()]
    place = table.schema.get_field_index("origins")
    field = table.schema.field(place)
    pq.write_table(table.set_column(place, field, pa.array(rows, field.type)), lineage_path(prefix))
    vouch(prefix)


def origin(number: int, start: int, end: int, at: int = 0) -> list[dict[str, Any]]:
    checks: list[str] = []
    return [{"document_id": f"d{number}", "source": "farm", "start": start, "end": end, "checks": checks, "at": at}]


def planned(folder: Path, sources: dict[str, dict[str, Any]], **changes: Any) -> PlanTable:
    filled = {name: {"prefix": name, **source} for name, source in sources.items()}
    return plan(BlendSettings(sources=filled, seq_length=32, **changes), folder / "out", folder)


RAW, AUGMENTED = {"weight": 1}, {"weight": 1, "kind": "augmented"}


def test_texts_are_counted_once_and_by_where_they_stand(folder: Path) -> None:
    counts = {name: count_texts(folder / name) for name in ("web", "apart", "copy", "closed_book")}
    assert counts == {"web": 20, "apart": 8, "copy": 4, "closed_book": 0}
    # d3, d4 and a stretch of it; d21; halves of one document; the same ids of another corpus
    expected = {("web", "copy"): 3, ("apart", "copy"): 1, ("first_half", "second_half"): 0, ("apart", "elsewhere"): 0}
    # both halves of d30 lie behind character 10, of which the end is not known; a closed book holds none of its texts
    expected |= {("to_its_end", "first_half"): 2, ("to_its_end", "second_half"): 1, ("closed_book", "closed_book"): 0}
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


def test_text_that_a_closed_book_asks_about_is_not_held_out(folder: Path, write_dataset: Any) -> None:
    write_rows(folder / "asked.jsonl", list(documents(60, 80)))
    settings = IndexSettings(tokenizer=folder / "tokenizer", encoder="tokenizers")
    index(settings, [folder / "asked.jsonl"], folder / "tokenizer", folder / "asked")
    sources = {"closed_book": AUGMENTED}
    with pytest.raises(UserError, match=r"held_out.news: 1 of its texts stand in the source 'closed_book' .augmented."):
        planned(folder, sources, held_out={"news": "asked"})
    # As text it stands once.
    assert planned(folder, {"asked": RAW, **sources}).notes == ()


def test_what_has_no_lineage_is_said_not_to_be_checked(folder: Path, write_dataset: Any) -> None:
    known = read_manifest(folder / "web").tokenizer
    for number, name in enumerate(("foreign_one", "foreign_two", "foreign_held_out"), 5):
        write_dataset(folder / name, [[*[number] * 40, 0]] * 3, **known.model_dump())
    one = {"foreign_one": RAW}
    assert planned(folder, {"web": RAW, **one}).notes == (
        "whether a text stands in two sources could not be checked: 'foreign_one' has no lineage",
    )
    assert (
        planned(folder, {"web": RAW, **one, "foreign_two": RAW})
        .notes[0]
        .endswith("checked: 'foreign_one', 'foreign_two' have no lineage")
    )
    unchecked = "held_out.news: whether its texts are trained on could not be checked:"
    for sources, held_out, told in (
        ({"web": RAW}, "foreign_held_out", "it has no lineage"),
        (one, "held_out", "'foreign_one' has no lineage"),
    ):
        assert planned(folder, sources, held_out={"news": held_out}).notes == (f"{unchecked} {told}",)
    with pytest.raises(UserError, match=r"held_out.news: 3 of its texts stand in the source 'foreign_one'"):
        planned(folder, one, held_out={"news": "foreign_one"})


def test_any_two_sources_are_compared(folder: Path) -> None:
    """Beside raw text and its augmented copy, that a text stands twice is worth a note."""
    for sources, told in (
        ({"web": RAW, "web_in_part": RAW}, "'web' and 'web_in_part': 3 raw texts"),
        ({"apart": AUGMENTED, "augmented_in_part": AUGMENTED}, "'apart' and 'augmented_in_part': 2 raw texts"),
        ({"web": RAW, "web_in_part": {"weight": 1, "kind": "general"}}, "'web' and 'web_in_part': 3 raw texts"),
    ):
        assert planned(folder, sources).notes == (f"{told} stand in both: the same text twice",)


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


@pytest.mark.parametrize(
    ("weights", "told"),
    [
        # 4 + 9 documents, 29 + 9 texts in them: 0.3077 and 0.6923
        ({"long": 0.31, "short": 0.69}, True),
        ({"long": 0.308, "short": 0.692}, True),
        ({"long": 31, "short": 69}, True),
        ({"long": 30.8, "short": 69.2}, True),
        ({"long": 0.24, "short": 0.53, "apart": 0.24}, True),  # 4, 9 and 4 documents
        ({"long": 0.32, "short": 0.68}, False),
        ({"long": 0.3, "short": 0.71}, False),
        ({"long": 0.3, "short": 0.7}, False),  # one digit tells nothing
        ({"long": 0.31, "short": 0.691}, False),
        ({"long": 3.1, "short": 6.9}, False),  # of no whole, and not in proportion
    ],
)
@pytest.mark.parametrize("unit", ["weight", "share"])
def test_rounded_counts_of_documents_are_told_too(folder: Path, weights: dict, told: bool, unit: str) -> None:
    if unit == "share" and abs(sum(weights.values()) - 1) > 1e-6:
        return
    sources = {name: {unit: amount} for name, amount in weights.items()}
    (*found,) = planned(folder, sources).notes
    expected = (
        f"phase 1: the {unit}s are those of the documents, and they count tokens; for documents say unit: documents"
    )
    assert found == [expected] * told
    assert planned(folder, sources, unit="documents").notes == ()


@pytest.mark.parametrize(
    ("weights", "documents", "lengths"),
    [
        ((0.31, 0.69), (31, 69), (40, 40)),
        ((0.31, 0.69), (31, 69), (40, 42)),
        ((0.01, 0.99), (10, 990), (35, 41)),  # of the tokens 0.0085, which is 0.01 too
    ],
)
def test_figures_that_are_those_of_the_tokens_too_need_no_unit(
    folder: Path, write_dataset: Any, weights: tuple, documents: tuple, lengths: tuple
) -> None:
    known, sources = read_manifest(folder / "web").tokenizer, {}
    for number, (weight, count, length) in enumerate(zip(weights, documents, lengths, strict=True), 3):
        name = f"of_{count}_{length}"
        write_dataset(folder / name, [[*[number] * length, 0]] * count, **known.model_dump())
        sources[name] = {"weight": weight}
    assert not [note for note in planned(folder, sources).notes if "documents" in note]


@pytest.mark.parametrize(
    ("weights", "told"),
    [
        ((60, 40, 0.2), "elsewhere 0.2 beside weights of apart, web, which sum to 100: of 1, or of 100?"),
        ((99, 1, 0.5), "elsewhere 0.5 beside weights of apart, web, which sum to 100"),
        ((100, 1, 0), "apart 1 beside weights of web, which sum to 100"),
        ((70, 30, 0.3), "elsewhere 0.3 beside"),
        ((99.5, 0.5, 0), ""),
        ((99, 0.6, 0.4), ""),
        ((66.6, 33.3, 0.1), ""),
        ((60, 40, 2), ""),
        ((3, 1, 0.5), ""),
    ],
)
def test_a_weight_of_1_or_less_beside_a_hundred_is_told(folder: Path, weights: tuple, told: str) -> None:
    names = ("web", "apart", "elsewhere")
    sources = {name: {"weight": weight} for name, weight in zip(names, weights, strict=True) if weight}
    found = planned(folder, sources).notes
    assert [note.startswith(f"phase 1: {told}") for note in found] == [True] * bool(told)
    assert planned(folder, sources, allow=("scales",)).notes == ()


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

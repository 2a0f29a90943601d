"""Amounts in four units and modes -> exact parts, against plain arithmetic; what contradicts itself is refused."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from data_prep.blend.amounts import mixes
from data_prep.blend.modes import Size, parts_of
from data_prep.errors import UserError
from data_prep.settings import BlendSettings, parse_count

SEQUENCES = {"web": 1000, "qa": 200, "tuning": 10}


def size(name: str, sequences: int, kind: Any = "raw", documents: int = 1, cap: int = 4, texts: int = 1) -> Size:
    return Size(name, kind, documents, sequences * 10, sequences, texts, Fraction(cap))


SIZES = [size(name, count) for name, count in SEQUENCES.items()]


def settings(**changes: Any) -> BlendSettings:
    return BlendSettings(**{"seq_length": 10, **changes})


def sources(**amounts: dict[str, Any]) -> dict[str, Any]:
    return {"sources": {name: amounts.get(name, {"weight": 0}) for name in SEQUENCES if name in amounts}}


def parts(length: int | None = 400, **amounts: dict[str, Any]) -> list[float]:
    sizes = [of for of in SIZES if of.name in amounts]
    found, _ = mixes(settings(train_samples=length, **sources(**amounts)), sizes)
    return [float(part) for part in found[0].parts]


@pytest.mark.parametrize(
    ("written", "count"),
    [("80B", 80 * 10**9), ("1.5T", 15 * 10**11), ("250M", 250_000_000), ("4k", 4000), (4096, 4096), ("1e9", 10**9)],
)
def test_counts_are_read_as_people_write_them(written: Any, count: int) -> None:
    assert parse_count(written) == count
    assert settings(**sources(web={"weight": 1}), train_tokens=written).train_tokens == count


@pytest.mark.parametrize("written", ["80G", "", "B", "0.5", "1.0000000001B", "nan", "inf", "-"])
def test_other_counts_are_refused(written: str) -> None:
    with pytest.raises(ValidationError, match="write it as"):
        settings(**sources(web={"weight": 1}), train_tokens=written)


def test_each_unit_gives_what_it_asks_for() -> None:
    assert parts(web={"weight": 3}, qa={"weight": 1}) == [0.75, 0.25]
    assert parts(web={"share": 0.9}, qa={"share": 0.1}) == [0.9, 0.1]
    # of 400 samples: one pass over 200 sequences is half, 2,000 tokens are 200 samples
    assert parts(web={"tokens": 2000}, qa={"epochs": 1}) == [0.5, 0.5]
    # 0.1 + 40/400 + 80/400 are fixed, the weight takes the rest
    assert parts(web={"weight": 7}, qa={"share": 0.1}, tuning={"epochs": 4}) == [0.8, 0.1, 0.1]


def test_tenths_are_exact() -> None:
    found, _ = mixes(settings(**sources(web={"weight": 0.7}, qa={"weight": 0.2}, tuning={"weight": 0.1})), SIZES)
    assert found[0].parts == (Fraction(7, 10), Fraction(2, 10), Fraction(1, 10))


def test_fixed_amounts_give_the_length_of_the_run() -> None:
    # an epoch of 1,000 sequences beside a share of a half: 2,000 samples
    chosen = settings(**sources(web={"epochs": 1}, qa={"share": 0.5}))
    found, samples = mixes(chosen, SIZES[:2])
    assert (samples, found[0].parts) == (2000, (Fraction(1, 2), Fraction(1, 2)))


@pytest.mark.parametrize(
    ("length", "amounts", "told"),
    [
        (400, {"web": {"share": 0.5}, "qa": {"share": 0.4}}, "add up to 90 %"),
        (400, {"web": {"epochs": 1}, "qa": {"epochs": 1}}, "add up to 1,200 of 400 samples"),
        (400, {"web": {"epochs": 1}, "qa": {"weight": 1}}, "take 250 % and leave nothing to the weights"),
        (None, {"web": {"epochs": 1}, "qa": {"weight": 1}}, "beside weights need the length"),
        (None, {"web": {"epochs": 1}, "qa": {"share": 1}}, "shares of 100 % leave nothing"),
    ],
)
def test_amounts_that_contradict_each_other_are_refused(length: int | None, amounts: dict, told: str) -> None:
    with pytest.raises(UserError, match=told):
        parts(length, **amounts)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"sources": {"web": {}}}, "sources.web: no weight, share, epochs or tokens"),
        ({"sources": {"web": {"weight": 0}}}, "sources.web.weight: 0 draws nothing"),
        ({"sources": {"web": {"weight": 1, "epochs": 1}}}, "weight and epochs are both given"),
        (
            {"sources": {"web": {"weight": 1}}, "mode": "uniform"},
            "mode uniform decides all amounts, and 'web' has weight",
        ),
        ({"sources": {"web": {}}, "mode": "temperature"}, "temperature goes with mode: temperature"),
        ({"sources": {"web": {}}, "mode": "uniform", "temperature": 2}, "temperature goes with mode: temperature"),
        ({"sources": {"web": {}}, "mode": "uniform", "unit": "documents"}, "unit: documents converts weights"),
        ({"sources": {"web": {}}, "mode": "uniform", "train_tokens": 9, "train_samples": 9}, "both given"),
    ],
)
def test_faults_of_form_are_told(changes: dict, told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        settings(**changes)


PHASES = {"sources": {"web": {"weight": 1}, "qa": {"weight": 0}}}


def test_phases_begin_at_the_first_sample_at_or_after_their_tokens() -> None:
    later = [{"from_tokens": 1001, "name": "anneal", "sources": {"web": {"weight": 1}, "qa": {"weight": 3}}}]
    found, _ = mixes(settings(**PHASES, phases=later, train_tokens=2000), SIZES[:2])
    assert [(mix.name, mix.first_sample, list(map(float, mix.parts))) for mix in found] == [
        ("phase 1", 0, [1, 0]),
        ("anneal", 101, [0.25, 0.75]),
    ]


def test_an_epoch_in_a_phase_is_one_of_that_phase() -> None:
    later = [{"from_tokens": 6000, "sources": {"web": {"weight": 1}, "qa": {"epochs": 1}}}]
    found, _ = mixes(settings(**PHASES, phases=later, train_tokens="10k"), SIZES[:2])
    assert list(map(float, found[1].parts)) == [0.5, 0.5]  # 200 of 400 samples


def test_a_phase_behind_the_end_is_refused() -> None:
    later = [{"from_tokens": 6000, "sources": {"qa": {"weight": 1}}}]
    with pytest.raises(UserError, match="phase 2: starts at sample 600, the run ends at 600"):
        mixes(settings(**PHASES, phases=later, train_tokens=6000), SIZES[:2])


def test_documents_are_converted_by_their_mean_length() -> None:
    # 100 documents of 100 tokens, 400 of 5
    sizes = [size("web", 1000, documents=100), size("qa", 200, documents=400)]
    given = sources(web={"weight": 1}, qa={"weight": 1})
    found, _ = mixes(settings(unit="documents", **given), sizes)
    assert found[0].parts == (Fraction(100, 105), Fraction(5, 105))
    with pytest.raises(UserError, match="unit: documents converts weights, or shares, not epochs and weight"):
        mixes(settings(unit="documents", train_samples=400, **sources(web={"weight": 1}, qa={"epochs": 1})), sizes)


def shares(mode: Any, sizes: list[Size], length: int | None = None, temperature: int = 1) -> list[float]:
    found = parts_of(mode, sizes, None if length is None else Fraction(length), Fraction(temperature))
    return [float(part / sum(found)) for part in found]


def test_modes_by_size() -> None:
    assert shares("uniform", SIZES) == pytest.approx([1 / 3] * 3)
    assert shares("proportional", SIZES) == pytest.approx([1000 / 1210, 200 / 1210, 10 / 1210])
    powers = [count ** (1 / 3) for count in SEQUENCES.values()]
    assert shares("temperature", SIZES, temperature=3) == pytest.approx([power / sum(powers) for power in powers])


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=8), st.integers(1, 4), st.floats(0.01, 1))
def test_unimax_is_uniform_up_to_its_cap(counts: list[int], cap: int, part: float) -> None:
    """By bisection for the level at which min(cap, level) over the sources is the run."""
    length = max(1, int(sum(counts) * cap * part))
    low, high = 0.0, float(max(counts) * cap)
    for _ in range(200):
        level = (low + high) / 2
        low, high = (low, level) if sum(min(count * cap, level) for count in counts) >= length else (level, high)
    expected = [min(count * cap, high) / length for count in counts]
    sizes = [size(str(index), count, cap=cap) for index, count in enumerate(counts)]
    assert shares("unimax", sizes, length) == pytest.approx(expected, rel=1e-6)


def test_unimax_of_more_than_all_caps_is_refused() -> None:
    with pytest.raises(UserError, match="give 4,840 of 5,000 samples; raise max_epochs"):
        shares("unimax", SIZES, 5000)
    with pytest.raises(UserError, match="needs the length of the run"):
        shares("unimax", SIZES)


def test_the_papers_mix_from_scratch() -> None:
    """1,000 samples: tuning 4 x 25; of 900, texts 4 : 1, an augmented one 3 samples long and a raw one 2."""
    sizes = [
        size("web", 4000, "raw", documents=2000, texts=2000),
        size("qa", 3000, "augmented", documents=500, texts=1000),
        size("tuning", 25, "tuning"),
    ]
    raw, augmented = 4 * 2, 1 * 3
    expected = [0.9 * raw / 11, 0.9 * augmented / 11, 0.1]
    assert shares("paper_from_scratch", sizes, 1000) == pytest.approx(expected)
    assert shares("paper_from_scratch", sizes[:2]) == pytest.approx([raw / 11, augmented / 11])
    with pytest.raises(UserError, match="'g' is of kind general, the paper's mix has raw, augmented, tuning"):
        shares("paper_from_scratch", [*sizes, size("g", 5, "general")], 1000)
    with pytest.raises(UserError, match="100 samples, the whole run or more"):
        shares("paper_from_scratch", sizes, 100)


def test_the_papers_continual_mix() -> None:
    kinds = (("a", 30, "augmented"), ("b", 10, "augmented"), ("g", 7, "general"))
    sizes = [size(name, count, kind) for name, count, kind in kinds]
    assert shares("paper_continual", sizes) == pytest.approx([3 / 8, 1 / 8, 1 / 2])
    with pytest.raises(UserError, match="no source is of kind general"):
        shares("paper_continual", sizes[:2])

"""Amounts in four units and modes -> exact parts, against plain arithmetic; what contradicts itself is refused."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
from hypothesis import assume, given
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


@pytest.mark.parametrize(
    "written", ["1e30", 10**19, "4611686018427387904", "1e999999999", "5000000T", "-1e30"], ids=lambda value: str(value)
)
def test_counts_that_no_file_can_hold_are_refused(written: Any) -> None:
    given = sources(web={"weight": 1})
    for changes in (
        {"train_tokens": written},
        {"proxy_tokens": written},
        {"phases": [{"from_tokens": written, "sources": {"web": {"weight": 1}}}]},
        sources(web={"tokens": written}),
    ):
        with pytest.raises(ValidationError, match="more than is counted here; write a number below 4,611,686"):
            settings(**{**given, **changes})
    assert settings(**given, train_tokens=2**62 - 1).train_tokens == 2**62 - 1


@pytest.mark.parametrize(
    "changes",
    [
        {"period": 100_000_000_000},
        {"period": 2**24 + 1},
        {"train_samples": 2**62},
        {"max_epochs": float("inf")},
        {"refuse_epochs": float("nan")},
        sources(web={"weight": 1, "max_epochs": float("inf")}),
    ],
)
def test_other_settings_are_bounded_too(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="Input should be"):
        settings(**{**sources(web={"weight": 1}), **changes})
    assert settings(**sources(web={"weight": 1}), period=2**24).period == 2**24


def test_a_run_of_more_tokens_than_a_file_can_hold_is_refused() -> None:
    for changes in (
        {"train_samples": 2**61},
        sources(web={"epochs": 1e30}),
        sources(web={"tokens": 2**62 - 1}, qa={"tokens": 2**62 - 1}),
    ):
        chosen = settings(**{**sources(web={"weight": 1}), **changes})
        with pytest.raises(UserError, match=r"ask for a run of \S+ tokens; stay below 4.61e\+18"):
            mixes(chosen, SIZES[: len(chosen.sources)])


def test_a_run_has_as_many_samples_as_its_tokens_begin() -> None:
    for tokens, samples in ((1000, 100), (1001, 101), (1009, 101), (1, 1)):
        assert mixes(settings(**sources(web={"weight": 1}), train_tokens=tokens), SIZES[:1])[1] == samples


def test_shares_are_whole_within_rounding() -> None:
    thirds = {name: {"share": 0.333333} for name in SEQUENCES}
    assert parts(**thirds) == [1 / 3] * 3
    for share in (0.33, 0.3333):
        with pytest.raises(UserError, match=r"add up to 99.* %, not to the whole phase"):
            parts(**{name: {"share": share} for name in SEQUENCES})
    with pytest.raises(UserError, match="add up to 396 of 400 samples"):
        parts(web={"tokens": 3960})


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


@given(
    st.lists(st.tuples(st.integers(20, 1000), st.integers(0, 3)), min_size=2, max_size=6),
    st.integers(1, 4),
    st.floats(0.05, 1.5),
    st.floats(0.05, 0.9),
)
def test_unimax_holds_its_cap_over_all_phases(
    given: list[tuple[int, int]], cap: int, first: float, part: float
) -> None:
    """What phases of weights and of UniMax have drawn before is counted; by bisection over what they left."""
    sizes = [size(str(index), count, cap=cap) for index, (count, _) in enumerate(given)]
    weights = [weight for _, weight in given] if any(weight for _, weight in given) else [1] * len(given)
    before = max(
        1, int(first * min(cap * of.sequences * sum(weights) / w for of, w in zip(sizes, weights, strict=True) if w))
    )
    drawn = [Fraction(before * weight, sum(weights)) for weight in weights]
    room = [
        left if (left := of.sequences * cap - had) >= 1 else Fraction(0) for of, had in zip(sizes, drawn, strict=True)
    ]
    assume(any(room))
    length = max(1, int(sum(room) * part))
    low, high = 0.0, float(max(room))
    for _ in range(200):
        level = (low + high) / 2
        low, high = (low, level) if sum(min(left, level) for left in room) >= length else (level, high)
    names = {str(index): {"weight": weight} for index, weight in enumerate(weights)}
    later = [{"from_tokens": before * 10, "mode": "unimax"}]
    found, _ = mixes(
        settings(sources=names, phases=later, train_samples=before + length, period=2**24, max_epochs=cap), sizes
    )
    expected = [min(left, high) / length for left in room]
    assert [float(share) for share in found[1].parts] == pytest.approx(expected, rel=1e-5, abs=1e-6)
    for of, had, share in zip(sizes, drawn, found[1].parts, strict=True):
        assert had + share * length <= max(had, of.sequences * cap * 1.0001)


def test_unimax_in_three_phases() -> None:
    """By hand: caps 4,000, 800 and 40; of `tuning` nothing is left after the first phase, of `qa` 800 - 460."""
    phases = [{"from_tokens": 1600, "mode": "unimax"}, {"from_tokens": 9600, "mode": "unimax"}]
    names = {name: {} for name in SEQUENCES}
    chosen = settings(sources=names, mode="unimax", phases=phases, train_samples=1760, period=2**20)
    found, _ = mixes(chosen, SIZES)
    # 160 samples: 40 of `tuning`, 60 of the others; 800: 400 each; 800: what is left of `qa`, 340
    assert [
        [round(float(part) * count, 6) for part in mix.parts] for mix, count in zip(found, (160, 800, 800), strict=True)
    ] == [
        [60, 60, 40],
        [400, 400, 0],
        [460, 340, 0],
    ]
    with pytest.raises(UserError, match="give 3,980 of 4,000 samples after the phases before; raise max_epochs"):
        mixes(
            settings(
                sources=names, mode="unimax", phases=[{"from_tokens": 8600, "mode": "unimax"}], train_samples=4860
            ),
            SIZES,
        )


def test_unimax_leaves_crumbs_where_they_are() -> None:
    """Of `tuning` 39 of 40 samples are drawn; the last would be less than one in a period of 600."""
    given = sources(web={"weight": 1}, tuning={"weight": 39})
    later = [{"from_tokens": 400, "mode": "unimax"}]
    for period, expected in ((600, [1, 0]), (2000, [1999 / 2000, 1 / 2000])):
        chosen = settings(**given, phases=later, train_samples=2040, period=period)
        found, _ = mixes(chosen, [SIZES[0], SIZES[2]])
        assert list(map(float, found[1].parts)) == pytest.approx(expected)


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

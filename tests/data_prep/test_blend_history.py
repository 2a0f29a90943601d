"""Phases appended, blends compared, and a past that cannot be changed unseen; by loops over every sample."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from data_prep.blend import append, check_continues, differences, first_difference, plan, read_blend, write_blend
from data_prep.blend.model import Blend, BlendPhase
from data_prep.errors import UserError
from data_prep.manifest import content_hash
from data_prep.settings import BlendSettings, SourceSettings, SplitSettings

PERIOD = 60
STEPS = {"one": 1, "two": 2, "new": 3}
RUN = Path("iter_0000007")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, write_dataset: Any) -> Path:
    found = tmp_path_factory.mktemp("data")
    for name, step in STEPS.items():
        write_dataset(found / name, [[*range(step, 80 * step, step), 0]] * 5)
    return found


def planned(folder: Path, **weights: float) -> Blend:
    sources = {name: {"prefix": folder / name, "weight": weight} for name, weight in weights.items()}
    plan(BlendSettings(sources=sources, seq_length=16, period=PERIOD, refuse_epochs=99), folder / "out")
    return read_blend(folder / "out/blend.json")


def places(blend: Blend, stop: int) -> list[tuple[str, int, int]]:
    found = (blend.locate(sample) for sample in range(stop))
    return [(blend.sources[place.source].name, place.epoch, place.sequence) for place in found]


@hypothesis_settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 200), st.integers(0, 5), st.integers(1, 5))
def test_an_appended_phase_leaves_the_past_as_it_was(folder: Path, start: int, one: int, new: int) -> None:
    old = planned(folder, one=3, two=1)
    longer = append(old, start, {"one": one, "new": new}, {"new": SourceSettings(prefix=folder / "new", kind="raw")})
    assert places(longer, start) == places(old, start)
    drawn = places(longer, start + PERIOD)[start:]
    assert abs(sum(name == "new" for name, _, _ in drawn) - PERIOD * new / (one + new)) < 1
    assert not any(name == "two" for name, _, _ in drawn)
    for consumed in (0, start - 1, start):
        assert longer.continues(old.hash, consumed)
    assert not longer.continues(old.hash, start + 1)
    assert not old.continues(longer.hash, start + 1)


def test_phases_to_come_may_be_replaced(folder: Path) -> None:
    base = planned(folder, one=3, two=1)
    first = append(base, 100, {"two": 1})
    second = append(first, 50, {"one": 1})
    assert [phase.first_sample for phase in second.phases] == [0, 50]
    assert second.continues(first.hash, 50) and second.continues(base.hash, 50)
    assert not second.continues(first.hash, 51) and not second.continues(base.hash, 51)
    again = append(second, 30, {"two": 1})
    assert again.continues(first.hash, 30) and not again.continues(first.hash, 31)
    third = append(first, 150, {"one": 1})
    assert third.continues(base.hash, 100) and not third.continues(base.hash, 101)
    assert third.continues(first.hash, 150) and not third.continues(first.hash, 151)


@pytest.mark.parametrize(
    ("start", "weights", "told"),
    [
        (0, {"one": 1}, "--from: 0 is the begin of the run"),
        (9, {"on": 1}, "--weights on: no such source; did you mean 'one'?"),
        (9, {"one": 0}, "--weights: no source has a weight above 0"),
        (9, {"one": 1, "two": 0.001}, "--weights two: its weight gives it none of the 60 samples"),
    ],
)
def test_phases_that_cannot_be_are_refused(folder: Path, start: int, weights: dict, told: str) -> None:
    with pytest.raises(UserError, match=told.replace("?", r"\?")):
        append(planned(folder, one=3, two=1), start, weights)


def test_a_source_is_not_given_other_data(folder: Path, write_dataset: Any) -> None:
    blend = planned(folder, one=3, two=1)
    with pytest.raises(UserError, match="--source two: is a source of the blend already"):
        append(blend, 9, {"two": 1}, {"two": SourceSettings(prefix=folder / "new", kind="raw")})
    with pytest.raises(UserError, match="--weights new: the new source has no weight"):
        append(blend, 9, {"two": 1}, {"new": SourceSettings(prefix=folder / "new", kind="raw")})
    write_dataset(folder / "foreign", [[1, 2, 0]] * 30, fingerprint="g")
    with pytest.raises(UserError, match="--source f: was tokenized unlike the blend"):
        append(blend, 9, {"f": 1}, {"f": SourceSettings(prefix=folder / "foreign", kind="raw")})


@hypothesis_settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 150), st.integers(1, 3))
def test_the_first_difference_is_the_first(folder: Path, one: int, other: int, start: int, weight: int) -> None:
    base = planned(folder, one=one, two=2)
    pairs = [
        (base, planned(folder, one=other, two=2)),
        (append(base, start, {"one": weight, "two": 1}), append(base, start + 7, {"one": weight, "two": 1})),
        (append(base, start, {"one": weight, "two": 1}), base),
    ]
    for first, second in pairs:
        mine, theirs = (places(blend, 600) for blend in (first, second))
        expected = next((sample for sample in range(600) if mine[sample] != theirs[sample]), None)
        assert first_difference(first, second) == expected
        assert first_difference(second, first) == expected
        if expected is not None:
            assert differences(first, second)


def test_phases_of_unlike_periods_are_compared_to_their_common_multiple(folder: Path) -> None:
    """From sample 11 on 12 and 13 samples repeat, alike for longer than either."""
    one = planned(folder, one=1, two=11)
    one = one.with_changes(phases=(BlendPhase(first_sample=0, shares=(1, 11)),))
    other = one.with_changes(phases=(*one.phases, BlendPhase(first_sample=11, shares=(1, 12))))
    mine, theirs = (places(blend, 11 + 12 * 13) for blend in (one, other))
    expected = next(sample for sample in range(len(mine)) if mine[sample] != theirs[sample])
    assert expected >= 11 + 13
    assert (first_difference(one, other), first_difference(other, one)) == (expected, expected)


@pytest.mark.parametrize(("name", "value"), [("loss", "answers"), ("policy", "chains"), ("data_hash", "0" * 32)])
def test_another_reading_of_a_source_differs_from_its_first_sample_on(folder: Path, name: str, value: str) -> None:
    blend = planned(folder, one=3, two=1)
    one, two = blend.sources
    other = blend.with_changes(sources=(one, two.model_copy(update={name: value})))
    expected = next(sample for sample in range(PERIOD) if places(blend, PERIOD)[sample][0] == "two")
    assert expected > 0
    assert first_difference(blend, other) == expected
    (told,) = differences(blend, other)
    assert told.startswith("source 'two'")


def test_another_split_or_format_is_other_data_from_the_begin(folder: Path) -> None:
    """Though all sources have as many sequences; documents stand elsewhere in their pack tables."""
    blend = planned(folder, one=3, two=1)
    split, of_seed = (SplitSettings(validation=0.1, seed=seed) for seed in (1, 2))
    for changes, told in (
        ({"split": split}, ["split none and 0.1 of seed 1"]),
        ({"format_version": 1}, ["format_version 2 and 1: documents stand in another order in their pack tables"]),
        ({"split": of_seed, "format_version": 1}, ["format_version", "split none and 0.1 of seed 2"]),
    ):
        other = blend.with_changes(**changes)
        assert blend.hash != other.hash
        assert first_difference(blend, other) == first_difference(other, blend) == 0
        found = differences(blend, other)
        assert len(found) == len(told)
        assert all(line.startswith(start) for line, start in zip(found, told, strict=True))
        other._folder = blend._folder
        write_blend(blend, folder / "out/blend.json")
        write_blend(other, folder / "out/blend.json")
        replaced = read_blend(folder / "out/blend.json")
        with pytest.raises(UserError, match=rf"differs from sample 0 on .*{told[0][:5]}"):
            check_continues(replaced, blend.hash, 1, RUN)
    one, other = (blend.with_changes(split=of) for of in (split, of_seed))
    assert one.hash != other.hash != blend.hash
    assert (first_difference(one, other), differences(one, other)) == (0, ["split 0.1 of seed 1 and 0.1 of seed 2"])


def test_the_order_of_the_sources_is_said(folder: Path) -> None:
    one, other = planned(folder, one=1, two=1), planned(folder, two=1, one=1)
    assert first_difference(one, other) == 0
    assert differences(one, other) == ["the order of the sources, one, two and two, one"]


def test_what_is_unlike_is_said(folder: Path) -> None:
    first, second = planned(folder, one=3, two=1), planned(folder, one=1, new=1)
    assert differences(first, second) == [
        "source 'two' is only in the first",
        "source 'new' is only in the second",
        "phase 1: share of 'one' 0.75 and 0.5",
        "phase 1: share of 'two' 0.25 and 0",
        "phase 1: share of 'new' 0 and 0.5",
    ]
    assert differences(first, first) == []
    other = first.with_changes(seed=5)
    assert (differences(first, other), first_difference(first, other)) == (["seed 1234 and 5"], 0)
    assert differences(first, append(first, 1000, {"two": 1})) == [
        "phase 2, from sample 1,000 on, is only in the second"
    ]


def test_a_changed_past_is_an_error_that_says_what_changed(folder: Path) -> None:
    old = planned(folder, one=3, two=1)
    new = planned(folder, one=2, two=1)  # the blend of before stays beside it
    first = first_difference(old, new)
    assert first is not None
    check_continues(new, old.hash, first, RUN)
    with pytest.raises(UserError, match=rf"differs from sample {first} on .*share of 'one' 0\.75 and 0\.666667"):
        check_continues(new, old.hash, first + 1, RUN)
    for kept in (folder / "out").glob("blend.*.json"):
        kept.unlink()
    with pytest.raises(UserError, match="iter_0000007: was trained on another blend"):
        check_continues(new, old.hash, first + 1, RUN)
    longer = append(new, 40, {"two": 1})
    check_continues(longer, new.hash, 40, RUN)
    with pytest.raises(
        UserError, match="consumed 41 samples of a blend that differs from sample 40 on: a phase starts"
    ):
        check_continues(longer, new.hash, 41, RUN)


def test_an_appended_blend_is_written_and_read(folder: Path) -> None:
    old = planned(folder, one=3, two=1)
    longer = append(old, 77, {"new": 1}, {"new": SourceSettings(prefix=folder / "new", kind="general")})
    path = folder / "out/blend.json"
    write_blend(longer, path)
    again = read_blend(path)
    assert again.model_dump() == longer.model_dump() and again.hash == longer.hash
    assert again.continues(old.hash, 77) and not again.continues(old.hash, 78)
    assert read_blend(folder / f"out/blend.{old.hash[:16]}.json").hash == old.hash
    write_blend(longer, path)
    assert len(list((folder / "out").glob(f"blend.{longer.hash[:16]}*"))) == 0


def test_blends_of_format_1_are_read_and_not_gone_on_with(folder: Path) -> None:
    """As the first version wrote them: one weight a source, nothing of kinds, loss and amounts.

    Documents stood in another order in the pack tables of that time, so the same places hold other tokens.
    """
    now = planned(folder, one=3, two=1)
    old = orjson.loads((folder / "out/blend.json").read_bytes())
    for key in ("hash", "blend_hash", "ancestors", "split"):
        del old[key]
    old["format_version"] = 1
    for source, weight in zip(old["sources"], (3.0, 1.0), strict=True):
        for key in ("kind", "loss", "policy", "pack_sequences", "labels", "validation", "weight", "lineage_hash"):
            del source[key]
        source["weight"] = weight
    for phase in old["phases"]:
        del phase["name"], phase["amounts"]
    plain = {**old, "sources": [dict(source) for source in old["sources"]]}
    for source in plain["sources"]:
        for key in ("prefix", "weight", "pack"):
            del source[key]
    told = content_hash(plain)
    content = {**old, "blend_hash": told}
    path = folder / "out/format-1.json"
    path.write_bytes(orjson.dumps({**content, "hash": content_hash(content)}))
    blend = read_blend(path)
    assert blend.hash == told != now.hash
    assert places(blend, 200) == places(now, 200)
    assert not now.continues(told, 1)
    with pytest.raises(UserError, match="is of format 1, whose documents stood in another order; plan it again"):
        append(blend, 50, {"two": 1})

"""What was drawn, how often each document was, and a proxy that repeats its data as the real run does."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep.blend import append, open_source, plan, read_blend, verify_draws
from data_prep.blend.verify import Fault, Stretch, repeated_documents, verify_record
from data_prep.errors import UserError
from data_prep.settings import BlendSettings


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, write_dataset: Any) -> Path:
    found = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(0)
    for name, count in (("large", 400), ("small", 30)):
        lengths = generator.integers(3, 40, count)
        write_dataset(found / name, [[*range(1, length), 0] for length in lengths.tolist()])
    return found


def settings(folder: Path, **changes: Any) -> BlendSettings:
    sources = {"large": {"prefix": folder / "large", "weight": 3}, "small": {"prefix": folder / "small", "weight": 2}}
    return BlendSettings(**{"sources": sources, "seq_length": 16, "period": 100, "refuse_epochs": 999, **changes})


@pytest.mark.parametrize("samples", [0, 7, 60, 250, 1500])
@pytest.mark.parametrize("proxy", [None, 4000])
def test_documents_are_counted_as_often_as_they_were_drawn(folder: Path, samples: int, proxy: int | None) -> None:
    """A plain loop: in how many epochs each document was touched."""
    plan(settings(folder, train_tokens=16_000, proxy_tokens=proxy), folder / "out")
    blend = read_blend(folder / "out/blend.json")
    touched = [{} for _ in blend.sources]  # type: list[dict[int, set[int]]]
    tables = [open_source(source)[1] for source in blend.sources]
    for sample in range(samples):
        place = blend.locate(sample)
        for piece in tables[place.source].pieces(place.sequence):
            touched[place.source].setdefault(piece.document, set()).add(place.epoch)
    for index, drawn in enumerate(blend.schedule.counts(samples)):
        times = Counter(len(epochs) for epochs in touched[index].values())
        times[0] = blend.sources[index].documents - times.total()
        assert repeated_documents(blend, index, drawn) == {count: n for count, n in sorted(times.items()) if n}


def test_a_record_that_is_off_by_one_is_found(folder: Path) -> None:
    plan(settings(folder), folder / "out")
    blend = append(read_blend(folder / "out/blend.json"), 37, {"small": 1})
    names = [blend.sources[blend.locate(sample).source].name for sample in range(60)]
    record = [Stretch(start, start + 5, Counter(names[start : start + 5])) for start in range(0, 60, 5)]
    assert verify_record(blend, record) == []
    wrong = [*record[:3], Stretch(15, 20, {"large": 2, "small": 2, "stranger": 1}), *record[4:]]
    assert verify_record(blend, wrong) == [
        Fault(15, 20, "large", 2, names[15:20].count("large")),
        Fault(15, 20, "stranger", 1, 0),
    ]


def test_phases_end_where_they_end_and_each_is_within_one(folder: Path) -> None:
    plan(settings(folder), folder / "out")
    blend = append(append(read_blend(folder / "out/blend.json"), 33, {"small": 1, "large": 1}), 71, {"large": 1})
    for start, stop in ((0, 33), (0, 34), (0, 90), (33, 71), (40, 80), (71, 95)):
        assert all(check.within for check in verify_draws(blend, start, stop)), (start, stop)
    assert [
        check.limit for start, stop in ((0, 33), (0, 90), (40, 60)) for check in verify_draws(blend, start, stop)
    ] == [
        *(1, 1),
        *(3, 3),
        *(2, 2),
    ]


def test_a_proxy_run_repeats_its_data_as_the_real_run_does(folder: Path) -> None:
    real = plan(settings(folder, train_tokens=64_000), folder / "real")
    proxy = plan(settings(folder, train_tokens=64_000, proxy_tokens=16_000), folder / "proxy")
    assert (real.train_samples, proxy.train_samples, proxy.proxy_of) == (4000, 1000, 4000)
    for mine, theirs in zip(proxy.rows, real.rows, strict=True):
        assert mine.sequences == round(theirs.sequences / 4)
        assert mine.epochs is not None
        assert mine.epochs == pytest.approx(theirs.epochs, rel=0.03)  # of a few dozen sequences, half a one
        assert mine.share == theirs.share
    blend = read_blend(folder / "proxy/blend.json")
    drawn: list[Counter[int]] = [Counter(), Counter()]
    for sample in range(1000):
        place = blend.locate(sample)
        drawn[place.source][place.sequence] += 1
    for source, seen in zip(blend.sources, drawn, strict=True):
        assert set(seen) == set(range(source.sequences))
        assert max(seen.values()) - min(seen.values()) <= 1
        assert open_source(source)[1].sequences == source.of_sequences > source.sequences


def test_phases_of_a_proxy_start_sooner_in_proportion(folder: Path) -> None:
    phases = ({"from_tokens": 16_000, "sources": {"large": {"weight": 1}}},)
    starts = []
    for proxy in (None, 16_000):
        plan(settings(folder, train_tokens=64_000, phases=phases, proxy_tokens=proxy), folder / "out")
        starts.append([phase.first_sample for phase in read_blend(folder / "out/blend.json").phases])
    assert starts == [[0, 1000], [0, 250]]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"proxy_tokens": 100}, "7 samples are no proxy of a run of unknown length"),
        ({"proxy_tokens": 3200, "train_tokens": 1600}, "200 samples are no proxy of a run of 100 samples"),
    ],
)
def test_a_proxy_of_nothing_is_refused(folder: Path, changes: dict, told: str) -> None:
    with pytest.raises(UserError, match=told):
        plan(settings(folder, **changes), folder / "out")


def test_a_proxy_too_small_for_a_source_says_so(folder: Path) -> None:
    table = plan(settings(folder, train_tokens=64_000, proxy_tokens=640), folder / "out")
    assert any("'small' uses 1 sequences where" in note for note in table.notes), table.notes


def test_a_proxy_is_given_no_source_of_full_size(folder: Path, write_dataset: Any) -> None:
    write_dataset(folder / "new", [[*range(1, 90), 0]] * 9)
    plan(settings(folder, train_tokens=64_000, proxy_tokens=16_000), folder / "proxy")
    blend = read_blend(folder / "proxy/blend.json")
    assert append(blend, 500, {"small": 1}).locate(999).source == 1
    with pytest.raises(UserError, match="--source new: the blend is of a proxy run"):
        append(blend, 500, {"new": 1}, {"new": (folder / "new", "raw")})

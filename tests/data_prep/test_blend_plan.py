"""A blend resolves, tells its plan, moves with its data, and refuses what does not belong together."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import orjson
import pytest

from data_prep.blend import open_source, plan, read_blend, resolve, verify_draws
from data_prep.blend.plan import REPEAT_DECAY, effective_tokens
from data_prep.errors import UserError
from data_prep.manifest import content_hash
from data_prep.settings import BlendSettings

LARGE = [[1, 2, 3, 4, 5, 6, 0]] * 30
SMALL = [[7, 8, 0]] * 2
_MEANT = {"allow": ["short_source"], "refuse_epochs": 30}


def settings(**changes: Any) -> BlendSettings:
    sources = {"large": {"prefix": "large", "weight": 3}, "small": {"prefix": "small", "weight": 1}}
    return BlendSettings(
        **{"sources": sources, "seq_length": 8, "period": 64, "train_samples": 100, **_MEANT, **changes}
    )


@pytest.fixture
def folder(tmp_path: Path, write_dataset) -> Path:
    write_dataset(tmp_path / "large", LARGE)
    write_dataset(tmp_path / "small", SMALL)
    return tmp_path


def test_plan_tells_shares_epochs_and_flags(folder: Path) -> None:
    table = plan(settings(), folder / "out", folder)
    large, small = table.rows
    assert (large.documents, large.tokens, large.sequences, large.share) == (30, 210, 27, 0.75)
    assert (large.samples_drawn, small.samples_drawn) == (75, 25)
    assert large.epochs == pytest.approx(75 / 27)
    assert large.tokens_drawn == round(75 / 27 * 209)
    assert large.flags == ()
    assert [flag.split(":")[0] for flag in small.flags] == [
        "under one sequence",
        "25.00 epochs, more than max_epochs 4",
    ]
    written = orjson.loads((folder / "out/plan.json").read_bytes())
    assert written.pop("checks")["refuse_epochs"] == 30
    assert written == orjson.loads(orjson.dumps(table.to_json()))
    assert read_blend(folder / "out/blend.json").hash == table.blend_hash


def test_plan_without_a_length_tells_shares_only(folder: Path) -> None:
    rows = plan(settings(train_samples=None), folder / "out", folder).rows
    assert [(row.share, row.samples_drawn, row.epochs) for row in rows] == [(0.75, None, None), (0.25, None, None)]


def test_repeats_are_worth_less_and_less() -> None:
    assert effective_tokens(1000, 0.5) == 500
    assert effective_tokens(1000, 1.0) == 1000
    assert 1900 < effective_tokens(1000, 2.0) < 2000
    assert effective_tokens(1000, 1e6) == pytest.approx(1000 * (1 + REPEAT_DECAY))


def test_hash_stands_for_the_samples_and_for_nothing_else(folder: Path, write_dataset) -> None:
    base = resolve(settings(), folder).hash
    assert resolve(settings(train_samples=7, max_epochs=1), folder).hash == base
    scaled = {"large": {"prefix": "large", "weight": 0.75}, "small": {"prefix": "small", "weight": 0.25}}
    assert resolve(settings(sources=scaled), folder).hash == base
    other_weights = {**scaled, "small": {"prefix": "small", "weight": 0.5}}
    changes = ({"seed": 1}, {"seq_length": 9}, {"period": 60}, {"sources": other_weights})
    assert len({base, *(resolve(settings(**change), folder).hash for change in changes)}) == 5
    write_dataset(folder / "small", [[7, 9, 0]] * 2)
    assert resolve(settings(), folder).hash != base


def test_a_blend_moves_with_its_data(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    table = plan(settings(), folder / "out", folder)
    assert str(folder) not in (folder / "out/blend.json").read_text()
    moved = tmp_path_factory.mktemp("elsewhere") / "data"
    shutil.move(folder, moved)
    blend = read_blend(moved / "out/blend.json")
    assert blend.hash == table.blend_hash
    assert [source.prefix for source in blend.sources] == [(moved / name).resolve() for name in ("large", "small")]


@pytest.mark.parametrize(
    ("identity", "told"),
    [
        ({"fingerprint": "g"}, "fingerprint f and g"),
        ({"bos_id": 1, "prepend_bos": True}, "prepend_bos False and True"),
        ({"eod_id": 1}, "eod_id 0 and 1"),
        ({"append_eod": False}, "append_eod True and False"),
    ],
)
def test_unlike_tokenizers_and_policies_are_refused(folder: Path, write_dataset, identity: dict, told: str) -> None:
    write_dataset(folder / "small", SMALL, **identity)
    with pytest.raises(UserError, match=f"sources 'large' and 'small': were tokenized unlike: .*{told}"):
        resolve(settings(), folder)


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ({"prefix": "absent", "weight": 1}, r"absent\.manifest\.json: no manifest"),
        ({"weight": 1}, r"sources\.small\.prefix: no dataset is named"),
        ({"prefix": "small", "weight": 0.001}, r"sources\.small\.weight: .* none of the 64 samples"),
    ],
)
def test_sources_that_give_nothing_are_refused(folder: Path, source: dict, told: str) -> None:
    with pytest.raises(UserError, match=told):
        resolve(settings(sources={"large": {"prefix": "large", "weight": 3}, "small": source}), folder)


@pytest.mark.parametrize("suffix", ["bin", "idx"])
def test_damaged_data_is_not_planned_with(folder: Path, suffix: str) -> None:
    path = folder / f"small.{suffix}"
    path.write_bytes(path.read_bytes()[:-1] + b"\x77")
    with pytest.raises(UserError, match=rf"small\.{suffix}: block 0"):
        resolve(settings(), folder)


def test_another_tokenizer_directory_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="tokenizer: no such file or directory"):
        resolve(settings(), folder, folder / "tokenizer")
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer/tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="written with another tokenizer"):
        resolve(settings(), folder, folder / "tokenizer")


def test_edited_damaged_and_newer_blends_are_refused(folder: Path) -> None:
    plan(settings(), folder / "out", folder)
    path = folder / "out/blend.json"
    content = path.read_bytes()
    for changed, told in (
        (content.replace(b'"seed": 1234', b'"seed": 1235'), "damaged or edited"),
        (content[:-10], "not JSON"),
        (content.replace(b'"format_version": 2', b'"format_version": 3'), "format version 3 is newer"),
    ):
        path.write_bytes(changed)
        with pytest.raises(UserError, match=rf"blend\.json: .*{told}"):
            read_blend(path)
    with pytest.raises(UserError, match="no such blend"):
        read_blend(folder / "blend.json")


def test_a_blend_whose_samples_are_not_those_of_its_hash_is_refused(folder: Path) -> None:
    """Though its content fits the hash of the file: a seed written in by a tool that signs what it writes."""
    plan(settings(), folder / "out", folder)
    path = folder / "out/blend.json"
    content = orjson.loads(path.read_bytes())
    content.pop("hash")
    content["seed"] += 1
    path.write_bytes(orjson.dumps({**content, "hash": content_hash(content)}))
    with pytest.raises(
        UserError, match=r"blend\.json: its blend hash is not that of its content; run `ipt blend plan`"
    ):
        read_blend(path)


def test_a_table_of_another_number_of_sequences_is_refused(folder: Path) -> None:
    large, small = resolve(settings(), folder).sources
    table = large.prefix.with_name(large.pack)
    table.write_bytes(small.prefix.with_name(small.pack).read_bytes())  # whole, and of its own hash
    with pytest.raises(UserError, match=r"large\.pack-.*: 1 sequences where the blend has 27; run `ipt blend plan`"):
        open_source(large)


def test_a_source_as_long_as_a_sequence_and_its_label_is_long_enough(folder: Path, write_dataset) -> None:
    of = {
        "allow": [],
        "sources": {"large": {"prefix": "large", "weight": 3}, "exact": {"prefix": "exact", "weight": 1}},
    }
    write_dataset(folder / "exact", [[1] * 4 + [0], [2] * 3 + [0]])
    assert resolve(settings(**of), folder).sources[1].sequences == 1  # 9 tokens are 8 and a label
    write_dataset(folder / "exact", [[1] * 4 + [0], [2] * 2 + [0]])
    with pytest.raises(UserError, match=r"sources\.exact: 8 tokens, shorter than a sequence and its label \(9\)"):
        resolve(settings(**of), folder)


def test_what_was_drawn_is_held_against_the_plan(folder: Path) -> None:
    blend = resolve(settings(), folder)
    for start, stop in ((0, 100), (37, 90), (0, 0)):
        assert all(check.within for check in verify_draws(blend, start, stop))
    names = ["large"] * 75 + ["small"] * 25
    assert all(check.within for check in verify_draws(blend, 0, 100, names))
    wrong = verify_draws(blend, 0, 100, ["large"] * 77 + ["small"] * 23)
    assert [(check.drawn, check.expected, check.within) for check in wrong] == [(77, 75, False), (23, 25, False)]
    with pytest.raises(ValueError, match="99 samples"):
        verify_draws(blend, 0, 100, names[1:])

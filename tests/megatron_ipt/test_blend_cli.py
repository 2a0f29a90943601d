"""ipt blend by hand: plan, verify a run's own record, diff, append; and Megatron's own reading of its forms."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from data_prep.errors import UserError
from data_prep.indexing.ragged import ragged
from data_prep.indexing.spans import LETTERS, Runs, SpansWriter
from data_prep.indexing.writer import IndexedDatasetWriter
from data_prep.manifest import read_manifest
from megatron_ipt.cli.main import app
from megatron_ipt.data.stream import BlendStream

FILE = """
seq_length: 16
train_tokens: 1600
refuse_epochs: 99
sources:
  one: {prefix: one, weight: 3}
  two: {prefix: two, kind: general, share: 0.25}
held_out: {news: three}
"""
BATCH = 5


@pytest.fixture
def folder(tmp_path: Path, write_dataset: Any) -> Path:
    for step, name in enumerate(("one", "two", "three", "new"), 1):
        write_dataset(tmp_path / name, [[*range(step, 60 * step, step), 0]] * 6)
    (tmp_path / "blend.yaml").write_text(FILE)
    return tmp_path


def rendered_source(folder: Path, classes: str = "tqa", documents: int = 6, size: int = 5) -> None:
    """The dataset `aug`: in each document a run of `size` tokens of each class (letters of PREFIX.spans), and EOD."""
    manifest = read_manifest(folder / "one")
    length, kinds = size * len(classes) + 1, np.array([LETTERS.index(letter) for letter in (*classes, "c")], "u1")
    with IndexedDatasetWriter(folder / "aug", manifest.tokenizer.vocab_size) as writer:
        writer.add_documents(ragged([np.array([*range(1, length), 0])] * documents))
        bin_hashes, idx_hashes = writer.finish()
        writer.commit()
    with SpansWriter(folder / "aug") as writer_of_spans:
        ends = np.array([*range(size, length, size), length], "<i4")
        for _ in range(documents):
            writer_of_spans.add(Runs(np.array([len(kinds)]), ends, np.zeros(len(kinds), "<i4"), kinds))
        spans = writer_of_spans.finish()
        writer_of_spans.commit()
    counts = {"documents": documents, "tokens": documents * length, "text_bytes": 4 * documents * length}
    made = manifest.model_copy(update={"bin": bin_hashes, "idx": idx_hashes, "spans": spans, **counts})
    made.write(folder / "aug")


def ipt(*arguments: object) -> tuple[int, str]:
    """Exit code and what was printed; errors of the user go on as they are."""
    result = CliRunner().invoke(app, ["blend", *map(str, arguments)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def train(run: Path, first: int, steps: int) -> None:
    """What a run of `steps` steps from sample `first` records: by reading each sample, not by asking the schedule."""
    stream = BlendStream(run / "blend/blend.json")
    log = run / "train/metrics.jsonl"
    log.parent.mkdir(exist_ok=True)
    with log.open("a") as file:
        for step in range(steps):
            begin = first + step * BATCH
            drawn = Counter(stream.sample(index).source for index in range(begin, begin + BATCH))
            row = {"kind": "train", "iteration": (begin + BATCH) // BATCH, "consumed_samples": begin + BATCH}
            file.write(json.dumps({**row, "samples": drawn}) + "\n")
    save(run, first + steps * BATCH, stream.blend_hash)


def save(run: Path, consumed: int, blend_hash: str) -> None:
    checkpoint = run / f"train/checkpoints/iter_{consumed // BATCH:07d}"
    checkpoint.mkdir(parents=True, exist_ok=True)
    card = {"consumed_samples": consumed, "blend_hash": blend_hash, "recipe": {"train": {}}}
    (checkpoint / "run_card.json").write_text(json.dumps(card))
    (checkpoint.parent / "latest_checkpointed_iteration.txt").write_text(str(consumed // BATCH))


def rows(output: str, word: str) -> list[list[str]]:
    """The cells of a table's lines that begin with `word`."""
    lines = (line.split("│")[1:-1] for line in output.splitlines() if line.startswith(f"│ {word}"))
    return [[cell.strip() for cell in line] for line in lines]


def test_a_run_is_planned_verified_given_a_phase_and_verified_again(folder: Path) -> None:
    run = folder / "run"
    code, told = ipt("plan", folder / "blend.yaml", run / "blend")
    assert code == 0
    # 100 samples, 75 and 25; 6 documents of 60 tokens are 360 tokens, 359 labels, 23 sequences
    ((*cells, _),) = rows(told, "one")
    assert cells == ["one", "raw", "6", "360", "weight 3", "75.0000%", "1,171", "3.261"]
    assert rows(told, "two")[0][4] == "share 0.25"
    train(run, 0, 8)
    code, told = ipt("verify", run)
    assert (code, rows(told, "one")[0][:5]) == (0, ["one", "30", "30", "30.00", "+0.00"])
    assert "what was drawn is what was planned" in told
    code, told = ipt("append", run, "--weights", "two=1,new=3", "--source", f"new={folder / 'new'}:augmented")
    assert code == 0 and "the first 40 samples are those of blend" in told
    kept = next((run / "blend").glob("blend.*.json"))
    code, told = ipt("diff", kept, run / "blend/blend.json")
    assert code == 1 and "the data differ from sample 40 on (640 tokens)" in told
    assert ipt("diff", kept, kept) == (0, "the same data at every sample\n")
    train(run, 40, 8)
    code, told = ipt("verify", run)
    assert (code, rows(told, "new")[0][1:3]) == (0, ["30", "30"])


def test_a_record_that_is_off_ends_with_1(folder: Path) -> None:
    run = folder / "run"
    ipt("plan", folder / "blend.yaml", run / "blend")
    train(run, 0, 8)
    log = run / "train/metrics.jsonl"
    lines = log.read_text().splitlines()
    row = json.loads(lines[3])
    row["samples"]["one"] -= 1
    row["samples"]["two"] += 1
    log.write_text("\n".join([*lines[:3], json.dumps(row), *lines[4:]]))
    code, told = ipt("verify", run, "--no-documents")
    assert code == 1
    assert (
        f"fault: samples 15 to 20: {row['samples']['one']} of 'one' where the plan has {row['samples']['one'] + 1}"
        in told
    )
    log.write_text("\n".join([*lines, lines[2]]))
    code, told = ipt("verify", run)
    assert code == 1 and "recorded twice: samples 10 to 15" in told
    strange = json.loads(lines[3])
    strange["samples"]["three"] = strange["samples"].pop("two")
    log.write_text("\n".join([*lines[:3], json.dumps(strange), *lines[4:]]))
    code, told = ipt("verify", run)
    assert (
        code == 1
        and "where the plan has" in told
        and f"'three' is no source of the blend, and gave {strange['samples']['three']} " in told
    )


def test_a_record_that_lacks_lines_is_verified_in_those_that_are_there(folder: Path) -> None:
    run = folder / "run"
    ipt("plan", folder / "blend.yaml", run / "blend")
    train(run, 0, 8)
    log = run / "train/metrics.jsonl"
    log.write_text("\n".join(log.read_text().splitlines()[1::2]))
    code, told = ipt("verify", run)
    assert (
        code == 0
        and "20 of 40 samples recorded" in told
        and "some steps are not in metrics.jsonl" in " ".join(told.split())
    )


def test_the_blend_is_the_one_that_the_recipe_names(folder: Path) -> None:
    run, save_folder = folder / "run", folder / "saved"
    ipt("plan", folder / "blend.yaml", run / "blend")
    train(run, 0, 8)
    (run / "train").rename(save_folder)
    (save_folder / "checkpoints/iter_0000008").rename(save_folder / "iter_0000008")
    (save_folder / "checkpoints/latest_checkpointed_iteration.txt").rename(
        save_folder / "latest_checkpointed_iteration.txt"
    )
    card = save_folder / "iter_0000008/run_card.json"
    for recipe in ({"train": {"blend": str(run / "blend/blend.json")}}, {"output_dir": str(run), "train": {}}):
        card.write_text(json.dumps({**json.loads(card.read_text()), "recipe": recipe}))
        assert ipt("verify", save_folder)[0] == 0
    card.write_text(json.dumps({**json.loads(card.read_text()), "recipe": {}}))
    with pytest.raises(UserError, match="no such blend; say which one the run reads: --blend PATH"):
        ipt("verify", save_folder)
    assert ipt("verify", save_folder, "--blend", run / "blend/blend.json")[0] == 0


def test_another_blend_than_the_runs_is_refused(folder: Path) -> None:
    run = folder / "run"
    ipt("plan", folder / "blend.yaml", run / "blend")
    train(run, 0, 8)
    ipt("plan", folder / "blend.yaml", run / "blend", "sources.one.weight=1", "sources.two.share=0.5")
    with pytest.raises(UserError, match=r"has consumed 40 samples of a blend that differs .*'one' 0\.75 and 0\.5"):
        ipt("verify", run)
    with pytest.raises(UserError, match=r"no train/metrics\.jsonl: not a run's folder"):
        ipt("verify", folder)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--weights", "one=1", "--from", "100"), "sample 7 lies in the run's past: its checkpoint has consumed 40"),
        (("--weights", "one"), "'one' is no weight; write NAME=NUMBER"),
        (("--weights", "one=nan"), "'one=nan' is no weight"),
        (("--weights", "one=1,one=2"), "'one' stands there twice"),
        (("--weights", "one=1", "--from", "10G"), "--from: '10G' is not a count"),
        (("--weights", "one=1", "--source", "x=y:z"), "'x=y:z' is no source"),
    ],
)
def test_a_phase_that_cannot_be_is_refused_in_a_line(folder: Path, arguments: tuple[str, ...], told: str) -> None:
    run = folder / "run"
    ipt("plan", folder / "blend.yaml", run / "blend")
    train(run, 0, 8)
    before = (run / "blend/blend.json").read_bytes()
    with pytest.raises(UserError, match=told):
        ipt("append", run, *arguments)
    assert (run / "blend/blend.json").read_bytes() == before


def test_a_phase_may_begin_where_the_newest_checkpoint_stands(folder: Path) -> None:
    run = folder / "run"
    ipt("plan", folder / "blend.yaml", run / "blend")
    train(run, 0, 8)
    with pytest.raises(UserError, match="sample 39 lies in the run's past"):
        ipt("append", run, "--weights", "one=1", "--from", 39 * 16)
    assert ipt("append", run, "--weights", "one=1", "--from", 40 * 16)[0] == 0


def test_a_blend_alone_needs_to_be_told_where(folder: Path) -> None:
    ipt("plan", folder / "blend.yaml", folder / "out")
    path = folder / "out/blend.json"
    with pytest.raises(UserError, match="--from: where the phase begins is not said"):
        ipt("append", path, "--weights", "one=1")
    code, _ = ipt("append", path, "--weights", "one=1", "--from", "1k", "--out", folder / "later/blend.json")
    phases = json.loads((folder / "later/blend.json").read_text())["phases"]
    assert (code, [phase["first_sample"] for phase in phases]) == (0, [0, 63])  # 1,000 tokens end in sample 62


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--train-tokens", "1G"), "--train-tokens: '1G' is not a count"),
        (("--train-tokens", "0"), "--train-tokens: '0' is below 1"),
        (("--train-tokens", "1e30"), "--train-tokens: '1e30' is more than is counted here"),
        (("train_tokens=1e30",), "more than is counted here"),
        (("period=100000000000",), "period=100000000000: Input should be less than or equal to 16777216"),
        (("--proxy-tokens", "320", "--megatron", "x"), "a proxy run shrinks its sources"),
        (
            ("--megatron", "x", "split.validation=0.1"),
            r"train on all documents, .* that the split sets apart; index them",
        ),
    ],
)
def test_options_of_plan_are_held(folder: Path, options: tuple[str, ...], told: str) -> None:
    with pytest.raises(UserError, match=told):
        ipt("plan", folder / "blend.yaml", folder / "out", *options)
    assert not (folder / "out").exists()


_READ = """
import json, sys
import megatron_ipt.mcore.shim
from argparse import Namespace
from megatron.training.utils.common_utils import get_blend_and_blend_per_split
none = dict.fromkeys(("data_path", "train_data_path", "valid_data_path", "test_data_path"))
one = Namespace(**none, data_args_path=sys.argv[1], per_split_data_args_path=None)
two = Namespace(**none, data_args_path=None, per_split_data_args_path=sys.argv[2])
print(json.dumps([get_blend_and_blend_per_split(one), get_blend_and_blend_per_split(two)]))
"""


def test_megatron_reads_its_forms_as_they_are_meant(folder: Path) -> None:
    """By the function that Megatron's own training hands its options to."""
    file = folder / "blend.yaml"
    file.write_text(FILE + "phases: [{from_tokens: 800, sources: {two: {weight: 1}}}]\n")
    code, told = ipt("plan", file, folder / "out", "--megatron", folder / "forms")
    assert code == 0 and "a pair of files for each phase" in told
    names = ("data_args.txt", "per_split_data_args.json")
    files = [str(folder / "forms/phase-1" / name) for name in names]
    done = subprocess.run([sys.executable, "-c", _READ, *files], capture_output=True, text=True, check=True)
    whole, split = json.loads(done.stdout.splitlines()[-1])
    train_blend = [[str(folder / "one"), str(folder / "two")], [0.75, 0.25]]
    assert whole == [train_blend, None]
    assert split == [None, [train_blend, [[str(folder / "three")], [1.0]], None]]
    assert (folder / "forms/phase-2/data_args.txt").read_text() == f"1 {folder / 'two'}\n"


def test_what_megatrons_options_cannot_say_is_told(folder: Path) -> None:
    told = ipt("plan", folder / "blend.yaml", folder / "out", "--megatron", folder / "forms")[1]
    assert "is not said" not in told
    rendered_source(folder)
    changes = ("sources.two.prefix=aug", "sources.two.policy=chains", "sources.two.loss=answers")
    code, told = ipt("plan", folder / "blend.yaml", folder / "out", *changes, "--megatron", folder / "forms")
    lines = [line for line in told.splitlines() if "is not said" in line]
    assert (code, lines) == (
        0,
        [
            "note: 'two': policy chains is not said; Megatron cuts its documents anywhere",
            "note: 'two': loss answers is not said; Megatron trains on all of its tokens",
        ],
    )


def test_a_prefix_that_megatron_would_cut_is_refused(folder: Path, write_dataset: Any) -> None:
    write_dataset(folder / "a b", [[1, 2, 0]] * 30)
    with pytest.raises(UserError, match="a b: Megatron cuts a file of arguments at white space"):
        ipt("plan", folder / "blend.yaml", folder / "out", "sources.one.prefix=a b", "--megatron", folder / "forms")

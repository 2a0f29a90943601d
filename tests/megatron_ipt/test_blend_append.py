"""ipt blend append: a new source is read as it is said, and a phase is checked for mistakes as a plan is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_blend_cli import ipt
from tokenizers import Tokenizer, models, pre_tokenizers

from data_prep.blend import read_blend
from data_prep.errors import UserError
from data_prep.indexing import index
from data_prep.packing import open_pack
from data_prep.readers import write_jsonl
from data_prep.records import Origin, Span, TrainingText
from data_prep.settings import IndexSettings

LENGTH = 24
WORDS = ["<end>", "<unk>", "bees", "build", "Was", "Das", "?", ".", *(f"n{number}" for number in range(130))]


def documents(*numbers: int) -> list[dict[str, Any]]:
    return [{"id": f"d{number}", "source": "farm", "text": f"n{number} " + "bees build " * 15} for number in numbers]


def chain(number: int) -> dict[str, Any]:
    """A document of the corpus with a pair about it."""
    text, spans = "", list[Span]()
    for kind, part, of in (
        ("text", f"n{number} " + "bees build " * 5, 0),
        ("question", "Was ? ", 0),
        ("answer", "Das .\n", 0),
    ):
        spans.append(Span(len(text), len(text) + len(part), kind, of))  # type: ignore[arg-type]
        text += part
    origins = (Origin(f"d{number}", "farm", 0, 50, ("form",), 0),)
    return TrainingText(f"c{number}", text, origins, spans=tuple(spans)).to_json()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("append")
    tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<end>"])
    (folder / "hf").mkdir()
    tokenizer.save(str(folder / "hf/tokenizer.json"))
    (folder / "hf/tokenizer_config.json").write_text('{"eos_token": "<end>"}')
    rows = {
        "web": documents(*range(20)),
        "pairs": [chain(number) for number in range(20, 40)],
        "more": [chain(number) for number in range(40, 60)],
        "web_pairs": [chain(number) for number in range(10, 30)],
        "other_web": documents(*range(60, 80)),
        "tiny": [{"id": "t", "text": "bees build"}],
        "held_out": documents(41, 61, 100),
    }
    for name, lines in rows.items():
        write_jsonl(folder / f"{name}.jsonl", lines)
        index(IndexSettings(encoder="tokenizers"), [folder / f"{name}.jsonl"], folder / "hf", folder / name)
    return folder


def planned(folder: Path, **changes: Any) -> Path:
    """blend.json of 100 samples, `web` and chains that are read for their pairs."""
    sources = {
        "web": {"prefix": "web", "weight": 3},
        "pairs": {"prefix": "pairs", "kind": "augmented", "policy": "chains", "loss": "pairs", "weight": 1},
    }
    settings = {"seq_length": LENGTH, "train_tokens": 100 * LENGTH, "sources": sources, "period": 600, **changes}
    (folder / "blend.yaml").write_text(yaml.safe_dump(settings))
    shutil.rmtree(folder / "out", ignore_errors=True)
    ipt("plan", folder / "blend.yaml", folder / "out")
    return folder / "out/blend.json"


def append(path: Path, weights: str, *options: str) -> str:
    _, told = ipt("append", path, "--weights", weights, "--from", 40 * LENGTH, *options)
    return told


def new(folder: Path, name: str, more: str = "") -> tuple[str, str]:
    return "--source", f"{name}={folder / name}{more}"


def test_a_new_source_is_read_as_its_kin_or_as_it_is_said(folder: Path) -> None:
    for said, expected in (
        (":augmented", ("augmented", "chains", "pairs")),
        (":augmented:policy=concatenate:loss=answers", ("augmented", "concatenate", "answers")),
        (":augmented:loss=all", ("augmented", "chains", "all")),
        (":policy=chains", ("raw", "chains", "all")),
        ("", ("raw", "concatenate", "all")),
        (":kind=general", ("general", "concatenate", "all")),  # the blend has two policies, and none of this kind
    ):
        path = planned(folder)
        told = append(path, "more=1", *new(folder, "more", said))
        source = read_blend(path).sources[-1]
        assert (source.kind, source.policy, source.loss) == expected
        unsaid = f"note: 'more' is packed by policy {source.policy}, its loss is of {source.loss}"
        assert (unsaid in told) == (said.count("=") < 2)


def test_questions_stay_with_their_texts_in_a_source_that_is_appended(folder: Path) -> None:
    """15 words and the end: under `chains` one document a sequence, never begun in the one before."""
    path = planned(folder)
    append(path, "more=1", *new(folder, "more", ":augmented"))
    table = open_pack((folder / "more").with_name(read_blend(path).sources[-1].pack))
    pieces = [table.pieces(number) for number in range(table.sequences)]
    assert all(piece.offset == 0 or piece.offset >= 10 for row in pieces for piece in row[:1])
    texts = [piece for row in pieces for piece in row if piece.offset == 0]
    assert len({piece.document for piece in texts}) == 20 and min(piece.length for piece in texts) >= 10


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("more=x:augmented:polcy=chains", "'polcy' is no key of a source; did you mean 'policy'"),
        ("more=x:augmented:policy=chain", "policy: Input should be 'concatenate' or 'chains'"),
        ("more=x:augmented:weight=3", "its weight goes with --weights"),
        ("more=:augmented", "'more=:augmented' is no source; write NAME=PREFIX:KIND"),
        ("more=x:augmented:max_epochs=0", "max_epochs: Input should be greater than 0"),
    ],
)
def test_sources_that_cannot_be_are_refused_in_a_line(folder: Path, said: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        append(planned(folder), "more=1", "--source", said)


def test_a_new_source_shorter_than_a_sequence_or_without_spans_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match=r"--source tiny: 3 tokens, shorter than a sequence and its label \(25\)"):
        append(planned(folder), "tiny=1", *new(folder, "tiny"))
    with pytest.raises(UserError, match=r"other_web\.loss: it has no spans"):
        append(planned(folder), "other_web=1", *new(folder, "other_web", ":augmented:policy=concatenate"))


def test_text_that_is_drawn_already_is_refused(folder: Path) -> None:
    cases = (
        ("web_pairs", ":augmented", "sources 'web' and 'web_pairs': 10 raw texts stand in both", "copies"),
        ("other_web", "", "held_out.news: 1 of its texts stand in the source 'other_web'", "held_out"),
        ("more", ":augmented", "held_out.news: 1 of its texts stand in the source 'more'", "held_out"),
        ("more", ":augmented:copy_of=web", "'more' is a copy of 'web', and both are drawn", "copies"),
    )
    for name, said, told, mistake in cases:
        path = planned(folder, held_out={"news": "held_out"})
        before = path.read_bytes()
        with pytest.raises(UserError, match=f"{told}.* or say --allow {mistake}"):
            append(path, f"{name}=1", *new(folder, name, said))
        assert path.read_bytes() == before
        meant = ("--allow", mistake, *(("--allow", "held_out") if name == "more" else ()))
        assert told.rpartition(":")[2] in " ".join(append(path, f"{name}=1", *new(folder, name, said), *meant).split())
    path = planned(folder, held_out={"news": "held_out"}, allow=["held_out"])
    append(path, "more=1", *new(folder, "more", ":augmented"))
    with pytest.raises(UserError, match="sources 'web' and 'again': are one dataset under two names"):
        append(planned(folder), "again=1", "--source", f"again={folder / 'web'}")
    with pytest.raises(UserError, match="--allow: 'copy' is no mistake that may be meant; did you mean 'copies'"):
        append(planned(folder), "web=1", "--allow", "copy")


def test_the_checks_of_the_plan_hold_through_phases(folder: Path) -> None:
    """A held-out set and a limit of the blend file are known to the second phase that is appended."""
    path = planned(folder, held_out={"news": "held_out"}, max_epochs=2.5, refuse_epochs=60)
    moved = folder / "elsewhere/deep/blend.json"
    ipt("append", path, "--weights", "web=1", "--from", 40 * LENGTH, "--out", moved)
    kept = json.loads(moved.with_name("plan.json").read_text())["checks"]
    assert (kept["max_epochs"], kept["refuse_epochs"]) == (2.5, 60)
    with pytest.raises(UserError, match=r"held_out.news: 1 of its texts stand in the source 'other_web'"):
        append(moved, "other_web=1", *new(folder, "other_web"))


def test_held_out_text_that_is_gone_is_said_not_to_be_checked(folder: Path) -> None:
    for file in folder.glob("held_out.*"):
        shutil.copy(file, folder / file.name.replace("held_out", "gone"))
    path = planned(folder, held_out={"news": "gone"})
    (folder / "gone.manifest.json").unlink()
    told = append(path, "more=1", *new(folder, "more"))
    assert f"note: held_out.news: could not be checked: no dataset at {folder / 'gone'}" in told


def test_epochs_are_capped(folder: Path) -> None:
    """20 documents of 32 tokens are 27 sequences: 40 samples at 3/4, then 60 of `web` alone are 90 of 27."""
    with pytest.raises(
        UserError, match=r"sources.web: 3\.33 epochs, more than sources.web.max_epochs 3; .*--max-epochs web="
    ):
        capped = {"web": {"prefix": "web", "weight": 3, "max_epochs": 3}, "pairs": {"prefix": "pairs", "weight": 1}}
        append(planned(folder, sources=capped), "web=1")
    path = planned(folder, refuse_epochs=3)
    with pytest.raises(UserError, match=r"3\.33 epochs, more than refuse_epochs 3"):
        append(path, "web=1")
    assert "flag: web" not in append(path, "web=1", "--max-epochs", "web=5")
    path = planned(folder)
    assert "flag: web: 4.07 epochs, more than max_epochs 4" in append(
        path, "web=1", "--train-tokens", str(120 * LENGTH)
    )
    with pytest.raises(UserError, match=r"sources.web: 37\.04 epochs, more than refuse_epochs 16"):
        append(path, "web=1", "--train-tokens", str(1010 * LENGTH))
    with pytest.raises(UserError, match="--train-tokens: the run ends at sample 40, the phase begins at 40"):
        append(path, "web=1", "--train-tokens", str(40 * LENGTH))
    with pytest.raises(UserError, match="--max-epochs wep: no such source; did you mean 'web'"):
        append(path, "web=1", "--max-epochs", "wep=3")


def test_a_phase_behind_unimax_stays_within_its_cap(folder: Path) -> None:
    sources = {name: {"prefix": name} for name in ("web", "other_web", "pairs")}
    path = planned(folder, sources=sources, mode="unimax", max_epochs=2)
    with pytest.raises(UserError, match=r"epochs, more than sources.web.max_epochs 2"):
        append(path, "web=1")
    append(path, "web=1", "--max-epochs", "web=4")


def test_a_length_or_a_plan_that_is_not_known_is_said(folder: Path) -> None:
    path = planned(folder, train_tokens=None)
    assert "note: the length of the run is not known, so no epochs were checked: say --train-tokens" in append(
        path, "web=1"
    )
    path = planned(folder)
    path.with_name("plan.json").unlink()
    told = append(path, "web=1", "--train-tokens", "100k", "--max-epochs", "web=999")
    assert "does not say what the blend was held against: caps of 4 and 16 epochs, no held-out text" in told


def test_weights_of_a_phase_are_looked_at(folder: Path) -> None:
    options = new(folder, "more", ":augmented")
    with pytest.raises(UserError, match=r"phase 2: the weights of pairs, web sum to 100, .* or say --allow scales"):
        append(planned(folder), "web=60,pairs=40,more=1", *options)
    told = append(
        planned(folder), "web=60,pairs=40,more=0.2", "--train-tokens", "3k", *options, *("--max-epochs", "web=9")
    )
    assert "note: phase 2: more 0.2 beside weights of pairs, web" in told

"""What a recipe holds out is held against the sources of its blend before step 1."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import TinyRun, ipt, with_byte_tokenizer
from forks import forked_python

from data_prep.blend import plan
from data_prep.indexing import index
from data_prep.readers import write_jsonl
from data_prep.records import Origin, TrainingText
from data_prep.settings import BlendSettings, IndexSettings

_CHECK = """
import json, logging, sys
from pathlib import Path
from types import SimpleNamespace
from data_prep.errors import UserError
from megatron_ipt.mcore import parallel
from megatron_ipt.paths import RunPaths
from megatron_ipt.recipe import load_recipe, section
from megatron_ipt.training import start as starts

told = []
class Keep(logging.Handler):
    def emit(self, record):
        told.append(record.getMessage())
logging.getLogger().addHandler(Keep())
found = {}
with parallel.distributed():
    for name, (overrides, before) in json.loads(sys.argv[2]).items():
        told.clear()
        recipe = load_recipe(Path(sys.argv[1]), overrides)
        train = section(recipe, "train")
        try:
            stream, held_out = starts.open_data(train, RunPaths(recipe.output_dir))
            card = None
            if before is not None:
                card = SimpleNamespace(blend_hash=stream.blend_hash, recipe={"train": {"held_out": before}})
            starts.check_held_out(stream, held_out, recipe, card)
            found[name] = list(told)
        except UserError as error:
            found[name] = str(error)
print(json.dumps(found))
"""


def documents(*numbers: int) -> list[dict[str, Any]]:
    return [{"id": f"doc-{number}", "source": "farm", "text": f"Wand {number} steht. " * 4} for number in numbers]


def asked(number: int) -> dict[str, Any]:
    """A closed book about a document."""
    origins = (Origin(f"doc-{number}", "farm", 0, 40),)
    return TrainingText(f"chain-{number}", "Was? Das. " * 6, origins).to_json()


@pytest.fixture(scope="module")
def folder(tiny: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("held_out")
    tokenizer = with_byte_tokenizer(tiny.hf, folder / "hf")
    rows = {
        "raw": documents(*range(40)),
        "pairs": [asked(number) for number in range(40, 60)],
        "apart": documents(100, 101),
        "trained_on": documents(5, 102),
        "asked_about": documents(45, 103),
    }
    for name, lines in rows.items():
        write_jsonl(folder / f"{name}.jsonl", lines)
        index(IndexSettings(encoder="tokenizers"), [folder / f"{name}.jsonl"], tokenizer, folder / name)
    sources = {"raw": {"prefix": "raw", "weight": 1}, "pairs": {"prefix": "pairs", "kind": "augmented", "weight": 1}}
    blends: dict[str, dict[str, Any]] = {
        "plain": {},
        "meant": {"allow": ["held_out"]},
        "checked": {"allow": ["held_out"], "held_out": {"news": "trained_on"}},
        "split": {"split": {"validation": 0.3}},
    }
    for name, changes in blends.items():
        settings = BlendSettings.model_validate({"sources": sources, "seq_length": 64, "period": 8, **changes})
        plan(settings, folder / name, folder)
    return folder


def test_held_out_text_that_is_trained_on_is_refused_before_step_1(tiny: TinyRun, folder: Path) -> None:
    prefix = {name: str(folder / name) for name in ("trained_on", "asked_about", "apart", "raw")}

    def case(blend: str, held_out: str, before: str | None = None, *more: str) -> tuple[list[str], str | None]:
        return [f"train.blend={folder / blend / 'blend.json'}", f"train.held_out={held_out}", *more], before

    clash = [f"train.blend={folder / 'split/blend.json'}", "train.held_out={}", f"train.held_out.raw={prefix['apart']}"]
    cases = {
        "apart": case("plain", prefix["apart"]),
        "trained_on": case("plain", prefix["trained_on"]),
        "asked_about": case("plain", prefix["asked_about"]),
        "a_source": case("plain", prefix["raw"]),
        "meant": case("meant", prefix["trained_on"]),
        "checked": case("checked", prefix["trained_on"]),
        "resumed": case("plain", prefix["trained_on"], prefix["trained_on"]),
        "resumed_with_another": case("plain", prefix["trained_on"], prefix["apart"]),
        "split": ([clash[0], "train.held_out={}"], None),
        "clash": (clash, None),
        "foreign": ([], None),
    }
    found: Any = forked_python(_CHECK, str(tiny.recipe), json.dumps(cases))
    told = "1 of its texts stand in the source"
    assert found["apart"] == found["checked"] == found["resumed"] == found["split"] == []
    assert found["trained_on"].startswith(f"train.held_out, set 'trained_on': {told} 'raw' (raw)")
    assert found["trained_on"].endswith("or say allow: [held_out] where the blend is planned")
    assert found["asked_about"].startswith(f"train.held_out, set 'asked_about': {told} 'pairs' (augmented)")
    assert "40 of its texts stand in the source 'raw'" in found["a_source"]
    assert found["meant"] == [f"train.held_out, set 'trained_on': {told} 'raw' (raw)"]
    (unchecked,) = found["foreign"]
    assert unchecked.endswith("whether its texts are trained on could not be checked: it has no lineage")
    assert found["resumed_with_another"] == found["trained_on"]
    problem = "is the name of a held-out set and of a source that has a validation set of its own"
    assert found["clash"] == f"train.held_out.raw: {problem}; give the held-out set another name"


def test_a_run_does_not_begin_with_it(tiny: TinyRun, folder: Path) -> None:
    run = [tiny.recipe, f"output_dir={folder / 'run'}", f"model.load_hf={folder / 'hf'}", "train.train_iters=1"]
    data = [f"train.blend={folder / 'plain/blend.json'}", f"train.held_out={folder / 'trained_on'}"]
    refused = ipt("train", *run, *data, check=False)
    assert refused.returncode == 1 and "1 of its texts stand in the source 'raw'" in refused.stdout + refused.stderr

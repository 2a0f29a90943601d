"""What tests/gpu sets where a GPU is, and no rehearsal reaches: megatron-core's configurations take it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from forks import forked_python
from gpu import runs, test_documents, test_fp8, test_graphs, test_optimizer

CODE = """
import json, sys
from pathlib import Path
from data_prep.errors import UserError
from megatron_ipt.convert.families import read_architecture
from megatron_ipt.mcore import config as configs
from megatron_ipt.recipe import load_recipe, section

told = {}
for name, overrides in json.loads(sys.argv[2]).items():
    try:
        recipe = load_recipe(Path(sys.argv[1]), overrides)
        train, model = section(recipe, "train"), section(recipe, "model")
        config = configs.transformer_config(read_architecture(model.load_hf), train)
        optimizer = configs.optimizer_config(train)
        configs.ddp_config(train)
        told[name] = [config.fp8, config.fp8_recipe, config.cuda_graph_impl, config.attention_backend.name,
                      str(optimizer.exp_avg_dtype)]
    except UserError as error:
        told[name] = str(error)
print(json.dumps(told))
"""


@pytest.mark.skipif(runs.REHEARSAL, reason="a rehearsal leaves these settings out")
def test_the_settings_of_a_gpu_are_legal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_dataset: Any) -> None:
    setting = runs.make(tmp_path, write_dataset)
    jobs = {
        **{name: test_fp8.overrides(*recipe) for name, recipe in test_fp8.RECIPES.items()},
        **{kind: test_graphs.overrides(kind) for kind in test_graphs.KINDS},
        **{attention: test_documents.overrides(attention) for attention in test_documents.ATTENTION},
        "aware": test_optimizer.AWARE,
    }
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    told = forked_python(CODE, str(setting.recipe), json.dumps(jobs))
    refused = {name: told.pop(name) for name in jobs if isinstance(told[name], str)}
    assert refused.keys() <= {"aware"}, refused
    if refused:  # megatron-core looks for the kernels of these states at once
        assert "requires FusedAdam from TransformerEngine, but not found" in refused["aware"]
    else:
        assert told["aware"][4] == "torch.bfloat16"
    for name, (recipe, fp8, _) in test_fp8.RECIPES.items():
        assert told[name][:2] == [fp8, recipe]
    assert [told[kind][2] for kind in test_graphs.KINDS] == list(test_graphs.KINDS)
    assert [told[attention][3] for attention in test_documents.ATTENTION] == list(test_documents.ATTENTION)

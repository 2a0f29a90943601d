"""Both sides of a case built without a GPU: fields checked by megatron-core's own classes, weights on the meta device.

Told are the weights, the bytes that stand on the fullest rank by the arithmetic of `ipt plan`, and every field in which
the two sides' configurations differ.  Run with a case as JSON it prints that as JSON.
"""

from __future__ import annotations

import megatron_ipt.mcore.shim  # noqa: F401  # isort: skip

import dataclasses
import importlib.machinery
import importlib.util
import json
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import bare_loop
import torch
import training_jobs
import training_limits
from pydantic import ValidationError
from training_cases import Case

from data_prep.errors import UserError
from megatron_ipt.architecture import padded_vocab_size, with_settings
from megatron_ipt.mcore import config as configs
from megatron_ipt.mcore import dry
from megatron_ipt.plan.layout import LayoutPlan, plan_layout
from megatron_ipt.recipe import Recipe, section

_HERE = {"use_cpu_initialization": True, "cuda_graph_impl": "none"}


def dry_run(case: Case) -> dict[str, Any]:
    """What each side would hold; UserError, or what megatron-core raises, for a setting that is not legal."""
    layers = "transformer_engine" if case.gpu else "local"
    job = dataclasses.asdict(training_jobs.job(case, layers, Path("tokens.bin"), 2))
    recipe = _recipe(case)
    model, train = section(recipe, "model"), section(recipe, "train")
    architecture = with_settings(None, model)
    assert padded_vocab_size(architecture, model, train) == job["vocab_size"], "the bare loop does not pad"
    train = train.model_copy(update={"transformer_impl": layers})
    planned = plan_layout(architecture, model, train, case.processes)
    ours = [configs.transformer_config(architecture, train), configs.optimizer_config(train)]
    ours.append(configs.ddp_config(train))
    with _named_optimizer():
        theirs = [bare_loop.transformer_config(job), bare_loop.optimizer_config(job), bare_loop.ddp_config(job)]
    return {
        "parameters": planned.parameters,
        "on_a_rank": [stage.parameters for stage in planned.stages],
        "bare_on_a_rank": [_bare_parameters(case, stage.pipeline_rank) for stage in planned.stages],
        **memory(case, planned),
        "differences": {key: value for pair in zip(ours, theirs, strict=True) for key, value in _unlike(*pair).items()},
    }


def _recipe(case: Case) -> Recipe:
    try:
        return Recipe.model_validate(training_jobs.recipe(case, Path("run"), Path("blend.json")))
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(".".join(map(str, first["loc"])), first["msg"], "mend it in --set") from error


def memory(case: Case, planned: LayoutPlan) -> dict[str, int]:
    """Bytes on the fullest rank: `standing` all the time, and `estimate`, with activations and logits, at most."""
    standing = int(max(stage.static_bytes for stage in planned.stages)) + training_limits.LIBRARIES
    kept = max(stage.activation_bytes for stage in planned.stages)
    return {"standing_bytes": standing, "estimated_bytes": standing + kept + training_limits.logits_bytes(case)}


def _bare_parameters(case: Case, pipeline_rank: int) -> int:
    free = {**case.train.get("transformer_config", {}), **_HERE}
    here = dataclasses.replace(case, train={**case.train, "transformer_config": free})
    job = dataclasses.asdict(training_jobs.job(here, "local", Path("tokens.bin"), 2))
    ways = case.train.get("tensor_model_parallel_size", 1)
    stages = case.train.get("pipeline_model_parallel_size", 1)
    rank = pipeline_rank * (case.processes // stages)
    with dry.fake_group(rank, case.processes):
        bare_loop.mpu.initialize_model_parallel(ways, stages, create_gloo_process_groups=False)
        try:
            bare_loop.tensor_parallel.model_parallel_cuda_manual_seed(1, force_reset_rng=True)
            with torch.device("meta"):
                built = bare_loop.build(job, bare_loop.transformer_config(job))
        finally:
            bare_loop.mpu.destroy_model_parallel()
    return sum(weight.numel() for weight in built.parameters())


def _unlike(ours: Any, theirs: Any) -> dict[str, tuple[str, str]]:
    """Fields of one configuration in which the sides differ, with both values."""
    found = {}
    for field in dataclasses.fields(ours):
        mine, other = getattr(ours, field.name), getattr(theirs, field.name)
        # a partial function is equal to itself alone, and tells its arguments
        if mine != other and str(mine) != str(other):
            found[f"{type(ours).__name__}.{field.name}"] = (str(mine), str(other))
    return found


@contextmanager
def _named_optimizer() -> Iterator[None]:
    """Within, where there is no Transformer Engine, its Adam has a name and arguments.

    OptimizerConfig looks for them as it is made with use_precision_aware_optimizer; nothing of it computes here.
    """
    if importlib.util.find_spec("transformer_engine") is not None:
        yield
        return
    packages = ("transformer_engine", "transformer_engine.pytorch", "transformer_engine.pytorch.optimizers")
    for name in packages:
        module = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
        module.__path__ = []
        sys.modules[name] = module
    sys.modules[packages[0]].__version__ = "2.20.2"  # type: ignore[attr-defined]  # remainders of masters: from 2.1 on
    sys.modules[packages[-1]].FusedAdam = _Adam  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for name in packages:
            del sys.modules[name]


class _Adam:
    def __init__(self, master_weight_dtype: Any, exp_avg_dtype: Any, exp_avg_sq_dtype: Any, use_decoupled_grad: Any):
        """The arguments that are looked for."""


if __name__ == "__main__":
    print(json.dumps(dry_run(Case(**json.loads(sys.argv[1])))))

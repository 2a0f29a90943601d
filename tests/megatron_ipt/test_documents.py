"""Attention within documents, and context parallelism: each document as if it were alone, on any number of ranks.

The oracles are transformers, which reads one document after the other, and megatron-core's own slicing.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import TinyRun, losses, torchrun
from test_device import run_python

from data_prep.errors import UserError
from megatron_ipt.data.stream import BlendStream, Sample
from megatron_ipt.recipe import load_recipe

WORKER = Path(__file__).with_name("documents_worker.py")
MASKED = ["train.reset_attention_mask=true"]
RESET = [*MASKED, "train.reset_position_ids=true"]
CP2 = ["train.context_parallel_size=2"]
PLAIN_GRADIENTS = ["train.use_distributed_optimizer=false"]
SETTINGS = {"whole": [], "documents": MASKED, "positions": RESET}
LAYOUTS = {
    "cp2": CP2,
    "tp2_sp": ["train.tensor_model_parallel_size=2", "train.sequence_parallel=true"],
    "pp2": ["train.pipeline_model_parallel_size=2"],
}
TRAINED = {"cp2_whole": CP2, **{f"{name}_documents": [*layout, *MASKED] for name, layout in LAYOUTS.items()}}


@pytest.fixture(scope="module")
def computed(tiny: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """All of it in one torchrun of two processes; without another layout they are two replicas."""
    import torch

    out = tmp_path_factory.mktemp("documents") / "found.pt"
    plain = {**SETTINGS, **{f"cp2_{name}": [*CP2, *overrides] for name, overrides in SETTINGS.items()}}
    steps = {name: [*PLAIN_GRADIENTS, *overrides] for name, overrides in plain.items()}
    start = [f"train.load={tiny.init}", "train.finetune=true", "train.train_iters=3"]
    runs = {
        "train_whole": [],
        "train_documents": MASKED,
        **{f"train_{name}": layout for name, layout in TRAINED.items()},
    }
    runs = {name: [f"output_dir={tiny.folder / name}", *start, *layout] for name, layout in runs.items()}
    torchrun(2, WORKER, tiny.recipe, out, json.dumps(steps), json.dumps(runs))
    found: dict[str, Any] = torch.load(out)
    return found


@pytest.fixture(scope="module")
def samples(tiny: TinyRun) -> list[Sample]:
    """Those of a global batch; the first two are the first micro batch."""
    stream = BlendStream(tiny.blend)
    return [stream.sample(index) for index in range(8)]


@pytest.fixture(scope="module")
def alone(tiny: TinyRun, samples: list[Sample]) -> tuple[Any, Any, float]:
    """(logits of the first two samples, gradient of the embeddings, loss) with each document read alone."""
    import torch
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(tiny.hf, dtype=torch.float32)
    logits, total, count = [], torch.zeros(()), 0.0
    for sample in samples:
        tokens, segments = torch.from_numpy(sample.tokens), torch.from_numpy(sample.segments)
        parts = [tokens[segments == segment] for segment in segments.unique()]
        out = torch.cat([model(part[None]).logits[0] for part in parts])
        mask = torch.from_numpy(sample.loss_mask)
        each = torch.nn.functional.cross_entropy(out, torch.from_numpy(sample.labels), reduction="none")
        total, count = total + (each * mask).sum(), count + float(mask.sum())
        logits.append(out.detach())
    assert all(len(set(sample.segments.tolist())) > 1 for sample in samples[:2])
    loss = total / count
    loss.backward()
    return torch.stack(logits[:2]), model.model.embed_tokens.weight.grad, float(loss)


@pytest.mark.parametrize("name", ["documents", "positions", "cp2_documents", "cp2_positions"])
def test_a_document_is_read_as_if_it_were_alone(
    name: str, computed: dict[str, Any], alone: tuple[Any, Any, float]
) -> None:
    logits, gradient, loss = alone
    found = computed[name]
    assert float((found["logits"][..., : logits.shape[-1]] - logits).abs().max()) <= 2e-5
    embeddings = found["gradients"]["embedding.word_embeddings.weight"][: len(gradient)]
    assert float((embeddings - gradient).abs().max()) <= 1e-6
    assert found["loss"] == pytest.approx(loss, abs=2e-6)


def test_the_mask_matters(computed: dict[str, Any], alone: tuple[Any, Any, float]) -> None:
    """Without it the same data has other logits: the comparison above is not of two empty sets."""
    assert float((computed["whole"]["logits"][..., : alone[0].shape[-1]] - alone[0]).abs().max()) > 0.1


@pytest.mark.parametrize("name", SETTINGS)
def test_two_ranks_of_a_sequence_have_the_logits_and_gradients_of_one(name: str, computed: dict[str, Any]) -> None:
    one, two = computed[name], computed[f"cp2_{name}"]
    assert float((one["logits"] - two["logits"]).abs().max()) <= 2e-5
    assert one["gradients"].keys() == two["gradients"].keys()
    for parameter, gradient in one["gradients"].items():
        assert float((gradient - two["gradients"][parameter]).abs().max()) <= 1e-6, parameter
    assert (one["tokens"], [count for _, count in one["by_source"]]) == (
        two["tokens"],
        [count for _, count in two["by_source"]],
    )
    assert one["loss"] == pytest.approx(two["loss"], abs=1e-6)


def test_losses_by_source_are_those_of_their_samples(
    computed: dict[str, Any], samples: list[Sample], alone: tuple[Any, Any, float]
) -> None:
    import torch

    logits = computed["documents"]["logits"]
    tokens, summed = dict.fromkeys((0, 1), 0), dict.fromkeys((0, 1), 0.0)
    for place, sample in enumerate(samples):
        tokens[sample.source_index] += int(sample.loss_mask.sum())
        if place < len(logits):
            labels, mask = torch.from_numpy(sample.labels), torch.from_numpy(sample.loss_mask)
            each = torch.nn.functional.cross_entropy(logits[place].double(), labels, reduction="none")
            summed[sample.source_index] += float((each * mask).sum())
    found = computed["documents"]["by_source"]
    assert [count for _, count in found] == list(tokens.values())
    whole = sum(value for value, _ in found)
    assert whole / sum(tokens.values()) == pytest.approx(alone[2], abs=2e-6)
    assert all(tokens.values()) and all(found[source][0] >= summed[source] - 1e-3 for source in tokens)


@pytest.mark.parametrize("name", TRAINED)
def test_a_layout_trains_as_two_replicas(name: str, computed: dict[str, Any]) -> None:
    """test_layouts.py holds those against one process."""
    expected, found = computed[f"train_{name.split('_')[-1]}"], computed[f"train_{name}"]
    assert len(losses(found)) == 3
    for kind, field, tolerance in (("train", "loss", 2e-6), ("train", "grad_norm", 2e-5), ("validation", "loss", 2e-6)):
        a, b = ([row[field] for row in rows if row["kind"] == kind] for rows in (expected, found))
        assert a == pytest.approx(b, abs=tolerance)
    for row, other in zip(expected, found, strict=True):
        for source, figures in row.get("sources", {}).items():
            assert figures == pytest.approx(other["sources"][source], abs=5e-6)


@pytest.fixture(scope="module")
def megatron() -> dict[str, Any]:
    """What one process asks megatron-core, with fake groups.

    `transformer_engine` is a stand-in whose attention has the names of 2.x and only records what it is called with.
    """
    code = f"""
import json, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import transformer_engine_stand_in
import transformer_engine.pytorch as te
import torch
class Kernel(torch.nn.Module):
    def __init__(self, **_): super().__init__()
    def forward(self, query, key, value, attention_mask=None, qkv_format=None, cu_seqlens_q=None, cu_seqlens_kv=None,
                cu_seqlens_q_padded=None, cu_seqlens_kv_padded=None, max_seqlen_q=None, max_seqlen_kv=None,
                attn_mask_type=None, window_size=None, pad_between_seqs=None):
        return dict(mask=attention_mask, format=qkv_format, ends=cu_seqlens_q.tolist(), keys=cu_seqlens_kv.tolist(),
                    longest=[max_seqlen_q, max_seqlen_kv], type=attn_mask_type, dtype=str(cu_seqlens_q.dtype))
te.DotProductAttention = Kernel
from megatron_ipt.mcore import context, dry, layers, parallel, config
from megatron_ipt.architecture import Architecture
from megatron_ipt.recipe import TrainSettings
from megatron.core import parallel_state as mpu
from megatron.core.extensions.transformer_engine import TEDotProductAttention
from megatron.core.models.common.embeddings.rope_utils import get_pos_emb_on_this_cp_rank
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.utils import _merge_cu_seqlens_across_micro_batch, get_batch_on_this_cp_rank
model = Architecture(4, 64, 176, 8, 4, 8, 1e-5, 1e4, 512)
told = {{"slices": [], "attention": {{}}}}
tokens = torch.arange(48).view(3, 16)
whole = {{"tokens": tokens, "labels": tokens + 1, "loss_mask": tokens * 0.5, "position_ids": tokens % 16}}
segments = torch.tensor([[0, 0, 0, 1, 1, 2], [0, 1, 1, 1, 1, 1]])
for size in (1, 2, 4):
    train = TrainSettings(global_batch_size=2, seq_length=16, train_iters=1, lr=1e-3, context_parallel_size=size,
                          transformer_impl="transformer_engine", reset_attention_mask=True)
    for rank in range(size):
        with dry.fake_group(rank, size), parallel.model_parallel(train, with_gloo=False):
            group = mpu.get_context_parallel_group()
            ours = context.inputs(whole, train).columns
            theirs = get_batch_on_this_cp_rank({{**whole, "cu_seqlens": None}}, False, cp_group=group)
            told["slices"] += [bool(torch.equal(ours[name], theirs[name])) for name in whole]
            places = context.places(16, size, rank, torch.device("cpu"))
            told["slices"].append(places.tolist() == get_pos_emb_on_this_cp_rank(torch.arange(16), 0, group).tolist())
            cfg = config.transformer_config(model, train)
            for masks in (False, True):
                spec = layers.block_spec(cfg, None, document_masks=masks).layer_specs[0].submodules.self_attention
                told["attention"][f"{{size}} {{masks}}"] = spec.submodules.core_attention.__name__
            if size == 1:
                attention = TEDotProductAttention(cfg, 1, AttnMaskType.causal, "self")
                here = context.inputs({{"tokens": segments, "segments": segments}}, train)
                told["shape"] = list(here.columns["tokens"].shape)
                told["kernel"] = attention(None, None, None, here.attention_mask, AttnMaskType.causal,
                                           packed_seq_params=here.packed_seq_params)
ends = torch.tensor([[0, 3, 5, 6], [0, 1, 6, 6]], dtype=torch.int32)
told["merged"] = _merge_cu_seqlens_across_micro_batch(ends, 6).tolist()
print(json.dumps(told))"""
    told = run_python(code)
    assert isinstance(told, dict)
    return told


def test_slices_and_positions_are_those_of_megatron(megatron: dict[str, Any]) -> None:
    """Every rank of 1, 2 and 4, against get_batch_on_this_cp_rank and get_pos_emb_on_this_cp_rank."""
    assert megatron["slices"] == [True] * 5 * (1 + 2 + 4)


def test_where_documents_end_is_what_megatron_packs(megatron: dict[str, Any]) -> None:
    """PackedSeqParams against megatron-core's own merge of a micro batch, and what its wrapper hands to the kernel."""
    kernel = megatron["kernel"]
    assert kernel["ends"] == kernel["keys"] == megatron["merged"] == [0, 3, 5, 6, 7, 12]
    assert (kernel["format"], kernel["type"], kernel["mask"]) == ("thd", "padding_causal", None)
    assert (kernel["longest"], kernel["dtype"], megatron["shape"]) == ([5, 5], "torch.int32", [1, 12])


def test_our_attention_stands_in_transformer_engines_layers_where_documents_are_split(megatron: dict[str, Any]) -> None:
    theirs = dict.fromkeys(["1 False", "1 True", "2 False", "4 False"], "TEDotProductAttention")
    assert megatron["attention"] == {**theirs, **dict.fromkeys(["2 True", "4 True"], "DotProductAttention")}


def test_positions_of_documents_without_their_mask_are_refused(tiny: TinyRun) -> None:
    with pytest.raises(UserError, match="reset_position_ids needs reset_attention_mask"):
        load_recipe(tiny.recipe, ["train.reset_position_ids=true"])

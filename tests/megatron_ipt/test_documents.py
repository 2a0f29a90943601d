"""Attention within documents, and context parallelism: each document as if it were alone, on any number of ranks.

The oracle is transformers, which reads one document after the other.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from conftest import SEQ_LENGTH, TinyRun, losses, run_ranks

from data_prep.errors import UserError
from data_prep.indexing.reader import IndexedDatasetReader
from megatron_ipt.data.stream import BlendStream, Sample
from megatron_ipt.recipe import load_recipe

WORKER = Path(__file__).with_name("documents_worker.py")
MASKED = ["train.reset_attention_mask=true"]
RESET = [*MASKED, "train.reset_position_ids=true"]
CP2 = ["train.context_parallel_size=2"]
PLAIN_GRADIENTS = ["train.use_distributed_optimizer=false"]
HELD_OUT = {"domain": "held_out", "general": "three"}
SETTINGS = {"whole": [], "documents": MASKED, "positions": RESET}
LAYOUTS = {
    "cp2": CP2,
    "tp2_sp": ["train.tensor_model_parallel_size=2", "train.sequence_parallel=true"],
    "pp2": ["train.pipeline_model_parallel_size=2"],
}
RECOMPUTED = [f"train.recompute_{name}" for name in ("granularity=full", "method=uniform", "num_layers=1")]
TRAINED = {"cp2_whole": CP2, **{f"{name}_documents": [*layout, *MASKED] for name, layout in LAYOUTS.items()}}


@pytest.fixture(scope="module")
def computed(tiny: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """All of it in one group of two processes; without another layout they are two replicas."""
    import torch

    out = tmp_path_factory.mktemp("documents") / "found.pt"
    plain = {**SETTINGS, **{f"cp2_{name}": [*CP2, *overrides] for name, overrides in SETTINGS.items()}}
    steps = {name: ("step", [*PLAIN_GRADIENTS, *overrides]) for name, overrides in plain.items()}
    start = [f"train.load={tiny.init}", "train.finetune=true", "train.train_iters=3"]
    start += [f"train.held_out.{name}={tiny.folder / prefix}" for name, prefix in HELD_OUT.items()]
    runs = {
        "train_whole": [],
        "train_documents": MASKED,
        **{f"train_{name}": layout for name, layout in TRAINED.items()},
    }
    trained = {name: ("run", [f"output_dir={tiny.folder / name}", *start, *layout]) for name, layout in runs.items()}
    run_ranks(2, WORKER, tiny.recipe, out, json.dumps({**steps, **trained}))
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
    assert one["tokens"] == two["tokens"]
    assert [part[1:] for part in one["by_source"]] == [part[1:] for part in two["by_source"]]
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
    assert [part[1] for part in found] == list(tokens.values())
    assert [part[2] for part in found] == [sum(s.source_index == source for s in samples) for source in (0, 1)]
    whole = sum(part[0] for part in found)
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


def test_each_held_out_set_is_scored_by_its_name(tiny: TinyRun, computed: dict[str, Any]) -> None:
    import torch
    from transformers import LlamaForCausalLM

    rows = [row for row in computed["train_whole"] if row["kind"] == "validation"]
    assert [(row["iteration"], row["name"]) for row in rows] == [(at, name) for at in (0, 3) for name in HELD_OUT]
    model = LlamaForCausalLM.from_pretrained(tiny.hf, dtype=torch.float32)
    for row in rows[:2]:
        tokens = [token for document in documents(tiny.folder / HELD_OUT[row["name"]]) for token in document]
        total, count = 0.0, 0
        for start in range(0, min(len(tokens) - 1, 8 * SEQ_LENGTH), SEQ_LENGTH):  # eval_iters=1: a global batch
            part = torch.tensor(tokens[start : start + SEQ_LENGTH + 1])
            with torch.no_grad():
                logits = model(part[None, :-1]).logits[0]
            total += float(torch.nn.functional.cross_entropy(logits, part[1:], reduction="sum"))
            count += len(part) - 1
        assert (row["tokens"], row["loss"]) == (count, pytest.approx(total / count, abs=2e-6))
        # conftest writes 4 bytes of text a token
        assert row["bits_per_byte"] == pytest.approx(total / count / math.log(2) / 4, abs=2e-6)


def documents(prefix: Path) -> list[list[int]]:
    reader = IndexedDatasetReader(prefix)
    return [reader.document(index).tolist() for index in range(reader.documents)]


def test_sources_are_counted_to_the_end_of_the_step(tiny: TinyRun, computed: dict[str, Any]) -> None:
    stream = BlendStream(tiny.blend)
    rows = [row for row in computed["train_cp2_documents"] if row["kind"] == "train"]
    for row in rows:
        samples = [stream.sample(index) for index in range(row["consumed_samples"])]
        for name, figures in row["sources"].items():
            drawn = [sample for sample in samples if sample.source == name]
            labels = [sample.loss_mask.sum() for sample in samples[-8:] if sample.source == name]
            assert (figures["consumed_samples"], figures["consumed_tokens"]) == (len(drawn), SEQ_LENGTH * len(drawn))
            assert figures["loss_tokens"] == sum(labels)
            tokens = sum(len(document) for document in documents(tiny.folder / name))
            assert figures["epochs"] == len(drawn) / math.ceil((tokens - 1) / SEQ_LENGTH)
        whole = sum(figures["loss"] * figures["loss_tokens"] for figures in row["sources"].values() if figures["loss"])
        assert whole / row["loss_tokens"] == pytest.approx(row["loss"], abs=1e-6)


@pytest.mark.long
def test_context_parallelism_beside_everything_else(tiny: TinyRun, train_layouts: Any) -> None:
    """Four processes, against four replicas of the same global batch."""
    start = [f"train.load={tiny.init}", "train.finetune=true", "train.train_iters=3"]
    layouts = {
        "dp2_cp2": CP2,
        "cp4": ["train.context_parallel_size=4"],
        "tp2_sp_cp2": [*CP2, *LAYOUTS["tp2_sp"]],
        "pp2_cp2": [*CP2, *LAYOUTS["pp2"]],
        "pp2_vpp2_cp2": [*CP2, *LAYOUTS["pp2"], "train.virtual_pipeline_model_parallel_size=2"],
        "recomputed": [*CP2, *RECOMPUTED],
    }
    jobs = {f"whole {name}": [*start, *layout] for name, layout in {"dp4": [], **layouts}.items()}
    jobs |= {f"documents {name}": [*start, *layout, *RESET] for name, layout in {"dp4": [], **layouts}.items()}
    found = train_layouts(4, jobs)
    for kind in ("whole", "documents"):
        expected = found[f"{kind} dp4"]
        assert len(losses(expected)) == 3
        for name in layouts:
            assert losses(found[f"{kind} {name}"]) == pytest.approx(losses(expected), abs=2e-6), name
            norms = [
                [row["grad_norm"] for row in rows if row["kind"] == "train"]
                for rows in (expected, found[f"{kind} {name}"])
            ]
            assert norms[0] == pytest.approx(norms[1], abs=2e-5), name
    assert abs(losses(found["whole dp4"])[0] - losses(found["documents dp4"])[0]) > 1e-3


def test_positions_of_documents_without_their_mask_are_refused(tiny: TinyRun) -> None:
    with pytest.raises(UserError, match="reset_position_ids needs reset_attention_mask"):
        load_recipe(tiny.recipe, ["train.reset_position_ids=true"])

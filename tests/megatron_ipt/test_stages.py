"""Which layers a pipeline rank has: our arithmetic beside megatron-core's parser and what its ranks build."""

from __future__ import annotations

import json
from typing import Any

import pytest
from forks import forked_python
from pydantic import ValidationError

from data_prep.errors import UserError
from megatron_ipt.architecture import Architecture, even_layout, stage_layers
from megatron_ipt.plan.activations import chunk_bytes, in_flight, kept_bytes
from megatron_ipt.plan.batches import batches
from megatron_ipt.settings import TrainSettings
from megatron_ipt.settings.layout import chunks_of

STRINGS = ["Et|tL", "Ettt,(tt|)*3,t|L", "E|t*3|(t*2|)*2L", "Et*2|(t|tt)*2|L", "(E)*1t|L"]
LAYERS = 6
BUILT: dict[str, dict[str, Any]] = {
    "even": {"pipeline_model_parallel_size": 3},
    "even_virtual": {"pipeline_model_parallel_size": 3, "virtual_pipeline_model_parallel_size": 2},
    "first": {"pipeline_model_parallel_size": 3, "num_layers_in_first_pipeline_stage": 4},
    "last": {"pipeline_model_parallel_size": 2, "num_layers_in_last_pipeline_stage": 1},
    "first_and_last": {
        "pipeline_model_parallel_size": 3,
        "num_layers_in_first_pipeline_stage": 1,
        "num_layers_in_last_pipeline_stage": 2,
    },
    "layout": {"pipeline_model_parallel_size": 2, "pipeline_model_parallel_layout": "Ett|ttttL"},
    "layout_virtual": {"pipeline_model_parallel_size": 2, "pipeline_model_parallel_layout": "Et|ttt|t|tL"},
    "tables_alone": {"pipeline_model_parallel_size": 2, "pipeline_model_parallel_layout": "E|tt|tttt|L"},
}

FULL = {"recompute_granularity": "full", "bf16": False}
RECOMPUTED: dict[str, dict[str, Any]] = {
    "each layer": {**FULL, "recompute_method": "uniform", "recompute_num_layers": 1},
    "groups of 4": {**FULL, "recompute_method": "uniform", "recompute_num_layers": 4},
    "the first 4": {**FULL, "recompute_method": "block", "recompute_num_layers": 4},
    "the first 5": {**FULL, "recompute_method": "block", "recompute_num_layers": 5},
    "all": {"bf16": False},
    "mlp": {"recompute_granularity": "selective", "recompute_modules": ["mlp"], "bf16": False},
}

ASK = """
import json, sys
from megatron_ipt.architecture import Architecture
from megatron_ipt.mcore import dry
from megatron_ipt.settings import TrainSettings
from megatron.core.transformer.pipeline_parallel_layer_layout import PipelineParallelLayerLayout as Layout
strings, built, kept = json.loads(sys.argv[1])
letters = {"embedding": "E", "decoder": "t", "loss": "L"}
def read(text):
    return ["".join(letters[kind.name] for kind in row) for row in Layout.parse_str_to_list(text)]
told = {text: read(text) for text in strings}
model = Architecture(6, 64, 176, 8, 4, 8, 1e-5, 1e4, 512)
for name, settings in built.items():
    train = TrainSettings(global_batch_size=8, seq_length=64, train_iters=1, lr=1e-3, **settings)
    told[name] = []
    for rank in range(train.pipeline_model_parallel_size):
        found = dry.build_rank(model, train, 512, rank, train.pipeline_model_parallel_size)
        layers = {weight.name.split(".")[2] for weight in found.parameters if ".layers." in weight.name}
        tables = [weight.name.split(".")[0] for weight in found.parameters if ".layers." not in weight.name]
        told[name].append([found.chunks, sorted(map(int, layers)), tables])
import torch
from megatron_ipt.mcore import config, parallel
from megatron_ipt.mcore import model as models
for name, settings in kept.items():
    train = TrainSettings(global_batch_size=2, micro_batch_size=2, seq_length=16, train_iters=1, lr=1e-3, **settings)
    sizes = {}
    def pack(tensor):  # what is kept twice takes room once
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor
    with parallel.distributed(), parallel.model_parallel(train):
        (chunk,) = models.build(model, config.transformer_config(model, train), train, 512)
        weights = {weight.untyped_storage().data_ptr() for weight in chunk.parameters()}
        tokens = torch.arange(32).view(2, 16)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            chunk.train()(tokens, tokens % 16, None, labels=tokens)
    told[name] = sum(sizes.values())
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def megatron() -> dict[str, Any]:
    found = forked_python(ASK, json.dumps([STRINGS, BUILT, RECOMPUTED]))
    assert isinstance(found, dict)
    return found


def train(**settings: Any) -> TrainSettings:
    return TrainSettings(**{"global_batch_size": 8, "seq_length": 512, "train_iters": 1, "lr": 1e-4, **settings})


@pytest.mark.parametrize("text", STRINGS)
def test_a_layout_is_read_as_megatron_reads_it(text: str, megatron: dict[str, Any]) -> None:
    assert list(chunks_of(text)) == megatron[text]


@pytest.mark.parametrize("name", BUILT)
def test_each_rank_builds_the_layers_that_we_count(name: str, megatron: dict[str, Any]) -> None:
    """Each layer once, the embedding on the first rank, the final norm and the output on the last."""
    counted = stage_layers(LAYERS, train(**BUILT[name]))
    assert [(chunks, len(layers)) for chunks, layers, _ in megatron[name]] == [(len(of), sum(of)) for of in counted]
    assert sorted(layer for _, layers, _ in megatron[name] for layer in layers) == list(range(LAYERS))
    tables = [found for _, _, found in megatron[name]]
    assert (tables[0], tables[-1]) == (["embedding"], ["decoder", "output_layer"])


def test_a_layout_says_how_many_chunks_a_rank_has() -> None:
    """Left at None, megatron-core builds the first of them only, without an error."""
    found = train(**BUILT["layout_virtual"])
    assert found.virtual_pipeline_model_parallel_size == 2
    assert TrainSettings(**json.loads(found.model_dump_json())) == found


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"pipeline_model_parallel_size": 4}, "1, 2, 3, 6, or pipeline_model_parallel_layout: Et|t*2|t*2|tL"),
        (
            {"pipeline_model_parallel_size": 3, "num_layers_in_first_pipeline_stage": 3},
            "leaves 3 of 6 layers for 2 other stages; use 4, 2, pipeline_model_parallel_layout: Et*2|t*2|t*2L",
        ),
        (
            {**BUILT["first_and_last"], "pipeline_model_parallel_size": 2},
            "leaves 3 of 6 layers for 0 other stages; use 4, pipeline",
        ),
        (
            {**BUILT["last"], "virtual_pipeline_model_parallel_size": 2},
            "the layers of a stage (5); use one of 5, or pipeline_model_parallel_layout: Et|t*2|t*2|tL",
        ),
        (
            {"pipeline_model_parallel_size": 2, "pipeline_model_parallel_layout": "Et|tttL"},
            "has 4 layers (t), the model 6; use Et*3|t*3L or another of 6",
        ),
    ],
)
def test_layers_that_do_not_divide_say_what_would(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError) as raised:
        stage_layers(LAYERS, train(**settings))
    assert told in str(raised.value)


@pytest.mark.parametrize(
    ("layout", "told"),
    [
        ("tt|ttL", "use E first, L last, and only t and | between them"),
        ("Et|mL", "use E first, L last"),
        ("Et||tt|tL", "chunk 2 has no layer"),
        ("Et|tt|tL", "has 3 chunks: use 2 or 4"),
    ],
)
def test_a_layout_that_cannot_be_is_told(layout: str, told: str) -> None:
    with pytest.raises(ValidationError) as raised:
        train(pipeline_model_parallel_size=2, pipeline_model_parallel_layout=layout)
    assert told in str(raised.value)
    with pytest.raises(ValidationError, match="use 2 x virtual_pipeline_model_parallel_size 3"):
        train(
            pipeline_model_parallel_size=2,
            virtual_pipeline_model_parallel_size=3,
            pipeline_model_parallel_layout=BUILT["layout_virtual"]["pipeline_model_parallel_layout"],
        )


@pytest.mark.parametrize(
    ("stages", "chunks", "rank", "expected"),
    [
        (2, (3,), 0, 2 * 3),  # one pass before the first backward, and the one in hand
        (2, (3,), 1, 3),
        (4, (7,), 1, 3 * 7),
        (2, (2, 2), 0, 5 * 2),  # 2 behind + 2 of the first chunk, and the one in hand
        (2, (0, 3), 0, 4 * 3),  # of 5 passes at most 4 are of the chunk that has layers
        (2, (3, 0), 1, 3 * 3),
    ],
)
def test_activations_of_uneven_chunks(stages: int, chunks: tuple[int, ...], rank: int, expected: int) -> None:
    """Layers x micro batches of 4, by the warm-up of megatron-core's two schedules."""
    found = in_flight(train(pipeline_model_parallel_size=stages), rank, chunks, micro_batches=4)
    assert found == expected


def test_activations_of_recomputed_layers(megatron: dict[str, Any]) -> None:
    """By hand, and what autograd keeps: local layers keep more of a layer than a fused one does, never less."""
    model = Architecture(LAYERS, 64, 176, 8, 4, 8, 1e-5, 1e4, 512)
    tokens, entry, layer = 32 * 4, 64, 4 * 64 + 2 * 12 * 8 + 3 * 176
    by_hand = {
        "each layer": (6 * entry, layer),
        "groups of 4": (2 * entry, 4 * layer),
        "the first 4": (4 * entry + 2 * layer, layer),
        "the first 5": (5 * entry + layer, layer),
        "all": (6 * layer, 0),
        "mlp": (6 * (layer - 3 * 176), 3 * 176),
    }
    for name, settings in RECOMPUTED.items():
        here = train(seq_length=16, micro_batch_size=2, **settings)
        assert chunk_bytes(model, here, LAYERS) == tuple(tokens * numbers for numbers in by_hand[name]), name
        assert kept_bytes(model, here, 0, (LAYERS,), 4) == tokens * sum(by_hand[name])
    four = train(pipeline_model_parallel_size=4, seq_length=16, micro_batch_size=2, **RECOMPUTED["each layer"])
    assert kept_bytes(model, four, 1, (LAYERS,), 4) == tokens * (3 * 6 * entry + layer)
    found = {name: megatron[name] for name in RECOMPUTED}
    assert found["each layer"] - found["groups of 4"] == tokens * 4 * entry
    of_a_layer = found["the first 4"] - found["the first 5"] + tokens * entry
    assert of_a_layer >= tokens * layer
    assert found["all"] - found["the first 5"] >= tokens * 5 * (layer - entry)
    assert tokens * 6 * 3 * 176 <= found["all"] - found["mlp"] < 6 * of_a_layer


def test_a_plan_tells_each_batch_of_a_ramp() -> None:
    """Ten steps: three of 8 from sample 0, two of 16 from 24, since 20 is passed by, and five of 32."""
    ramp = {"step_batch_size_schedule": "0:8 20:16 50:32", "global_batch_size": 32, "train_iters": 10}
    found = batches(train(pipeline_model_parallel_size=3, micro_batch_size=2, **ramp), replicas=2)
    assert [(batch.first_sample, batch.samples, batch.steps, batch.micro_batches) for batch in found] == [
        (0, 8, 3, 2),
        (20, 16, 2, 4),
        (50, 32, 5, 8),
    ]
    assert [(batch.bubble, batch.tokens) for batch in found] == [(1.0, 4096), (0.5, 8192), (0.25, 16384)]
    (alone,) = batches(train(pipeline_model_parallel_size=2, virtual_pipeline_model_parallel_size=2), replicas=1)
    assert (alone.steps, alone.micro_batches, alone.bubble) == (1, 8, 1 / 16)
    short = batches(train(**{**ramp, "train_iters": 2}), replicas=1)
    assert [batch.steps for batch in short] == [2, 0, 0]


@pytest.mark.parametrize(("layers", "chunks"), [(6, 2), (30, 4), (80, 7), (2, 4)])
def test_what_is_proposed_is_legal(layers: int, chunks: int) -> None:
    layout = even_layout(layers, chunks)
    counts = [chunk.count("t") for chunk in chunks_of(layout)]
    assert (len(counts), sum(counts)) == (chunks, layers)
    assert max(counts) - min(counts) <= 1

"""Which layers a pipeline rank has: our arithmetic beside megatron-core's parser and what its ranks build."""

from __future__ import annotations

import json
from typing import Any

import pytest
from conftest import run_python
from pydantic import ValidationError

from data_prep.errors import UserError
from megatron_ipt.architecture import even_layout, stage_layers
from megatron_ipt.plan.activations import in_flight
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

ASK = """
import json, sys
from megatron_ipt.architecture import Architecture
from megatron_ipt.mcore import dry
from megatron_ipt.settings import TrainSettings
from megatron.core.transformer.pipeline_parallel_layer_layout import PipelineParallelLayerLayout as Layout
strings, built = json.loads(sys.argv[1])
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
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def megatron() -> dict[str, Any]:
    found = run_python(ASK, json.dumps([STRINGS, BUILT]))
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


@pytest.mark.parametrize(("layers", "chunks"), [(6, 2), (30, 4), (80, 7), (2, 4)])
def test_what_is_proposed_is_legal(layers: int, chunks: int) -> None:
    layout = even_layout(layers, chunks)
    counts = [chunk.count("t") for chunk in chunks_of(layout)]
    assert (len(counts), sum(counts)) == (chunks, layers)
    assert max(counts) - min(counts) <= 1

"""Our blend under the samplers of other trainers, theirs as they are: the samples are those of our loader.

megatron-core's wheel brings Megatron-LM's samplers; another version of them, and Bridge's, are taken where they lie:

    MEGATRON_LM=path/to/Megatron-LM MEGATRON_BRIDGE=path/to/Megatron-Bridge pytest tests/megatron_ipt/test_provider.py
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import os
import pickle
import sys
from abc import ABC, abstractmethod
from argparse import Namespace
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from data_prep.blend import Blend, plan, read_blend
from data_prep.errors import UserError
from data_prep.indexing import index
from data_prep.readers import write_jsonl
from data_prep.settings import BlendSettings, IndexSettings
from megatron_ipt.data.loader import Loader, steps
from megatron_ipt.data.provider import BlendConfig, BlendDataset, BlendProvider, SplitDataset
from megatron_ipt.data.stream import BlendStream

SEQ_LENGTH, BATCH = 16, 8
FIELDS = ("tokens", "labels", "loss_mask", "position_ids")
ONE = [[10 + i, *range(200, 200 + i % 23), 0] for i in range(100)]
SMALL = [[7, 8, 0], [9, 0]]


@pytest.fixture
def blend(tmp_path: Path, write_dataset: Any) -> Path:
    for name, documents in (("one", ONE), ("small", SMALL), ("held_out", ONE[30:60])):
        write_dataset(tmp_path / name, documents)
    sources = {name: {"prefix": name, "weight": weight} for name, weight in (("one", 3), ("small", 1))}
    plan(
        BlendSettings(sources=sources, seq_length=SEQ_LENGTH, period=8, allow=("short_source",)),
        tmp_path / "out",
        tmp_path,
    )
    return tmp_path / "out/blend.json"


def load(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def megatron_lm(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Megatron-LM's own data_samplers.py; of `megatron.training`, which wants a cluster, only its arguments."""
    core = importlib.util.find_spec("megatron.core")
    assert core is not None and core.origin is not None
    root = Path(os.environ["MEGATRON_LM"]) / "megatron" if "MEGATRON_LM" in os.environ else Path(core.origin).parents[1]
    arguments: dict[str, Any] = {}
    training, signals = ModuleType("megatron.training"), ModuleType("megatron.training.dist_signal_handler")
    training.get_args = lambda: Namespace(**arguments)  # type: ignore[attr-defined]
    signals.DistributedSignalHandler = object  # type: ignore[attr-defined]
    for module in (training, signals):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(sys.modules, "data_samplers", None)
    samplers = load("data_samplers", root / "training" / "datasets" / "data_samplers.py")

    def batches(dataset: Any, consumed: int, rank: int, size: int, micro_batch_size: int, workers: int = 0) -> Any:
        place = {"get_data_parallel_rank": lambda: rank, "get_data_parallel_world_size": lambda: size}
        monkeypatch.setattr(samplers, "mpu", SimpleNamespace(**place))
        arguments.update(dataloader_type="single", hybrid_context_parallel=False, exit_signal_handler=False)
        arguments.update(micro_batch_size=micro_batch_size, global_batch_size=BATCH, num_workers=workers)
        return samplers.build_pretraining_data_loader(dataset, consumed)

    return batches


def by_number(batches: Iterable[Any], first: int, rank: int, size: int, micro_batch_size: int) -> dict[int, Any]:
    """Rows of one rank by the number of their sample, as Megatron deals them: a micro batch for each rank in turn."""
    rows = {}
    for turn, batch in enumerate(batches):
        for place in range(micro_batch_size):
            number = first + (turn * size + rank) * micro_batch_size + place
            rows[number] = {name: batch[name][place] for name in FIELDS}
    return rows


def of_our_loader(path: Path, first: int, stop: int, size: int) -> dict[int, Any]:
    rows = {}
    for rank in range(size):
        mine = steps(first, stop, BATCH, rank, size)
        with Loader(BlendStream(path).sample, steps(first, stop, BATCH, rank, size), 1) as loader:
            for numbers, batches in zip(mine, loader, strict=True):
                for number, batch in zip(numbers, batches, strict=True):
                    rows[number] = {name: batch[name][0].cpu() for name in FIELDS}
    return rows


def check_equal(found: dict[int, Any], expected: dict[int, Any]) -> None:
    assert found.keys() == expected.keys()
    for number, row in expected.items():
        for name in FIELDS:
            assert found[number][name].dtype == row[name].dtype
            assert torch.equal(found[number][name], row[name]), (number, name)


@pytest.mark.parametrize(("consumed", "size", "micro_batch_size"), [(0, 1, 4), (0, 2, 2), (24, 4, 1), (24, 2, 4)])
def test_megatrons_sampler_draws_the_samples_of_our_loader(
    blend: Path, megatron_lm: Any, consumed: int, size: int, micro_batch_size: int
) -> None:
    """From the start, and resumed in the middle with another data-parallel size."""
    total = 80
    found: dict[int, Any] = {}
    for rank in range(size):
        train, _, _ = BlendProvider(blend)((total, 0, 0))
        batches = megatron_lm(train, consumed, rank, size, micro_batch_size)
        found |= by_number(batches, consumed, rank, size, micro_batch_size)
    check_equal(found, of_our_loader(blend, consumed, total, size))
    straight = of_our_loader(blend, 0, total, 1)
    check_equal(found, {number: straight[number] for number in range(consumed, total)})


def test_its_worker_processes_draw_them_too(blend: Path, megatron_lm: Any) -> None:
    train, _, _ = BlendProvider(blend)((32, 0, 0))
    found = by_number(megatron_lm(train, 0, 0, 1, 4, workers=2), 0, 0, 1, 4)
    check_equal(found, of_our_loader(blend, 0, 32, 1))


def test_weights_that_change_on_the_way_replay_and_skip_nothing(blend: Path, megatron_lm: Any) -> None:
    before = read_blend(blend)
    later = before.phases[0].model_copy(update={"first_sample": 24, "shares": (1, 7)})
    appended = blend.with_name("appended.json")
    Blend.model_validate({**before.model_dump(), "phases": [*before.phases, later]}).write(appended)
    train, _, _ = BlendProvider(appended)((80, 0, 0))
    resumed = by_number(megatron_lm(train, 24, 0, 1, 4), 24, 0, 1, 4)
    check_equal(resumed, of_our_loader(appended, 24, 80, 1))
    stream = BlendStream(appended)
    old, new = ([stream.sample(number).source for number in run] for run in (range(24), range(24, 80)))
    assert (old.count("one"), new.count("one")) == (18, 7)
    alone = [BlendStream(blend).sample(number) for number in range(40)]
    of_one = [sample.pieces for sample in alone if sample.source == "one"]
    drawn = [sample.pieces for sample in map(stream.sample, range(80)) if sample.source == "one"]
    assert drawn == of_one[: len(drawn)]


def gpt_dataset(folder: Path, **masks: bool) -> Any:
    """megatron-core's own dataset on the blend's files."""
    gpt: Any = importlib.import_module("megatron.core.datasets.gpt_dataset")
    builder: Any = importlib.import_module("megatron.core.datasets.blended_megatron_dataset_builder")
    config = gpt.GPTDatasetConfig(
        random_seed=1,
        sequence_length=SEQ_LENGTH,
        blend=([str(folder / "one"), str(folder / "small")], [0.75, 0.25]),
        split="1,0,0",
        eod_mask_loss=False,
        tokenizer=SimpleNamespace(eod=0, pad=-1, vocab_size=1000, unique_identifiers={}),
        mid_level_dataset_surplus=0.5,
        path_to_cache=str(folder / "cache"),
        **{"reset_position_ids": False, "reset_attention_mask": False, "create_attention_mask": False, **masks},
    )
    (dataset, _, _) = builder.BlendedMegatronDatasetBuilder(gpt.GPTDataset, [40, 0, 0], lambda: True, config).build()
    return dataset


def masks_of_megatron(item: Any, **masks: bool) -> tuple[Any, Any]:
    """(attention_mask, position_ids) that megatron-core gives an item's tokens: a document ends at each 0."""
    gpt: Any = importlib.import_module("megatron.core.datasets.gpt_dataset")
    made = gpt._get_ltor_masks_and_position_ids(
        item["tokens"], 0, masks.get("reset_position_ids", False), masks.get("reset_attention_mask", False), False, True
    )
    return made[0], made[2]


@pytest.mark.parametrize(
    "masks",
    [
        {},
        {"create_attention_mask": True},
        {"create_attention_mask": True, "reset_attention_mask": True, "reset_position_ids": True},
        {"reset_position_ids": True},
    ],
    ids=lambda masks: "+".join(masks) or "none",
)
def test_items_are_those_of_gpt_dataset(blend: Path, masks: dict[str, bool]) -> None:
    """Keys, shapes and types of megatron-core's own GPTDataset; masks and positions as it makes them for our tokens."""
    expected = gpt_dataset(blend.parents[1], **masks)[0]
    ours, _, _ = BlendProvider(blend, **masks)((40, 0, 0))
    assert ours is not None and len(ours) == 40
    found = ours[0]
    assert found.keys() == expected.keys()
    for name in found.keys() - {"dataset_id"}:
        assert (found[name].dtype, found[name].shape) == (expected[name].dtype, expected[name].shape)
    unpadded = [item for item in map(ours.__getitem__, range(40)) if item["loss_mask"].all()]
    assert len(unpadded) > 20
    for item in unpadded:
        attention_mask, position_ids = masks_of_megatron(item, **masks)
        assert torch.equal(item["position_ids"], position_ids)
        if masks.get("create_attention_mask"):
            assert torch.equal(item["attention_mask"], attention_mask)


def check_documents(item: Any) -> None:
    """A document ends at each 0; positions start again with each, and bounds are followed by the sequence's length."""
    bounds = [0, *(place + 1 for place, token in enumerate(item["tokens"].tolist()[:-1]) if token == 0), SEQ_LENGTH]
    assert item["cu_seqlens"].tolist() == bounds + [SEQ_LENGTH] * (SEQ_LENGTH + 1 - len(bounds))
    longest = max(stop - start for start, stop in pairwise(bounds))
    assert int(item["max_seqlen"]) == longest
    positions = [place for start, stop in pairwise(bounds) for place in range(stop - start)]
    assert item["position_ids"].tolist() == positions


def test_documents_are_told_as_gpt_dataset_tells_them(blend: Path) -> None:
    """Under --dataloader-inter-document-masking; the same reading of the tokens holds for theirs and for ours."""
    theirs = gpt_dataset(blend.parents[1], inter_document_masking=True)
    ours, _, _ = BlendProvider(blend, inter_document_masking=True)((40, 0, 0))
    assert ours is not None
    assert {name: (item.dtype, item.shape) for name, item in ours[0].items() if name != "dataset_id"} == {
        name: (item.dtype, item.shape) for name, item in theirs[0].items() if name != "dataset_id"
    }
    for dataset in (theirs, ours):
        for number in range(40):
            if dataset[number]["loss_mask"].all():
                check_documents(dataset[number])
    padded = next(item for item in map(ours.__getitem__, range(40)) if not item["loss_mask"].all())
    assert int(padded["loss_mask"].sum()) + 1 in padded["cu_seqlens"].tolist()  # what pads is a document of its own


def test_held_out_samples_are_the_dataset_in_its_order(blend: Path) -> None:
    prefix = blend.parents[1] / "held_out"
    stream = [token for document in ONE[30:60] for token in document]
    sequences = -(-(len(stream) - 1) // SEQ_LENGTH)
    for wanted, expected in ((None, sequences), (sequences + 3, sequences + 3)):
        _, valid, _ = BlendProvider(blend, valid=prefix)((8, wanted, 0))
        assert valid is not None and len(valid) == expected
        for number in range(expected):
            at = number % sequences * SEQ_LENGTH
            real = stream[at : at + SEQ_LENGTH]
            assert valid[number]["tokens"].tolist()[: len(real)] == real
            assert valid[number]["loss_mask"].sum() == min(SEQ_LENGTH, len(stream) - 1 - at)


def test_it_is_what_pretrain_takes(blend: Path) -> None:
    """As Megatron-LM's training.py calls it: with vp_stage bound, its flag read off and, by pretrain_gpt.py, set."""
    provider = BlendProvider(blend, seq_length=lambda: SEQ_LENGTH, is_built_on_rank=lambda vp_stage: vp_stage != 1)
    assert "vp_stage" in inspect.signature(provider).parameters
    assert provider.is_distributed is True
    provider.is_distributed = True
    first, middle = (partial(provider, vp_stage=stage)([8, 0, 0]) for stage in (0, 1))
    assert isinstance(first[0], BlendDataset) and first[1:] == (None, None)
    assert middle == (None, None, None)


def test_a_dataset_travels_as_its_path(blend: Path) -> None:
    _, valid, _ = BlendProvider(blend, valid=blend.parents[1] / "held_out")((8, 4, 0))
    train, _, _ = BlendProvider(blend, create_attention_mask=True, reset_attention_mask=True)((8, 0, 0))
    for dataset in (train, valid):
        data = pickle.dumps(dataset)
        again = pickle.loads(data)
        assert len(data) < 1000 and len(again) == len(dataset)
        assert all(torch.equal(again[3][name], dataset[3][name]) for name in FIELDS)
        assert again[3].keys() == dataset[3].keys()
        for outside in (-1, len(dataset)):
            with pytest.raises(IndexError):
                dataset[outside]


def test_what_would_not_fit_is_refused(blend: Path, write_dataset: Any) -> None:
    other = blend.parents[1] / "other"
    write_dataset(other, SMALL, fingerprint="another tokenizer's")
    for options, samples, told in (
        ({"seq_length": 32}, (8, 0, 0), "the trainer's sequence length 32 is not the blend's 16"),
        ({}, (8, 4, 0), "valid: 4 validation samples are asked for, and no dataset is named; give its prefix, or set"),
        ({"valid": other}, (8, 4, 0), "was tokenized unlike the blend"),
        ({"reset_attention_mask": True}, (8, 0, 0), "is not made .*; set both, or inter_document_masking"),
    ):
        with pytest.raises(UserError, match=told):
            BlendProvider(blend, **options)(samples)


@pytest.fixture
def split(tmp_path: Path) -> Path:
    """Two sources of which a third of the raw documents is set apart; token n is the number of its document."""
    folder = tmp_path / "with_split"
    tokenizer = Tokenizer(models.WordLevel({"<end>": 0, "<unk>": 1, **{str(n): n for n in range(2, 200)}}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<end>"])
    (folder / "hf").mkdir(parents=True)
    tokenizer.save(str(folder / "hf/tokenizer.json"))
    (folder / "hf/tokenizer_config.json").write_text('{"eos_token": "<end>"}')
    for name, numbers in (("web", range(2, 82)), ("news", range(82, 122))):
        rows = [{"id": str(number), "source": "", "text": f"{number} " * (5 + number % 9)} for number in numbers]
        write_jsonl(folder / f"{name}.jsonl", rows)
        index(IndexSettings(encoder="tokenizers"), [folder / f"{name}.jsonl"], folder / "hf", folder / name)
    sources = {name: {"prefix": name, "weight": 1} for name in ("web", "news")}
    settings = {"sources": sources, "seq_length": SEQ_LENGTH, "period": 8, "split": {"validation": 0.3}}
    plan(BlendSettings.model_validate(settings), folder / "out", folder)
    return folder / "out/blend.json"


def tokens_that_count(dataset: Any) -> list[int]:
    """The tokens of all items that some label follows, and the last labels of the runs."""
    rows = [
        (item["tokens"].tolist(), int(item["loss_mask"].sum()))
        for item in map(dataset.__getitem__, range(len(dataset)))
    ]
    return [token for tokens, count in rows for token in tokens[:count]]


def documents_apart(split: Path) -> dict[str, set[int]]:
    """Documents of which no token is ever trained on, by reading three epochs of the run."""
    train, _, _ = BlendProvider(split)((600, 0, 0))
    assert train is not None
    seen = {token for number in range(600) for token in train[number]["tokens"].tolist()}
    return {name: set(numbers) - seen for name, numbers in (("web", range(2, 82)), ("news", range(82, 122)))}


def test_what_a_split_sets_apart_is_a_validation_set(split: Path) -> None:
    apart = documents_apart(split)
    assert min(map(len, apart.values())) > 5
    found = {}
    for name in ("split:web", "split:news", "split"):
        _, valid, test = BlendProvider(split, valid=name, test=name)((8, None, 3))
        assert isinstance(valid, SplitDataset) and test is not None and len(test) == 3
        found[name] = tokens_that_count(valid)
        again = pickle.loads(pickle.dumps(valid))
        assert tokens_that_count(again) == found[name] and 0 < len(pickle.dumps(valid)) < 1000
        _, longer, _ = BlendProvider(split, valid=name)((8, 2 * len(valid), 0))
        assert tokens_that_count(longer) == 2 * found[name]
    for name, documents in apart.items():
        counts = Counter(found[f"split:{name}"])
        # Every token but the very last of the set is an input once.
        expected = Counter({number: 5 + number % 9 for number in documents} | {0: len(documents)})
        assert sum((expected - counts).values()) == 1 and not counts - expected
    assert found["split"] == found["split:web"] + found["split:news"]


def test_a_split_that_is_not_there_is_said(split: Path, blend: Path) -> None:
    for path, valid, told in (
        (blend, "split", "the blend has no split; plan it with one, or give a dataset's prefix"),
        (split, "split:new", "nothing is set apart of a source 'new'; did you mean 'news'?"),
        (split, None, "no dataset is named; .* of a blend with a split: valid='split'"),
        (split, "./split", "split"),
    ):
        with pytest.raises(UserError, match=told):
            BlendProvider(path, valid=valid)((10, 4, 0))


def test_another_blend_than_the_expected_one_is_refused(blend: Path) -> None:
    expected = json.loads(blend.read_text())["blend_hash"]
    for given in (expected, expected[:12], None):
        BlendProvider(blend, blend_hash=given)((8, 0, 0))
    before = read_blend(blend)
    later = before.phases[0].model_copy(update={"first_sample": 24, "shares": (1, 7)})
    Blend.model_validate({**before.model_dump(), "phases": [*before.phases, later]}).write(blend)
    for given in (expected, expected[:12]):
        with pytest.raises(UserError, match=f"its hash is .*, and {given} is expected"):
            BlendProvider(blend, blend_hash=given)((8, 0, 0))
        config = BlendConfig(blend=str(blend), seq_length=SEQ_LENGTH, blend_hash=given)
        with pytest.raises(UserError, match=f"its hash is .*, and {given} is expected"):
            config.build_datasets(SimpleNamespace(train_samples=8, valid_samples=0, test_samples=0))
    with pytest.raises(UserError, match="blend_hash: 'abc' is short; give 12 of its digits at least"):
        BlendProvider(blend, blend_hash="abc")((8, 0, 0))


def bridge(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Bridge's DatasetProvider where a checkout is, else a class of the same one abstract method."""
    if "MEGATRON_BRIDGE" not in os.environ:

        @dataclass
        class DatasetProvider(ABC):
            num_workers: int = 2

            @abstractmethod
            def build_datasets(self, context: Any) -> Any: ...

        return SimpleNamespace(DatasetProvider=DatasetProvider, DatasetBuildContext=SimpleNamespace)
    tokenizers = ModuleType("megatron.bridge.training.tokenizers.tokenizer")
    tokenizers.MegatronTokenizer = object  # type: ignore[attr-defined]
    for name in ("megatron.bridge", "megatron.bridge.training", "megatron.bridge.training.tokenizers"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, tokenizers.__name__, tokenizers)
    data = Path(os.environ["MEGATRON_BRIDGE"]) / "src" / "megatron" / "bridge" / "data"
    return load("bridge_data_base", data / "base.py")


def test_bridge_validates_on_what_a_split_sets_apart(split: Path) -> None:
    _, ours, _ = BlendProvider(split, valid="split:news")((8, None, 0))
    config = BlendConfig(blend=str(split), valid="split:news", seq_length=SEQ_LENGTH)
    _, valid, _ = config.build_datasets(SimpleNamespace(train_samples=8, valid_samples=None, test_samples=0))
    assert tokens_that_count(valid) == tokens_that_count(ours)


def test_it_is_what_bridge_takes(blend: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = bridge(monkeypatch)

    @dataclass(kw_only=True)
    class OurBlend(BlendConfig, base.DatasetProvider):
        pass

    config = OurBlend(blend=str(blend), valid=str(blend.parents[1] / "held_out"), seq_length=SEQ_LENGTH, num_workers=0)
    context = base.DatasetBuildContext(train_samples=40, valid_samples=6, test_samples=6)
    train, valid, test = config.build_datasets(context)
    assert (len(train), len(valid), test) == (40, 6, None)
    assert config.dataloader_type == "single"
    # Bridge's step takes a mask from the batch exactly where its configuration does not say to skip it.
    for makes_masks in (False, True):
        config.create_attention_mask = makes_masks
        item = config.build_datasets(context)[0][0]
        assert config.skip_getting_attention_mask_from_dataset == ("attention_mask" not in item) == (not makes_masks)
    config.create_attention_mask = False
    config.inter_document_masking = True
    with pytest.raises(UserError, match="create_attention_mask and reset_attention_mask"):
        config.build_datasets(context)
    config.inter_document_masking, config.dataloader_type = False, "cyclic"
    with pytest.raises(UserError, match="'cyclic' takes the samples in another order"):
        config.build_datasets(context)
    if "MEGATRON_BRIDGE" in os.environ:
        samplers = Path(os.environ["MEGATRON_BRIDGE"]) / "src" / "megatron" / "bridge" / "data" / "samplers.py"
        make = load("bridge_samplers", samplers).build_pretraining_data_loader
        found: dict[int, Any] = {}
        for rank in range(2):
            batches = make(train, 24, "single", 2, 0, True, data_parallel_rank=rank, data_parallel_size=2)
            found |= by_number(batches, 24, rank, 2, 2)
        check_equal(found, of_our_loader(blend, 24, 40, 2))

"""Our blend as the datasets of another trainer: its sampler asks for sample i of a run, ours is a function of i.

    BlendProvider      stands for `train_valid_test_datasets_provider` in a copy of Megatron-LM's pretrain_gpt.py
    BlendConfig        stands for the dataset's configuration in Megatron Bridge

Both trainers keep one number of the data in their checkpoints, the samples consumed; with a blend that number is all
there is to keep.  docs/use_our_blend_in_your_megatron.md has what to write where, and which of their options to leave.

Nothing of Megatron is imported: items are plain dictionaries of tensors, as megatron-core's GPTDataset gives them.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from data_prep.errors import UserError
from megatron_ipt.data.stream import BlendStream, Sample, SequentialStream

logger = logging.getLogger(__name__)

type Item = dict[str, torch.Tensor | int]
type Datasets = tuple[BlendDataset | None, HeldOutDataset | None, HeldOutDataset | None]


class StreamDataset(ABC, Dataset[Item]):
    """Samples as GPTDataset's items, each [seq_length]: tokens, labels, position_ids int64, loss_mask float32.

    With `create_attention_mask` also attention_mask, bool [1, seq_length, seq_length], True where attention is barred.
    Another process that gets a dataset opens the files itself.
    """

    def __init__(self, path: Path, samples: int, *, create_attention_mask: bool = False) -> None:
        self.path, self.samples, self.create_attention_mask = path, samples, create_attention_mask

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> Item:
        """Item `index`.  Errors: an IndexError outside [0, len(self))."""
        if not 0 <= index < self.samples:
            raise IndexError(f"sample {index} of {self.samples}")
        return self._item(self._sample(int(index)))

    def _item(self, sample: Sample) -> Item:
        names = ("tokens", "labels", "loss_mask", "position_ids")
        item: Item = {name: torch.from_numpy(getattr(sample, name)) for name in names}
        if self.create_attention_mask:
            length = len(sample.tokens)
            item["attention_mask"] = torch.ones((1, length, length), dtype=torch.bool).triu(1)
        return item

    @abstractmethod
    def _sample(self, index: int) -> Sample: ...


class BlendDataset(StreamDataset):
    """The first `samples` samples of a blend; `dataset_id` is the number of the source, as BlendedDataset has it."""

    def __init__(self, path: Path, samples: int, *, create_attention_mask: bool = False) -> None:
        super().__init__(path, samples, create_attention_mask=create_attention_mask)
        self.stream = BlendStream(path)
        self._numbers = {source.name: number for number, source in enumerate(self.stream.blend.sources)}

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(type(self), create_attention_mask=self.create_attention_mask), (self.path, self.samples)

    def _sample(self, index: int) -> Sample:
        return self.stream.sample(index)

    def _item(self, sample: Sample) -> Item:
        return {"dataset_id": self._numbers[sample.source], **super()._item(sample)}


class HeldOutDataset(StreamDataset):
    """A dataset from its first token to its last, again and again where more samples are asked for than it has."""

    def __init__(
        self, path: Path, seq_length: int, samples: int | None, *, create_attention_mask: bool = False
    ) -> None:
        """`samples` None: each sequence once."""
        self.stream = SequentialStream(path, seq_length)
        given = len(self.stream) if samples is None else samples
        super().__init__(path, given, create_attention_mask=create_attention_mask)

    def __reduce__(self) -> tuple[Any, ...]:
        again = partial(type(self), create_attention_mask=self.create_attention_mask)
        return again, (self.path, self.stream.seq_length, self.samples)

    def _sample(self, index: int) -> Sample:
        return self.stream.sample(index % len(self.stream))


@dataclass
class BlendProvider:
    """What Megatron-LM's `pretrain` takes as train_valid_test_datasets_provider.

    `valid` and `test` are prefixes of datasets.  `seq_length` is the trainer's, or gives it when asked (its arguments
    are parsed later).  `is_built_on_rank`, called with vp_stage, says whether this rank needs data; without it all do.
    """

    blend: Path | str
    valid: Path | str | None = None
    test: Path | str | None = None
    seq_length: int | Callable[[], int] | None = None
    create_attention_mask: bool = False
    is_built_on_rank: Callable[..., bool] | None = None
    is_distributed = True  # Megatron-LM: call it on every rank, not on the first of each tensor-parallel group alone

    def __call__(self, train_val_test_num_samples: Sequence[int | None], vp_stage: int | None = None) -> Datasets:
        """The three datasets; None where a split has no dataset, or this rank needs none.

        Errors: a UserError for what `BlendStream` refuses, an unlike sequence length or tokenizer, and for validation
        samples that are asked for without a dataset.
        """
        if self.is_built_on_rank is not None and not self.is_built_on_rank(vp_stage=vp_stage):
            return None, None, None
        _, wanted, _ = train_val_test_num_samples
        if self.valid is None and wanted != 0:
            problem = f"{'all' if wanted is None else wanted} validation samples are asked for, and no dataset is named"
            raise UserError("valid", problem, "give its prefix, or set --eval-iters 0")
        length = self.seq_length() if callable(self.seq_length) else self.seq_length
        return build(self, train_val_test_num_samples, length)


@dataclass(kw_only=True)
class BlendConfig:
    """What Megatron Bridge takes as its dataset's configuration, once it is also a DatasetProvider of Bridge's:

    @dataclass(kw_only=True)
    class Blend(BlendConfig, DatasetProvider): ...
    """

    blend: str
    valid: str | None = None
    test: str | None = None
    seq_length: int
    create_attention_mask: bool = False
    dataloader_type: str = "single"  # sample i is item i: Bridge's other samplers shuffle once more

    @property
    def skip_getting_attention_mask_from_dataset(self) -> bool:
        """Bridge's name for the opposite of create_attention_mask."""
        return not self.create_attention_mask

    def build_datasets(self, context: Any) -> Datasets:
        """The three datasets, as `BlendProvider`; `context` has Bridge's train_, valid_ and test_samples."""
        if self.dataloader_type != "single":
            problem = f"'{self.dataloader_type}' takes the samples in another order than the blend's"
            raise UserError("dataset.dataloader_type", problem, "set it to 'single'")
        counts = (context.train_samples, context.valid_samples, context.test_samples)
        return build(self, counts, self.seq_length)


def build(given: BlendProvider | BlendConfig, samples: Sequence[int | None], seq_length: int | None) -> Datasets:
    """Datasets of so many train, valid and test samples; a number of None: each held-out sequence once."""
    training, *held_out = samples
    mask = given.create_attention_mask
    train = BlendDataset(Path(given.blend), training or 0, create_attention_mask=mask)
    if seq_length is not None and seq_length != train.stream.seq_length:
        problem = f"the trainer's sequence length {seq_length} is not the blend's {train.stream.seq_length}"
        raise UserError(given.blend, problem, "set both to the same")
    logger.info("blend %s, hash %s, %d samples", given.blend, train.stream.blend_hash, len(train))
    found: list[HeldOutDataset | None] = []
    for prefix, count in zip((given.valid, given.test), held_out, strict=True):
        if prefix is None or count == 0:
            found.append(None)
            continue
        dataset = HeldOutDataset(Path(prefix), train.stream.seq_length, count, create_attention_mask=mask)
        if dataset.stream.tokenizer != train.stream.blend.tokenizer:
            raise UserError(prefix, "was tokenized unlike the blend", "index it with the same tokenizer and policy")
        found.append(dataset)
    valid, test = found
    return (train if training else None), valid, test

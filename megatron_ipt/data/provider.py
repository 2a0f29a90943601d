"""Our blend as the datasets of another trainer: its sampler asks for sample i of a run, ours is a function of i.

    BlendProvider      stands for `train_valid_test_datasets_provider` in a copy of Megatron-LM's pretrain_gpt.py
    BlendConfig        stands for the dataset's configuration in Megatron Bridge

Held-out samples are a dataset's, by its prefix, or what the blend's own split sets apart: `split` is that of all
sources one after the other, `split:NAME` that of one (a dataset of this name is ./split).

Both trainers keep one number of the data in their checkpoints, the samples consumed; with a blend that number is all
there is to keep.  docs/use_our_blend_in_your_megatron.md has what to write where, and which of their options to leave.

Nothing of Megatron is imported: items are plain dictionaries of tensors, as megatron-core's GPTDataset gives them.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from data_prep.blend import read_blend
from data_prep.errors import UserError, nearest
from megatron_ipt.data.stream import BlendStream, Sample, SequentialStream, ValidationStream

logger = logging.getLogger(__name__)

type Item = dict[str, torch.Tensor | int]
type Datasets = tuple[BlendDataset | None, HeldOutSet | None, HeldOutSet | None]

SPLIT = "split"
LEAST_DIGITS = 12
"""Of a hash that is expected: as many as `ipt blend` prints."""


@dataclass(kw_only=True)
class Masks:
    """What an item tells of attention and of documents; the names and forms are those of megatron-core's GPTDataset.

    Where a document ends is known from the pack table, not looked for by a token; padding is a document of its own.
    """

    create_attention_mask: bool = False
    reset_position_ids: bool = False
    reset_attention_mask: bool = False
    inter_document_masking: bool = False

    def check_masks(self) -> None:
        """Errors: a UserError for a mask that would not be made."""
        if self.reset_attention_mask and not self.create_attention_mask:
            problem = "the mask that would keep attention within a document is not made (create_attention_mask=False)"
            raise UserError("reset_attention_mask", problem, "set both, or inter_document_masking")

    @property
    def _masks(self) -> Masks:
        return Masks(**{field.name: getattr(self, field.name) for field in fields(Masks)})


class StreamDataset(ABC, Dataset[Item]):
    """Samples as GPTDataset's items, each [seq_length]: tokens, labels, position_ids int64, loss_mask float32.

    With `create_attention_mask` also attention_mask, bool [1, seq_length, seq_length], True where attention is barred;
    with `inter_document_masking` instead cu_seqlens, int32 [seq_length + 1], where documents begin, then seq_length
    again and again, and max_seqlen, int32.  Another process that gets a dataset opens the files itself.
    """

    def __init__(self, path: Path, samples: int, masks: Masks) -> None:
        self.path, self.samples, self.masks = path, samples, masks

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
        if self.masks.inter_document_masking:
            return item | _document_bounds(sample.segments)
        if self.masks.create_attention_mask:
            length = len(sample.tokens)
            barred = torch.ones((1, length, length), dtype=torch.bool).triu(1)
            if self.masks.reset_attention_mask:
                segments = torch.from_numpy(sample.segments)
                barred |= segments[:, None] != segments[None, :]
            item["attention_mask"] = barred
        return item

    @abstractmethod
    def _sample(self, index: int) -> Sample: ...


class BlendDataset(StreamDataset):
    """The first `samples` samples of a blend; `dataset_id` is the number of the source, as BlendedDataset has it."""

    def __init__(self, path: Path, samples: int, masks: Masks) -> None:
        super().__init__(path, samples, masks)
        self.stream = BlendStream(path, reset_position_ids=_resets(masks))
        self._numbers = {source.name: number for number, source in enumerate(self.stream.blend.sources)}

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path, self.samples, self.masks)

    def _sample(self, index: int) -> Sample:
        return self.stream.sample(index)

    def _item(self, sample: Sample) -> Item:
        return {"dataset_id": self._numbers[sample.source], **super()._item(sample)}


class HeldOutDataset(StreamDataset):
    """A dataset from its first token to its last, again and again where more samples are asked for than it has."""

    def __init__(self, path: Path, seq_length: int, samples: int | None, masks: Masks) -> None:
        """`samples` None: each sequence once."""
        self.stream = SequentialStream(path, seq_length, reset_position_ids=_resets(masks))
        super().__init__(path, len(self.stream) if samples is None else samples, masks)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path, self.stream.seq_length, self.samples, self.masks)

    def _sample(self, index: int) -> Sample:
        return self.stream.sample(index % len(self.stream))


class SplitDataset(StreamDataset):
    """The validation sets of a blend's sources, one after the other, again and again as `HeldOutDataset`."""

    def __init__(self, path: Path, name: str | None, samples: int | None, masks: Masks) -> None:
        """Of the source `name`, or of all.  Errors: a UserError where none is set apart."""
        self.name, blend = name, read_blend(path)
        reset = _resets(masks)
        sources = [source for source in blend.sources if source.validation and name in (None, source.name)]
        if not sources:
            problem = "the blend has no split" if blend.split is None else f"nothing is set apart of a source '{name}'"
            mend = "plan it with one, or give a dataset's prefix"
            if blend.split is not None:
                mend = nearest(name or "", [source.name for source in blend.sources if source.validation])
            raise UserError(path, problem, mend)
        self.streams = [ValidationStream(blend, source, reset_position_ids=reset) for source in sources]
        self._ends = list(accumulate(map(len, self.streams)))
        super().__init__(path, self._ends[-1] if samples is None else samples, masks)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path, self.name, self.samples, self.masks)

    def _sample(self, index: int) -> Sample:
        place = index % self._ends[-1]
        which = bisect_right(self._ends, place)
        return self.streams[which].sample(place - (self._ends[which - 1] if which else 0))


HeldOutSet = HeldOutDataset | SplitDataset


def _resets(masks: Masks) -> bool:
    """Documents that attend to themselves alone have positions of their own, in GPTDataset too."""
    return masks.reset_position_ids or masks.inter_document_masking


def _document_bounds(segments: np.ndarray) -> Item:
    """Where documents begin, padded so that items stack, and the tokens of the longest."""
    length = len(segments)
    begins = np.flatnonzero(np.diff(segments, prepend=-1))
    bounds = np.full(length + 1, length, np.int32)
    bounds[: len(begins)] = begins
    return {"cu_seqlens": torch.from_numpy(bounds), "max_seqlen": torch.tensor(np.diff(bounds).max())}


@dataclass
class BlendProvider(Masks):
    """What Megatron-LM's `pretrain` takes as train_valid_test_datasets_provider.

    `valid` and `test` are prefixes of datasets, `split`, or `split:NAME`.  `seq_length` is the trainer's, or gives it
    when asked (its arguments are parsed later).  `is_built_on_rank`, called with vp_stage, says whether this rank needs
    data; without it all do.  `blend_hash` is the one that is expected, or how it begins: the trainer keeps none.
    """

    blend: Path | str
    valid: Path | str | None = None
    test: Path | str | None = None
    seq_length: int | Callable[[], int] | None = None
    is_built_on_rank: Callable[..., bool] | None = None
    blend_hash: str | None = None
    is_distributed = True  # Megatron-LM: call it on every rank, not on the first of each tensor-parallel group alone

    def __call__(self, train_val_test_num_samples: Sequence[int | None], vp_stage: int | None = None) -> Datasets:
        """The three datasets; None where a split has no dataset, or this rank needs none.

        Errors: a UserError for what `BlendStream` refuses, an unlike sequence length, tokenizer or hash, and for
        validation samples that are asked for without a dataset.
        """
        if self.is_built_on_rank is not None and not self.is_built_on_rank(vp_stage=vp_stage):
            return None, None, None
        _, wanted, _ = train_val_test_num_samples
        if self.valid is None and wanted != 0:
            problem = f"{'all' if wanted is None else wanted} validation samples are asked for, and no dataset is named"
            mend = "give its prefix, or set --eval-iters 0; of a blend with a split: valid='split'"
            raise UserError("valid", problem, mend)
        length = self.seq_length() if callable(self.seq_length) else self.seq_length
        return build(self, train_val_test_num_samples, length)


@dataclass(kw_only=True)
class BlendConfig(Masks):
    """What Megatron Bridge takes as its dataset's configuration, once it is also a DatasetProvider of Bridge's:

    @dataclass(kw_only=True)
    class Blend(BlendConfig, DatasetProvider): ...
    """

    blend: str
    valid: str | None = None
    test: str | None = None
    seq_length: int
    blend_hash: str | None = None
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
        if self.inter_document_masking:
            problem = "Bridge reads the bounds of documents under other names"
            raise UserError(
                "dataset.inter_document_masking", problem, "set create_attention_mask and reset_attention_mask"
            )
        counts = (context.train_samples, context.valid_samples, context.test_samples)
        return build(self, counts, self.seq_length)


def build(given: BlendProvider | BlendConfig, samples: Sequence[int | None], seq_length: int | None) -> Datasets:
    """Datasets of so many train, valid and test samples; a number of None: each held-out sequence once."""
    given.check_masks()
    training, *held_out = samples
    masks = given._masks
    train = BlendDataset(Path(given.blend), training or 0, masks)
    if seq_length is not None and seq_length != train.stream.seq_length:
        problem = f"the trainer's sequence length {seq_length} is not the blend's {train.stream.seq_length}"
        raise UserError(given.blend, problem, "set both to the same")
    logger.info("blend %s, hash %s, %d samples", given.blend, train.stream.blend_hash, len(train))
    _check_hash(given, train.stream.blend_hash)
    found: list[HeldOutSet | None] = []
    for prefix, count in zip((given.valid, given.test), held_out, strict=True):
        if prefix is None or count == 0:
            found.append(None)
            continue
        found.append(_held_out(prefix, train, count, masks))
    valid, test = found
    return (train if training else None), valid, test


def _held_out(prefix: Path | str, train: BlendDataset, samples: int | None, masks: Masks) -> HeldOutSet:
    which, colon, name = prefix.partition(":") if isinstance(prefix, str) else ("", "", "")
    if which == SPLIT:
        return SplitDataset(train.path, name if colon else None, samples, masks)
    dataset = HeldOutDataset(Path(prefix), train.stream.seq_length, samples, masks)
    if dataset.stream.tokenizer != train.stream.blend.tokenizer:
        raise UserError(prefix, "was tokenized unlike the blend", "index it with the same tokenizer and policy")
    return dataset


def _check_hash(given: BlendProvider | BlendConfig, found: str) -> None:
    """UserError for another blend than the one that is expected."""
    wanted = given.blend_hash
    if wanted is None or (found.startswith(wanted) and len(wanted) >= LEAST_DIGITS):
        return
    if len(wanted) < LEAST_DIGITS:
        raise UserError("blend_hash", f"'{wanted}' is short", f"give {LEAST_DIGITS} of its digits at least")
    problem = f"its hash is {found}, and {wanted} is expected: its samples are others"
    raise UserError(given.blend, problem, "restore the blend; if a phase was appended, expect the new hash")

"""The card beside each checkpoint: what it is, what it came from, and which layouts can load it.

    {"format_version": 2, "iteration": 60, "consumed_samples": 480, "consumed_tokens": 30720, "parent": "iter_0000030",
     "world_size": 16, "layout": {...}, "sharding_type": "dp_reshardable", "loads_with": "TP2 PP2 and any DP", ...}

Version 1 had neither parent, tokens nor layout: its layout is that of its recipe, its state `fully_reshardable`.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from data_prep.errors import UserError
from megatron_ipt.architecture import Architecture

CARD: Final = "run_card.json"
CARD_FORMAT_VERSION: Final = 2
FULLY_RESHARDABLE: Final = "fully_reshardable"
DP_RESHARDABLE: Final = "dp_reshardable"
WEIGHTS: Final = "weights alone"


@dataclass(frozen=True, slots=True)
class SavedLayout:
    """The layout that saved a checkpoint.

    `layers` holds how many each chunk of each pipeline stage has, `bucket_size` the parameters of a bucket of the
    distributed optimizer (None: one bucket): with TP they decide how a `dp_reshardable` state is cut.
    """

    tensor_model_parallel_size: int
    pipeline_model_parallel_size: int
    context_parallel_size: int
    data_parallel_size: int
    layers: tuple[tuple[int, ...], ...]
    bucket_size: int | None
    use_distributed_optimizer: bool
    bf16: bool

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> SavedLayout:
        return cls(**{**row, "layers": tuple(tuple(chunks) for chunks in row["layers"])})

    @property
    def buckets(self) -> tuple[Any, ...]:
        """What two layouts share that cut the optimizer's state alike; DP and CP are not in it."""
        return self.tensor_model_parallel_size, self.layers, self.bucket_size, self.bf16

    def __str__(self) -> str:
        chunks = len(self.layers[0]) if self.layers else 1
        virtual = f" VPP{chunks}" if chunks > 1 else ""
        return f"TP{self.tensor_model_parallel_size} PP{self.pipeline_model_parallel_size}{virtual}"

    def beside(self, other: SavedLayout) -> str:
        """This layout with what two that have the same sizes differ in."""
        more = []
        if self.bf16 != other.bf16:
            more.append(f"bf16={str(self.bf16).lower()}")
        elif str(self) == str(other) and self.layers != other.layers:
            more.append("layers " + " | ".join("+".join(map(str, chunks)) for chunks in self.layers))
        elif str(self) == str(other):
            size = "one bucket" if self.bucket_size is None else f"buckets of {self.bucket_size:,} parameters"
            more.append(f"{size} (overlap_grad_reduce, ddp_config.bucket_size)")
        return ", ".join([str(self), *more])


@dataclass(frozen=True, slots=True)
class RunCard:
    """What a checkpoint is.  `consumed_samples` with `blend_hash` is the whole data position.

    `parent` is the checkpoint it goes on from: an iter_* folder beside it, or a path elsewhere; "" of a fresh start.
    `sharding_type` is megatron-core's word for how the distributed optimizer's state lies there; "" of another
    optimizer's, WEIGHTS where there is none.
    `spikes` is what the spike rule remembers (training/spikes.py), `shadow` how far steps are taken without FP8
    (training/shadow.py); both empty in cards of before.
    """

    iteration: int
    consumed_samples: int
    architecture: Architecture
    padded_vocab_size: int
    blend_hash: str
    load_hf: str
    versions: dict[str, str]
    recipe: dict[str, Any]
    consumed_tokens: int = 0
    parent: str = ""
    world_size: int = 1
    layout: SavedLayout | None = None
    sharding_type: str = ""
    spikes: dict[str, Any] = field(default_factory=dict)
    shadow: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__}
        layout = asdict(self.layout) if self.layout else None
        said = {"architecture": self.architecture.to_json(), "layout": layout, "loads_with": self.loads_with}
        return {"format_version": CARD_FORMAT_VERSION, **plain, **said}

    @classmethod
    def read(cls, checkpoint: Path) -> RunCard:
        """The card of an `iter_*` folder; UserError where there is none or it is of another format."""
        path = checkpoint / CARD
        try:
            row = json.loads(path.read_text(encoding="utf-8"))
            written = row.pop("format_version", None)
        except FileNotFoundError as error:
            raise UserError(
                checkpoint, f"not a checkpoint of ours ({CARD} is missing)", "give an iter_* folder"
            ) from error
        except (ValueError, AttributeError) as error:
            raise UserError(path, f"not JSON ({error})", "use another checkpoint") from error
        if written not in (1, CARD_FORMAT_VERSION):
            raise UserError(path, f"not format version {CARD_FORMAT_VERSION}", "use the version of ipt that wrote it")
        try:
            return cls._from_json(row, written)
        except (KeyError, TypeError, AttributeError) as error:
            problem = f"not a card of this version of ipt ({error})"
            raise UserError(path, problem, "use the version of ipt that wrote it") from error

    @classmethod
    def _from_json(cls, row: dict[str, Any], written: int) -> RunCard:
        row.pop("loads_with", None)
        row["architecture"] = Architecture(**row["architecture"])
        if written == 1:
            return _of_version_1(cls(**row))
        return cls(**{**row, "layout": SavedLayout.from_json(row["layout"]) if row["layout"] else None})

    @property
    def loads_with(self) -> str:
        """The layouts that can go on from here.  Weights alone load with any."""
        if self.layout is None or not self.layout.use_distributed_optimizer:
            return "any layout"
        return f"{self.layout} and any DP" if self.sharding_type == DP_RESHARDABLE else "any layout"

    def check_loads(self, here: SavedLayout, checkpoint: Path) -> None:
        """UserError unless the optimizer's state can be read under the layout `here`."""
        if self.sharding_type == WEIGHTS:
            raise UserError(checkpoint, "holds weights, no optimizer's state", "begin with it: train.finetune=true")
        there = self.layout
        if there is None:
            return
        for name in ("use_distributed_optimizer", "bf16"):
            was, now = getattr(there, name), getattr(here, name)
            if was != now and not (there.use_distributed_optimizer and here.use_distributed_optimizer):
                problem = f"its optimizer's state is of train.{name}={str(was).lower()}, here is {str(now).lower()}"
                mend = f"set train.{name}={str(was).lower()}, or load the weights alone with train.finetune=true"
                raise UserError(checkpoint, problem, mend)
        if self.sharding_type == DP_RESHARDABLE and there.buckets != here.buckets:
            raise UserError(
                checkpoint,
                f"loads with {there.beside(here)} and any DP, here is {here.beside(there)}",
                f"`ipt convert reshard {checkpoint} OUT` makes it loadable by any layout",
            )


def versions() -> dict[str, str]:
    """Of what makes a checkpoint; transformer-engine where it is installed."""
    found = {}
    for name in ("torch", "megatron-core", "transformer-engine", "instruction-pretraining"):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _of_version_1(card: RunCard) -> RunCard:
    train = card.recipe.get("train", {})
    if not train:  # of `ipt convert import`
        return replace(card, sharding_type=WEIGHTS)
    tensor, pipeline = (train.get(f"{kind}_model_parallel_size", 1) for kind in ("tensor", "pipeline"))
    distributed = train.get("use_distributed_optimizer", True)
    context, bf16 = train.get("context_parallel_size", 1), train.get("bf16", True)
    layout = SavedLayout(tensor, pipeline, context, 1, (), None, distributed, bf16)
    tokens = card.consumed_samples * train.get("seq_length", 0)
    kind = FULLY_RESHARDABLE if distributed else ""
    return replace(card, consumed_tokens=tokens, layout=layout, sharding_type=kind)

"""A run's settings without what makes it fast on a GPU: for a model that is looked at or copied, not trained.  Pure."""

from __future__ import annotations

from typing import Any, Final

from megatron_ipt.mcore.optimizer_states import FIELDS
from megatron_ipt.settings import TrainSettings

_OF_A_GPU: Final = (
    "fp8",
    "fp4",
    "cuda_graph",
    "tp_comm_",
    "first_last_layers_bf16",
    "num_layers_at_",
    "cross_entropy_",
    "use_cpu_initialization",  # what fills weights on a GPU does not see the meta device
)
_OF_PROBES: Final[dict[str, Any]] = {
    "fp8_emulation": None,
    "fp8_shadow_interval": None,
    "fp8_shadow_tolerance": None,
    "tp_comm_overlap_cfg": None,
}


def plain(train: TrainSettings) -> TrainSettings:
    """`train` without FP8, graphs, overlapped communication, fused losses and short optimizer states.

    Weights, layout and shapes stay, and so does what attention computes with.
    """
    transformer = {name: value for name, value in train.transformer_config.items() if not name.startswith(_OF_A_GPU)}
    optimizer = {name: value for name, value in train.optimizer_config.items() if name not in FIELDS}
    return train.model_copy(
        update={"transformer_config": transformer, "optimizer_config": optimizer, **_OF_PROBES},
    )

"""Which kernels attention and loss run through, and what of a recipe only Transformer Engine, or a GPU, can do.  Pure.

`train.transformer_config.attention_backend` (auto, flash, fused, unfused) chooses within Transformer Engine, and
`cross_entropy_loss_fusion` with `cross_entropy_fusion_impl` (te, native) how the loss is computed; of te megatron-core
itself warns that it has been unstable.  A choice that does not apply would be passed over without a word: refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from data_prep.errors import UserError
from megatron_ipt.mcore.contradiction import Contradiction
from megatron_ipt.settings import TrainSettings

SECTION: Final = "train.transformer_config"
SWITCHES: Final = {
    "flash": ("1", "0", "0"),
    "fused": ("0", "1", "0"),
    "unfused": ("0", "0", "1"),
    "local": ("0", "0", "0"),
    "auto": ("1", "1", "1"),
}
"""What each backend sets NVTE_FLASH_ATTN, NVTE_FUSED_ATTN and NVTE_UNFUSED_ATTN to."""
IN_16_BITS: Final = ("flash", "fused")
ELSEWHERE: Final = "train where Transformer Engine and a GPU are, or leave it out"


def contradictions(train: TrainSettings) -> Iterator[Contradiction]:
    own = train.transformer_config
    if own.get("cross_entropy_fusion_impl") and not own.get("cross_entropy_loss_fusion"):
        problem, mend = "says how the loss is fused, and it is not", "set cross_entropy_loss_fusion: true beside it"
        yield Contradiction(f"{SECTION}.cross_entropy_fusion_impl", problem, mend)
    for field in ("cross_entropy_loss_fusion", "tp_comm_overlap"):
        if train.deterministic_mode and own.get(field):
            problem = "may give other bits each time, and train.deterministic_mode is set"
            yield Contradiction(f"{SECTION}.{field}", problem, "leave one of the two out")
    backend = backend_of(train)
    if backend in IN_16_BITS and not train.bf16:
        problem = f"{backend} computes in 16 bits, and train.bf16 is false"
        yield Contradiction(f"{SECTION}.attention_backend", problem, "use auto, or train.bf16: true")
    if backend == "local" and train.transformer_impl == "transformer_engine":
        problem = "turns every attention of Transformer Engine's layers off"
        yield Contradiction(f"{SECTION}.attention_backend", problem, "use auto, or train.transformer_impl: local")
    if backend == "unfused" and train.context_parallel_size > 1:
        problem = "knows no context parallelism"
        yield Contradiction(f"{SECTION}.attention_backend", problem, "use fused or flash, or auto")


def backend_of(train: TrainSettings) -> str:
    return str(train.transformer_config.get("attention_backend", "auto"))


def of_the_gate(train: TrainSettings) -> Iterator[Contradiction]:
    """What the parity gate, with Transformer Engine's layers and attention's kernel as in the run, cannot compute."""
    if backend_of(train) in IN_16_BITS and train.parity_precision == "float32":
        problem = f"attention_backend: {backend_of(train)} computes in 16 bits, and the gate in float32"
        yield Contradiction("train.parity_precision", problem, "set it to bfloat16, or use attention_backend: auto")


def check_environment(train: TrainSettings, environment: Mapping[str, str]) -> None:
    """UserError where the environment chooses another attention: megatron-core ends in an assertion then."""
    backend = backend_of(train)
    for kernel, wanted in zip(("FLASH", "FUSED", "UNFUSED"), SWITCHES[backend], strict=True):
        name = f"NVTE_{kernel}_ATTN"
        if environment.get(name, wanted) != wanted:
            problem = f"the environment has {name}={environment[name]}, and {backend} sets {wanted}"
            raise UserError(f"{SECTION}.attention_backend", problem, f"unset {name}")


def lacking(config: Any, train: TrainSettings, *, captures: bool, has_engine: bool) -> Iterator[Contradiction]:
    """What `config`, a TransformerConfig with the local layers, asks for and this machine has not."""
    if config.recompute_granularity == "selective" and "layernorm" in (config.recompute_modules or ()):
        problem = "layernorm needs Transformer Engine's layers, and these are the local ones"
        yield Contradiction("train.recompute_modules", problem, "leave it out, or use core_attn and mlp")
    for name in ("fp8", "fp4", "tp_comm_overlap"):
        if getattr(config, name):
            told = getattr(config, name) if name != "tp_comm_overlap" else "it"
            problem = f"{told} needs Transformer Engine's layers, and these are the local ones"
            yield Contradiction(f"{SECTION}.{name}", problem, ELSEWHERE)
    backend = backend_of(train)
    if backend not in ("auto", "local"):
        problem = f"{backend} is one of Transformer Engine's, and these layers are the local ones"
        yield Contradiction(f"{SECTION}.attention_backend", problem, ELSEWHERE)
    if config.cross_entropy_loss_fusion and config.cross_entropy_fusion_impl == "te" and not has_engine:
        problem = "te is Transformer Engine's kernel, and there is none here"
        yield Contradiction(f"{SECTION}.cross_entropy_fusion_impl", problem, "use native, or leave it out")
    if config.cuda_graph_impl != "none" and not captures:
        yield Contradiction(f"{SECTION}.cuda_graph_impl", "there is no GPU here", "leave it out")
    if config.cuda_graph_impl == "transformer_engine" and not has_engine:
        problem = "there is no Transformer Engine to capture with"
        yield Contradiction(f"{SECTION}.cuda_graph_impl", problem, "use local")
    if train.optimizer_config.get("use_precision_aware_optimizer") and not has_engine:
        problem = "the update is Transformer Engine's FusedAdam's, and there is none here"
        yield Contradiction("train.optimizer_config.use_precision_aware_optimizer", problem, ELSEWHERE)

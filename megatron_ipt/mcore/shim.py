"""What makes megatron-core run without a GPU: the CPU meaning of the `torch.cuda` functions it calls unconditionally.

Every file of this room that imports megatron imports this one first.  With it the same training code runs under
torchrun with gloo on a laptop as with NCCL on a cluster; where a GPU is, it changes nothing.

Its patches are global to the process, so a process that should run transformers untouched (the parity reference,
evaluation) does not import this room's megatron files.
"""

from __future__ import annotations

import megatron_ipt.mcore.quiet  # noqa: F401  # isort: skip

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.optim.adam import adam

from megatron_ipt.mcore.device import check_transformer_engine, has_gpu


class _Stream:
    """A stream on a device that is always in step with the host."""

    def wait_stream(self, _: Any) -> None: ...

    def wait_event(self, _: Any) -> None: ...


class FusedAdam(torch.optim.Optimizer):
    """Adam(W) by the formula and with the state layout of Transformer Engine's FusedAdam, in plain torch.

    The step count lives in the param group, not in each parameter's state: torch's own AdamW cannot
    be resumed through the distributed optimizer (`KeyError: 'step'`).
    """

    # torch's decorator of these keeps its compiler away, and imports it for that: a second of a process's start
    add_param_group = torch.optim.Optimizer.add_param_group.__wrapped__  # type: ignore[attr-defined]
    load_state_dict = torch.optim.Optimizer.load_state_dict.__wrapped__  # type: ignore[attr-defined]
    state_dict = torch.optim.Optimizer.state_dict.__wrapped__  # type: ignore[attr-defined]
    zero_grad = torch.optim.Optimizer.zero_grad.__wrapped__  # type: ignore[attr-defined]

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        adam_w_mode: bool = True,
        **_: Any,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.adam_w_mode = adam_w_mode

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
            params = [param for param in group["params"] if param.grad is not None]
            for param in params:
                if not self.state[param]:
                    self.state[param].update(exp_avg=torch.zeros_like(param), exp_avg_sq=torch.zeros_like(param))
            if params:
                self._update(group, params)

    def _update(self, group: dict[str, Any], params: list[torch.Tensor]) -> None:
        adam(
            params,
            [param.grad for param in params],  # type: ignore[misc]
            [self.state[param]["exp_avg"] for param in params],
            [self.state[param]["exp_avg_sq"] for param in params],
            [],
            [torch.tensor(group["step"] - 1.0) for _ in params],
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
            foreach=True,
            decoupled_weight_decay=self.adam_w_mode,
        )


def _on_cpu(factory: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """A tensor factory for which `device="cuda"` means the CPU."""

    @functools.wraps(factory)
    def make(*args: Any, **kwargs: Any) -> torch.Tensor:
        if torch.device(kwargs.get("device") or "cpu").type == "cuda":
            kwargs["device"] = "cpu"
        kwargs.pop("pin_memory", None)
        return factory(*args, **kwargs)

    return make


@functools.cache
def install() -> None:
    """Give megatron-core a CPU where it asks for a GPU.  Once a process; nothing where a GPU is.

    UserError, before megatron-core is imported, for a Transformer Engine that would end that import in a traceback.
    """
    check_transformer_engine()
    if has_gpu():
        return
    cuda: Any = torch.cuda
    cuda.current_device = lambda: torch.device("cpu")
    for name in ("synchronize", "empty_cache", "set_device"):
        # a function each: torch's compiler refuses one object under two of its names
        setattr(cuda, name, lambda *args, **kwargs: None)
    cuda.current_stream = lambda *args, **kwargs: _Stream()
    cuda.manual_seed = torch.default_generator.manual_seed
    cuda.get_rng_state = lambda *args, **kwargs: torch.get_rng_state()
    cuda.set_rng_state = lambda state, *args, **kwargs: torch.set_rng_state(state)
    for name in ("zeros", "ones", "tensor", "empty_like"):
        setattr(torch, name, _on_cpu(getattr(torch, name)))
    _patch_tensor()
    with _uncompiled():
        _patch_megatron()


@contextmanager
def _uncompiled() -> Iterator[None]:
    """Lets functions that are decorated within be as they are written.

    megatron-core compiles its fused ones when it is imported.  None is used here (device.py), and the compiler would be
    a third of what a process takes to start.
    """
    compiler = torch.compile
    torch.compile = lambda function=None, **_: function or (lambda decorated: decorated)  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.compile = compiler


def _patch_tensor() -> None:
    plain = torch.Tensor.type

    def type_name(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        # megatron-core sorts parameters by `param.type() == "torch.cuda.FloatTensor"`
        return plain(self, *args, **kwargs) if args or kwargs else plain(self).replace("torch.", "torch.cuda.", 1)

    torch.Tensor.type = type_name  # type: ignore[assignment]
    torch.Tensor.cuda = lambda self, *args, **kwargs: self  # type: ignore[method-assign]


def _patch_megatron() -> None:
    import megatron.core.optimizer as optimizer
    from megatron.core import utils
    from megatron.core.optimizer import clip_grads, distrib_optimizer
    from megatron.core.optimizer import optimizer as base
    from megatron.core.tensor_parallel import random

    random._get_cuda_rng_state = torch.cuda.get_rng_state
    random._set_cuda_rng_state = torch.cuda.set_rng_state
    optimizer.Adam = distrib_optimizer.Adam = FusedAdam
    optimizer.USING_PYTORCH_OPTIMIZER = False
    distrib_optimizer.HAVE_APEX_OR_TE = distrib_optimizer.USING_APEX_OPTIMIZER = True
    # an installed Transformer Engine's, or apex', are kernels
    for module in (clip_grads, base):
        module.multi_tensor_applier = utils.local_multi_tensor_applier
        module.multi_tensor_scale_impl = utils.local_multi_tensor_scale
    clip_grads.l2_norm_impl = utils.local_multi_tensor_l2_norm
    clip_grads.multi_tensor_scale_tensor_impl = None


install()

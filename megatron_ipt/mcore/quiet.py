"""Silences what megatron-core and torch say at every import and we have decided."""

from __future__ import annotations

import logging
import warnings


def quiet() -> None:
    """Silence what the libraries say at every import and we have decided.

    Apex is absent, GPTModel is to be replaced (docs/decisions/0001), the distributed optimizer's layout is computed
    inside, torch renames its collectives.
    """
    warnings.filterwarnings("ignore", module=r"megatron\..*")
    warnings.filterwarnings("ignore", module=r"torch\.distributed\..*")
    for name in ("megatron", "torch.utils.cpp_extension", "torch.distributed"):
        logging.getLogger(name).setLevel(logging.ERROR)


quiet()

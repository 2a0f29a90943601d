"""What all ranks do together with collectives inside: a rank that fails in front of one leaves no other waiting in it.

`parallel.on_all` tells a rank's fault to the others once they come out of the action.  megatron-core's saves and loads
have steps that one rank does alone while the others wait for it in a collective, the metadata file for one; when that
fails they would wait for the process group's timeout, half an hour.  So a fault goes through torch's store here:

    the rank that failed     writes it there, waits APART seconds for the others to come out, and else leaves alone
    a thread of each other   finds it, and ends its process when that is still inside after twice as long
"""

from __future__ import annotations

import megatron_ipt.mcore.shim  # noqa: F401  # isort: skip

import contextlib
import itertools
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from megatron_ipt.mcore import parallel

if TYPE_CHECKING:
    from torch.distributed import Store

logger = logging.getLogger(__name__)

APART = 10.0
"""How long ranks may come to one place apart, once one of them has failed [s]."""
TICK = 0.5
"""How often the store is looked at [s]."""

_numbers = itertools.count()


def together(action: Callable[[], None]) -> None:
    """`action` on all ranks.  OSError with the first failure's line on all that come out of it."""
    store, place = parallel.store(), f"together/{next(_numbers)}"

    def noted() -> None:
        try:
            action()
        except parallel.FAULTS as error:
            first = _note(store, place, parallel.last_line(error))
            raise (OSError if _all_come(store, place) else _Alone)(first) from error
        except Exception as error:  # not one of reading and writing: this rank keeps its traceback
            _note(store, place, f"{type(error).__name__}: {error}")
            raise
        _come(store, place)

    with _leaving(store, f"{place}/fault"):
        try:
            parallel.on_all(noted)
        except _Alone as error:
            raise OSError(str(error)) from error


def all_come() -> bool:
    """Whether all ranks call this within APART seconds of each other.  No collective: a rank may be gone."""
    return _all_come(parallel.store(), f"come/{next(_numbers)}")


class _Alone(Exception):
    """The fault of a rank whose others did not come out: no collective can tell it."""


def _note(store: Store, place: str, line: str) -> str:
    """The line of the first rank to fail: that of a later one may be of the first one's end."""
    with contextlib.suppress(RuntimeError):  # the store may have gone with the rank that held it
        first: bytes = store.compare_set(f"{place}/fault", "", line)
        return first.decode()
    return line


def _come(store: Store, place: str) -> int:
    return store.add(f"{place}/come", 1)


def _all_come(store: Store, place: str) -> bool:
    ranks, deadline = parallel.place()[1], time.monotonic() + APART
    with contextlib.suppress(RuntimeError):
        here = _come(store, place)
        while here < ranks and time.monotonic() < deadline:
            time.sleep(TICK / 5)
            here = store.add(f"{place}/come", 0)
        return here >= ranks
    return False


@contextmanager
def _leaving(store: Store, fault: str) -> Iterator[None]:
    """Within the block this process ends when `fault` was written and the block is not left in time."""
    left = threading.Event()
    thread = threading.Thread(target=_watch, args=(store, fault, left), name="together", daemon=True)
    thread.start()
    try:
        yield
    finally:
        left.set()
        thread.join()


def _watch(store: Store, fault: str, left: threading.Event) -> None:
    waited = 0.0
    while not left.wait(TICK):
        with contextlib.suppress(RuntimeError):
            waited += TICK if waited or store.check([fault]) else 0.0
            if waited > 2 * APART:
                logger.error("another rank failed (%s) and this one waits for it: it ends", store.get(fault).decode())
                os._exit(1)

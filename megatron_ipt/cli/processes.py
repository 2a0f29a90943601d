"""A child process that does not outlive us: ended, and waited for, when we are; and what it computes on."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO

from data_prep.errors import UserError

SHUTDOWN_SECONDS = 300
"""What torchrun leaves its workers between SIGTERM and SIGKILL: the step in hand and a save fit into it [s]."""

GRACE_SECONDS = SHUTDOWN_SECONDS + 30.0
"""What a child gets to end its own children, torchrun's workers among them [s]."""

CPU_SETTINGS = {
    # threads that wait by spinning bring two busy cores to a halt (14 times slower, measured); sleeping costs nothing
    "OMP_WAIT_POLICY": "PASSIVE",
    # glibc gives large tensors back and zeroes their pages anew at every use (10 % of training, measured): keep them
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(2 << 30),
}
"""What a child gets unless the environment says otherwise."""


NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")
"""Is there where the driver is, also in a container."""


def check_gpus(processes: int) -> None:
    """UserError for more processes than this machine has GPUs, before any is started.

    Without a driver there is nothing to count, and torch, which counts, takes two seconds to import.  A GPU that shows
    no such file is found by the processes themselves (`mcore.device.set_device`).
    """
    if NVIDIA_DRIVER.exists():
        from megatron_ipt.mcore import device

        device.check_gpus(processes, device.gpu_count())


@contextmanager
def child(
    command: Sequence[str], environment: Mapping[str, str], stderr: IO[bytes] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Start `command` under CPU_SETTINGS and `environment`.

    Leaving the block, also by SIGTERM or Ctrl-C, ends it if it still runs: the child gets SIGTERM first, so that it
    can end its own children, and SIGKILL after GRACE_SECONDS.
    """

    def interrupt(_: int, __: FrameType | None) -> None:
        raise UserError("SIGTERM", "ended from outside", "what was finished stays: start again to go on")

    before = signal.signal(signal.SIGTERM, interrupt)
    process = subprocess.Popen(command, env={**CPU_SETTINGS, **environment}, stderr=stderr)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        signal.signal(signal.SIGTERM, before)

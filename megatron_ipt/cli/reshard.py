"""ipt convert reshard: a checkpoint that only its own layout loads, as one that any loads."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from data_prep.errors import UserError
from megatron_ipt.cli import processes, tables

Trust = Annotated[
    bool,
    typer.Option("--trust-checkpoint", help="open what no integrity.json vouches for: it can run any code"),
]


@contextmanager
def trusting(wanted: bool) -> Iterator[None]:
    """Within the block checkpoints are opened as --trust-checkpoint says."""
    if not wanted:
        yield
        return
    from megatron_ipt.mcore import integrity

    with integrity.trusting(wanted):
        yield


def reshard(
    checkpoint: Annotated[Path, typer.Argument(help="folder of checkpoints, or one iter_* folder")],
    out: Annotated[Path, typer.Argument(help="folder of checkpoints to write into, another one")],
    trust_checkpoint: Trust = False,
) -> None:
    """Write a checkpoint so that any layout loads it.

    Starts as many processes as the layout that saved it has without data parallelism (TP x PP), each on a GPU of its
    own where there are GPUs.
    """
    from megatron_ipt.convert.reshard import processes_for
    from megatron_ipt.mcore.checkpoint_folder import latest, resolve
    from megatron_ipt.mcore.checkpoint_lock import locked

    found = resolve(checkpoint)
    if out.absolute() == found.parent.absolute():
        raise UserError(out, "is where the checkpoint lies", "give another folder")
    if (there := latest(out)) is not None and there.name > found.name:
        raise UserError(
            out, f"holds {there.name}, which is newer: a run would no longer find it", "give another folder"
        )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(processes_for(found)), "-m", "megatron_ipt.convert.reshard"]
    command += [str(found), str(out), "1" if trust_checkpoint else "0"]
    with tempfile.TemporaryDirectory() as folder, locked(out):
        told, log = Path(folder, "error.txt"), Path(folder, "log.txt")
        environment = {"OMP_NUM_THREADS": "1", **os.environ, "IPT_ERROR_FILE": str(told)}
        with log.open("wb") as stderr, processes.child(command, environment, stderr) as torchrun:
            code = torchrun.wait()
        if told.exists():
            raise UserError(*told.read_text(encoding="utf-8").split("\n"))
        if code:
            sys.stderr.write(log.read_text(encoding="utf-8", errors="replace"))
            raise UserError(found, f"torchrun ended with {code}", "see above")
    tables.console().print(f"wrote {out / found.name}", soft_wrap=True)

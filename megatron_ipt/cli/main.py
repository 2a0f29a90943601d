"""`ipt`: from raw text to a report.  The verbs stand in the order of the flow."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import typer
from typer.core import TyperGroup

from data_prep.errors import UserError
from data_prep.terminal import printable
from megatron_ipt.cli import ablate, blend, convert, data, doctor, evaluate, plan, report, run, train
from megatron_ipt.fp32 import without_tf32

# What a user can do, by error number; any other one of a file is told without.
_MENDS = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "make room or choose another folder, start again"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "choose a place you may read and write, start again"),
    **dict.fromkeys((errno.ENOTDIR, errno.EEXIST), "a file stands where a folder is needed: choose another path"),
    errno.EISDIR: "a folder stands where a file is needed: choose another path",
    errno.ENOENT: "give a path that is there",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ELOOP: "links lead in a circle: give the path that is meant",
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "allow more open files (`ulimit -n`) or use fewer workers"),
}


class InFlowOrder(TyperGroup):
    """Lists the verbs in the order of the flow, not alphabetically and not groups last."""

    def list_commands(self, ctx: Any) -> list[str]:
        return ["run", "data", "blend", "plan", "train", "convert", "evaluate", "report", "ablate", "doctor"]


app = typer.Typer(
    cls=InFlowOrder,
    help="Instruction Pre-Training: raw text -> pairs -> indexed datasets -> blend -> training -> report.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.add_typer(data.app, name="data")
app.add_typer(blend.app, name="blend")
app.command()(plan.plan)
app.command()(train.train)
app.add_typer(convert.app, name="convert")
app.command()(evaluate.evaluate)
app.command()(report.report)
app.command()(ablate.ablate)
app.command()(run.run)
app.command()(doctor.doctor)


def main() -> None:
    """The console script."""
    without_tf32(os.environ)
    told_in_a_line(partial(app, prog_name="ipt"))


def told_in_a_line(run: Callable[[], object]) -> None:
    """Bad input is one line on stderr and exit code 1; a fault of ours keeps its traceback."""
    try:
        run()
    except UserError as error:
        _fail(str(error))
    except OSError as error:
        if error.filename is None and error.errno not in _MENDS:
            raise
        _fail(_told(error))


def _told(error: OSError) -> str:
    name = os.fsdecode(error.filename) if isinstance(error.filename, bytes) else error.filename
    problem = os.strerror(error.errno) if error.errno else error.strerror or type(error).__name__
    return str(UserError(name or "disk", problem, _MENDS.get(error.errno or 0, "mend this, or choose another path")))


def _fail(line: str) -> None:
    sys.stderr.write(f"error: {printable(line)}\n")
    raise SystemExit(1)


if __name__ == "__main__":
    main()

"""Commands of `ipt`, one after another in one process: each one's exit code and what it wrote, as JSON.

    python cli_worker.py '[["convert", "import", ...], ...]' OUT.json

Most of a short command's time is its imports.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from megatron_ipt.cli.main import main as ipt


def run(arguments: Sequence[str]) -> tuple[int, str, str]:
    out, error, code = io.StringIO(), io.StringIO(), 0
    sys.argv = ["ipt", *arguments]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        try:
            ipt()
        except SystemExit as end:
            code = int(end.code or 0)
        except Exception:
            traceback.print_exc()
            code = 1
    return code, out.getvalue(), error.getvalue()


if __name__ == "__main__":
    jobs, answer = json.loads(sys.argv[1]), Path(sys.argv[2])
    answer.write_text(json.dumps([run(arguments) for arguments in jobs]), encoding="utf-8")

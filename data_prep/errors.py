"""The one kind of error that a user's input may cause.

A `UserError` is a single line that says where the fault is (file, line or key), what was expected,
and how to mend it.  The command line prints it without a traceback and exits with 1; any other
exception is a fault of ours and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input, told in one line: `where: what is wrong; the mend`."""

    def __init__(self, where: object, problem: str, mend: str = "") -> None:
        self.where, self.problem, self.mend = str(where), problem, mend
        text = f"{where}: {problem}" + (f"; {mend}" if mend else "")
        super().__init__(" ".join(text.split()))

    def __reduce__(self) -> tuple[type[UserError], tuple[str, str, str]]:
        """Errors travel between ranks."""
        return type(self), (self.where, self.problem, self.mend)


def nearest(name: str, legal: Iterable[str]) -> str:
    """A mend for an unknown name: the legal name that looks most like it, or all of them."""
    names = sorted(legal)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'?" if close else f"legal: {', '.join(names)}"

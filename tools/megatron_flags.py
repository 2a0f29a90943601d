"""What the tools share: Megatron's flags, those of them that mean nothing here, and errors told in one line.

argparse, unlike the command `ipt`: the flags have the shapes of Megatron's own parser (`--json-keys a b`).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import Any

from data_prep.errors import UserError
from megatron_ipt.cli.main import told_in_a_line


class Refuse(argparse.Action):
    """Remembers a flag of Megatron's that this tool does not take, with whatever values follow it."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option: str | None = None) -> None:
        namespace.refused = [*getattr(namespace, "refused", ()), option]


def parser_of(doc: str, refused: Mapping[str, str]) -> argparse.ArgumentParser:
    """A parser whose help is a file's docstring, and that knows the `refused` flags (flag -> the mend)."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    for flag in refused:
        parser.add_argument(flag, action=Refuse, nargs="*", help=argparse.SUPPRESS, dest=argparse.SUPPRESS)
    return parser


def run(
    parser: argparse.ArgumentParser, refused: Mapping[str, str], main: Callable[[argparse.Namespace], None]
) -> None:
    """Parse the command line and run `main`; all refused flags are told in one line, each mend once."""

    def checked() -> None:
        arguments = parser.parse_args()
        flags = list(dict.fromkeys(getattr(arguments, "refused", ())))
        if flags:
            raise UserError(
                ", ".join(flags), "not taken here", "; ".join(dict.fromkeys(refused[flag] for flag in flags))
            )
        main(arguments)

    told_in_a_line(checked)

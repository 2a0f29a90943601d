"""A blend in the forms that Megatron's own options take.

| file | option |
|---|---|
| data_args.txt | `--data-args-path`, with `--split`: weight and prefix in turn, as `--data-path` takes them |
| per_split_data_args.json | `--per-split-data-args-path`: `train`, `valid` and `test`, each such a list, or null |

Source: megatron/training/utils/common_utils.py (`get_blend_and_blend_per_split`) and megatron/core/datasets/utils.py
(`get_blend_from_list`), megatron-core 0.19.2.  Megatron has one set of weights a run: of a blend with phases there is a
pair of files for each, and changing them between starts replays and skips samples (docs/blend.md).
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from decimal import Context, Decimal
from pathlib import Path
from typing import NoReturn

from data_prep.blend.model import Blend
from data_prep.errors import UserError
from data_prep.manifest import write_json

# Twelve digits are more than Megatron's own rounding of samples keeps.
_DIGITS = Context(prec=12)


def write_forms(blend: Blend, folder: Path, held_out: Sequence[Path] = ()) -> list[Path]:
    """Writes both files for each phase below `folder`, prefixes absolute, and gives their paths.

    Errors: a UserError for a prefix with white space, which Megatron would cut there, for a proxy run, and for a split.
    """
    if blend.split is not None:
        refuse_split()
    shrunk = [source.name for source in blend.sources if source.sequences < source.of_sequences]
    if shrunk:
        problem = f"'{shrunk[0]}' is shrunk for a proxy run, which Megatron's options cannot say"
        raise UserError("--megatron", problem, "leave one of --proxy-tokens and --megatron out")
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for number in range(len(blend.phases)):
        place = folder if len(blend.phases) == 1 else folder / f"phase-{number + 1}"
        place.mkdir(exist_ok=True)
        train = data_path(blend, number)
        valid = [word for prefix in held_out for word in ("1.0", _prefix(prefix))]
        paths = place / "data_args.txt", place / "per_split_data_args.json"
        paths[0].write_text(" ".join(train) + "\n", encoding="utf-8")
        write_json(paths[1], {"train": train, "valid": valid or None, "test": None})
        written += paths
    return written


def refuse_split() -> NoReturn:
    """The UserError for a blend with a split, whose validation documents Megatron's options cannot leave out."""
    problem = "Megatron would train on all documents, also on those that the split sets apart"
    mend = "index them apart and name them in `held_out`, or train through our provider"
    raise UserError("--megatron", problem, f"{mend} (docs/use_our_blend_in_your_megatron.md)")


def not_said(blend: Blend) -> list[str]:
    """What the blend asks for and Megatron's options cannot say, a line each."""
    found = []
    for source in blend.sources:
        if source.policy != "concatenate":
            found.append(f"'{source.name}': policy {source.policy} is not said; Megatron cuts its documents anywhere")
        if source.loss != "all":
            found.append(f"'{source.name}': loss {source.loss} is not said; Megatron trains on all of its tokens")
    return found


def data_path(blend: Blend, phase: int) -> list[str]:
    """Weight and prefix in turn, of the sources that a phase draws; weights are shares of samples."""
    shares = blend.phases[phase].shares
    words = []
    for source, share in zip(blend.sources, shares, strict=True):
        if share:
            weight = _DIGITS.divide(Decimal(share), Decimal(sum(shares)))
            words += [f"{weight:f}", _prefix(source.prefix)]
    return words


def option(blend: Blend, phase: int) -> str:
    """`--data-path` as one would type it."""
    return "--data-path " + shlex.join(data_path(blend, phase))


def _prefix(prefix: Path) -> str:
    if any(character.isspace() for character in str(prefix)):
        raise UserError(prefix, "Megatron cuts a file of arguments at white space", "move the dataset")
    return str(prefix)

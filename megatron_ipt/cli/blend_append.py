"""ipt blend append: a further phase, from a run's position on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.blend import append, plan_table, read_blend, write_blend
from data_prep.blend.model import Blend
from data_prep.errors import UserError
from data_prep.manifest import write_json
from megatron_ipt.cli.blend import count
from megatron_ipt.cli.blend_runs import RunRecord, read_run
from megatron_ipt.cli.blend_tables import show_lines, show_plan
from megatron_ipt.cli.blend_verify import position

if TYPE_CHECKING:
    from data_prep.settings import SourceKind


def append_phase(
    place: Path,
    weights: Mapping[str, float],
    begin: str | None,
    added: Mapping[str, tuple[Path, SourceKind]],
    out: Path | None,
) -> None:
    """Writes the blend with its new phase, and plan.json beside it, and prints the plan."""
    run = read_run(place) if place.is_dir() else None
    path = run.blend_path if run else place
    old = run.blend if run else read_blend(path)
    first = _first_sample(old, run, begin)
    new = append(old, first, weights, added)
    target = out or path
    known = _planned(path.with_name("plan.json"))
    samples = known.get("train_samples")
    if samples is not None and samples <= first:
        samples = None  # the run goes on beyond what was planned
    table = plan_table(new, samples, max_epochs=4.0, notes=_gone(old, first))
    target.parent.mkdir(parents=True, exist_ok=True)
    write_blend(new, target)
    write_json(target.with_name("plan.json"), table.to_json())
    show_plan(table)
    show_lines([f"{target}: the first {first:,} samples are those of blend {old.hash[:12]}"], "wrote")


def _first_sample(blend: Blend, run: RunRecord | None, begin: str | None) -> int:
    """Where the phase begins; UserError for a run that is past it."""
    if begin in (None, "now"):
        if run is None:
            raise UserError(
                "--from", "where the phase begins is not said", "write --from 60B, or give the run's folder"
            )
        return position(run)
    assert begin is not None
    first = -(-count("--from", begin) // blend.seq_length)
    if run is not None and run.saved is not None and first < run.saved:
        tokens = run.saved * blend.seq_length
        problem = f"sample {first:,} lies in the run's past: its checkpoint has consumed {run.saved:,} samples"
        raise UserError("--from", problem, f"begin at {tokens:,} tokens or later")
    return first


def _gone(blend: Blend, first: int) -> tuple[str, ...]:
    later = [phase.name or f"from sample {phase.first_sample:,} on" for phase in blend.phases]
    gone = [name for name, phase in zip(later, blend.phases, strict=True) if phase.first_sample >= first]
    return (f"the phases that would have come are replaced: {', '.join(gone)}",) if gone else ()


def _planned(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found

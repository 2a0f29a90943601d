"""What a run's stream really gave it, source by source, counted twice and held against its arm's weights.

Once by reading every sample again as training reads it (`BlendStream`), once from the `samples` that training itself
wrote into metrics.jsonl at each step.  A run that does not fit its weights is an error, not a row of a table.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.blend import verify_draws
from data_prep.errors import UserError
from megatron_ipt.ablate.study import shares_of
from megatron_ipt.data.stream import BlendStream

_MEND = "delete that folder and start the study again"


@dataclass(frozen=True, slots=True)
class SourceDraws:
    """One source of one run.  Shares are of samples; `difference` is drawn minus planned [samples]."""

    source: str
    planned_share: float
    realised_share: float
    samples: int
    difference: float


def verified_draws(
    run: Path, blend: Path, weights: Mapping[str, float], rows: Iterable[Mapping[str, Any]], samples: int
) -> tuple[SourceDraws, ...]:
    """The draws of the first `samples` samples of the run in folder `run`, one row a source of its arm.

    UserError, naming the run, unless the blend is the arm's, both counts agree, and each is within one sample.
    """
    stream = BlendStream(blend)
    planned = shares_of(weights)
    shares = {source.name: stream.blend.phases[0].shares[i] for i, source in enumerate(stream.blend.sources)}
    period = sum(shares.values())
    if shares.keys() != planned.keys() or any(abs(shares[name] - planned[name] * period) >= 1 for name in shares):
        raise UserError(run, f"its blend has shares {shares} of {period}, not the arm's weights", _MEND)
    read = [stream.sample(index).source for index in range(samples)]
    logged = logged_samples(rows)
    found = []
    for check in verify_draws(stream.blend, 0, samples, read):
        told = logged.get(check.source, 0)
        if told != check.drawn:
            problem = f"training logged {told} samples of '{check.source}', its stream gives {check.drawn}"
            raise UserError(run, problem, _MEND)
        if not check.within:
            problem = f"drew {check.drawn} samples of '{check.source}' where its share is {check.expected:.2f}"
            raise UserError(run, problem, _MEND)
        share = float(planned[check.source])
        found.append(SourceDraws(check.source, share, check.drawn / samples, check.drawn, check.drawn - check.expected))
    if sum(logged.values()) != samples:
        raise UserError(run, f"training logged {sum(logged.values())} samples of {samples}", _MEND)
    return tuple(found)


def logged_samples(rows: Iterable[Mapping[str, Any]]) -> Counter[str]:
    """Samples by source over the `train` lines of a metrics file, each step being one line."""
    total: Counter[str] = Counter()
    for row in rows:
        if row["kind"] == "train":
            total.update(row["samples"])
    return total

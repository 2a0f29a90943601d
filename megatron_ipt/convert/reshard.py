"""A checkpoint whose optimizer's state loads with its own TP and PP only, written anew so that any layout loads it.

    torchrun --nproc-per-node TPxPP -m megatron_ipt.convert.reshard ITER_FOLDER OUT 0

is what `ipt convert reshard` runs; the last argument is 1 for --trust-checkpoint.  Such a state loads with any DP, so
one replica reads it; it is then saved as `fully_reshardable`, with the card's iteration and data position.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

from pydantic import ValidationError

from data_prep.errors import UserError
from megatron_ipt.mcore.run_card import DP_RESHARDABLE, FULLY_RESHARDABLE, RunCard
from megatron_ipt.settings import TrainSettings


def processes_for(checkpoint: Path) -> int:
    """How many processes one replica of the layout that saved `checkpoint` has."""
    train = settings_for(RunCard.read(checkpoint), checkpoint)
    return train.tensor_model_parallel_size * train.pipeline_model_parallel_size


def settings_for(card: RunCard, checkpoint: Path) -> TrainSettings:
    """The settings of the run that saved it, on one replica; UserError for a checkpoint without an optimizer."""
    if card.sharding_type not in (DP_RESHARDABLE, FULLY_RESHARDABLE):
        raise UserError(checkpoint, "holds no state of the distributed optimizer", "any layout loads it as it is")
    one = {"context_parallel_size": 1, "async_save": False}
    try:
        return TrainSettings.model_validate({**card.recipe["train"], **one})
    except (KeyError, ValidationError) as error:
        raise UserError(checkpoint, "its card holds no recipe of this version", "use the ipt that wrote it") from error


def reshard(checkpoint: Path, out: Path) -> Path:
    """Read `checkpoint` in the current process group, write it to OUT/iter_N.  All ranks call it."""
    from megatron_ipt.mcore import checkpoint as checkpoints
    from megatron_ipt.mcore import config as configs
    from megatron_ipt.mcore import integrity, parallel
    from megatron_ipt.mcore import model as models
    from megatron_ipt.mcore import optimizer as optimizers
    from megatron_ipt.mcore.plain import plain

    integrity.verify(checkpoint)
    card = RunCard.read(checkpoint)
    train = plain(settings_for(card, checkpoint))
    with parallel.model_parallel(train):
        config = configs.transformer_config(card.architecture, train)
        chunks = models.wrap(models.build(card.architecture, config, train, card.padded_vocab_size), config, train)
        optimizer = optimizers.build(train, chunks)
        checkpoints.load(checkpoint, chunks, optimizer, verified=True)
        return checkpoints.save(out, replace(card, parent=str(checkpoint)), chunks, optimizer)


def main() -> None:
    from megatron_ipt.mcore import integrity, parallel

    checkpoint, out, trusted = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] == "1"
    try:
        with parallel.distributed(), integrity.trusting(trusted):
            reshard(checkpoint, out)
    except UserError as error:
        if os.environ.get("RANK", "0") == "0" and (told := os.environ.get("IPT_ERROR_FILE")):
            Path(told).write_text("\n".join((error.where, error.problem, error.mend)), encoding="utf-8")
        sys.exit(1)


if __name__ == "__main__":
    main()

"""A job whose workers tell which GPUs they were started with."""

from __future__ import annotations

import os
from pathlib import Path

from scripted_engine import ScriptedEngine

from data_prep.synthesis.engines import Engine
from data_prep.synthesis.executors import Job
from data_prep.synthesis.prompts import Prompter
from data_prep.synthesis.worker import Told, Worker


class TellingJob(Job):
    """Its workers have a scripted engine; each leaves a file, in the folder that IPT_TEST_TELLS names, with the
    CUDA_VISIBLE_DEVICES that it was started with, whatever has been set since."""

    def worker(self, told: Told, engine: Engine | None = None, prompter: Prompter | None = None) -> Worker:
        started = dict(entry.split("=", 1) for entry in Path("/proc/self/environ").read_text().split("\0") if entry)
        visible = started.get("CUDA_VISIBLE_DEVICES", "unset")
        (Path(os.environ["IPT_TEST_TELLS"]) / f"{os.getpid()}").write_text(visible)
        return super().worker(told, ScriptedEngine(), prompter)

"""Slurm's commands for one machine: `slurm_stand_in.py sbatch|srun|scontrol ARGUMENTS...`, over real processes.

The folder FAKE_SLURM holds `plan.json`, for each try of the job the events to come: a signal, whom it goes to (the
batch `shell` alone, or the processes of the `step`, as at a preemption), and what must be seen first: a file, and a
text in it.  srun notes its arguments in `srun.jsonl`.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

SBATCH_OPTIONS = {
    *("job-name", "nodes", "ntasks-per-node", "gpus-per-node", "exclusive", "time", "output", "signal", "requeue"),
    *("open-mode", "partition", "account", "mem", "cpus-per-task"),
}
SRUN_OPTIONS = {
    *("nodes", "ntasks", "ntasks-per-node", "kill-on-bad-exit", "cpu-bind"),
    *("container-image", "container-mounts", "container-workdir"),
}
FOLDER = Path(os.environ["FAKE_SLURM"])


def split(arguments: list[str], known: set[str]) -> tuple[dict[str, str], list[str]]:
    """(leading --options, the rest); an unknown option ends the command as Slurm would."""
    options = {}
    for index, argument in enumerate(arguments):
        if not argument.startswith("--"):
            return options, arguments[index:]
        name, _, value = argument[2:].partition("=")
        if name not in known:
            sys.exit(f"unrecognized option '--{name}'")
        options[name] = value
    return options, []


def sbatch(arguments: list[str]) -> int:
    """Run the script as a job until it does not ask to be queued again; the last try's exit code."""
    given, (script, *rest) = split(arguments, SBATCH_OPTIONS)
    written = [line.split()[1:] for line in Path(script).read_text().splitlines() if line.startswith("#SBATCH ")]
    options = {**split([word for words in written for word in words], SBATCH_OPTIONS)[0], **given}
    assert options["signal"] == "B:USR1@600" and "requeue" in options, options
    assert options["mem"] == "0", "an exclusive node, but the partition's default of its memory"
    spool = FOLDER / "slurm_script"  # Slurm runs a copy, elsewhere
    shutil.copy(script, spool)
    job = os.environ.get("FAKE_JOB_ID", "4242")
    log = Path(options["output"].replace("%x", options["job-name"]).replace("%j", job))
    environment = {**os.environ, "SLURM_JOB_ID": job, "SLURM_NNODES": options["nodes"]}
    environment["SLURM_JOB_NODELIST"] = ",".join(["localhost"] * int(options["nodes"]))
    plan = json.loads((FOLDER / "plan.json").read_text())
    count = 0
    while True:
        if count:
            environment["SLURM_RESTART_COUNT"] = str(count)
        asked = FOLDER / "requeue"
        asked.unlink(missing_ok=True)
        with log.open("ab" if options["open-mode"] == "append" else "wb") as output:
            shell = subprocess.Popen(["bash", spool, *rest], env=environment, stdout=output, stderr=subprocess.STDOUT)
            follow(plan[count] if count < len(plan) else [], shell)
        if not asked.exists():
            return shell.returncode
        assert asked.read_text() == job
        count += 1


def follow(events: list[dict[str, Any]], shell: subprocess.Popen[bytes]) -> None:
    """Send each signal when its time has come, then wait for the shell's end."""
    for event in events:
        while not seen(event):
            if shell.poll() is not None:
                return
            time.sleep(0.02)
        number = signal.Signals[event["signal"]]
        processes = [psutil.Process(shell.pid)]
        if event["to"] == "step":  # what srun started, not srun
            own = processes[0].children()
            processes = [found for found in processes[0].children(recursive=True) if found not in own]
        for process in processes:
            process.send_signal(number)
    shell.wait()


def seen(event: dict[str, Any]) -> bool:
    path = Path(event["file"])
    return path.exists() and (path.is_dir() or event.get("text", "") in path.read_text())


def srun(arguments: list[str]) -> int:
    """One process a node; the largest exit code.  One that fails takes the others along."""
    options, command = split(arguments, SRUN_OPTIONS)
    with (FOLDER / "srun.jsonl").open("a") as file:
        file.write(json.dumps({"options": options, "command": command}) + "\n")
    nodes = range(int(options["nodes"]))
    tasks = [subprocess.Popen(command, env={**os.environ, "SLURM_NODEID": str(node)}) for node in nodes]
    while any(task.poll() is None for task in tasks):
        if options.get("kill-on-bad-exit") == "1" and any(task.poll() for task in tasks):
            for task in tasks:
                task.terminate()
            time.sleep(0.5)
        time.sleep(0.05)
    return max(abs(task.returncode) for task in tasks)


def scontrol(arguments: list[str]) -> int:
    match arguments:
        case ["show", "hostnames", nodes]:
            print("\n".join(nodes.split(",")))
        case ["requeue", job]:
            (FOLDER / "requeue").write_text(job)
        case _:
            sys.exit(f"scontrol: unknown {arguments}")
    return 0


if __name__ == "__main__":
    sys.exit({"sbatch": sbatch, "srun": srun, "scontrol": scontrol}[sys.argv[1]](sys.argv[2:]))

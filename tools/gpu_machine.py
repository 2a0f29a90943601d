"""What the GPU machine is, and whether a folder of wheels fits it.  Standard library only."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from data_prep.errors import UserError

_ASK = """
import json, sys
found = {"python": "cp%d%d" % sys.version_info[:2], "torch": None, "cuda": None, "cards": 0, "card": None}
try:
    import torch
except ImportError:
    pass
else:
    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    found |= {"torch": torch.__version__, "cuda": torch.version.cuda, "cards": cards}
    if cards:
        found |= {"card": torch.cuda.get_device_name(), "capability": list(torch.cuda.get_device_capability())}
print(json.dumps(found))
"""


@dataclass(frozen=True, slots=True)
class Machine:
    """An interpreter with its torch, and the GPUs that torch sees; `driver` is nvidia-smi's word."""

    python: str
    torch: str | None
    cuda: str | None
    cards: int
    card: str | None
    capability: list[int] | None = None
    driver: str | None = None

    @property
    def release(self) -> str:
        """torch's version without its build (`+cu130`)."""
        return (self.torch or "").split("+")[0]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def here() -> Machine:
    """This interpreter's machine, asked in a process of its own: torch takes memory and a GPU's context."""
    asked = subprocess.run([sys.executable, "-c", _ASK], capture_output=True, text=True, check=False)
    if asked.returncode:
        lines = asked.stderr.strip().splitlines()
        raise UserError("torch", f"does not import ({lines[-1] if lines else 'no word'})", "mend that first")
    return Machine(**json.loads(asked.stdout), driver=_driver())


def _driver() -> str | None:
    if shutil.which("nvidia-smi") is None:
        return None
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, check=False)
    return done.stdout.strip().splitlines()[0] if done.returncode == 0 and done.stdout.strip() else None


def check_python(machine: Machine, manifest: Mapping[str, Any], wheels: object) -> None:
    """UserError for wheels of another Python."""
    if machine.python != manifest["python"]:
        wanted = f"{manifest['python'][2]}.{manifest['python'][3:]}"
        mend = f"run it with PYTHON=python{wanted}, or collect again there with PYTHON=python{_dotted(machine.python)}"
        problem = f"are for Python {wanted}, this is {_dotted(machine.python)}"
        raise UserError(wheels, f"the wheels {problem}", mend)


def _dotted(tag: str) -> str:
    return f"{tag[2]}.{tag[3:]}"


def check_torch(machine: Machine, manifest: Mapping[str, Any]) -> None:
    """UserError where there is no torch, or another than Transformer Engine was built for."""
    if machine.torch is None:
        raise UserError("torch", "is not installed for this interpreter", "name the one that has it: PYTHON=...")
    engine = manifest["transformer_engine"]
    if engine and machine.release != engine["torch"]:
        problem = f"{machine.release} is here, Transformer Engine was built for {engine['torch']}"
        mend = f"tools/gpu_wheels.sh OUT --torch {machine.release}, or with --transformer-engine none"
        raise UserError("torch", problem, mend)


def check_card(machine: Machine, *, rehearsal: bool) -> None:
    """UserError where torch sees no GPU; a rehearsal needs none."""
    if machine.cards == 0 and not rehearsal:
        seen = f"nvidia-smi tells of driver {machine.driver}" if machine.driver else "nvidia-smi tells of none either"
        mend = "run it where one is, or rehearse on the CPU: --rehearse"
        raise UserError("GPU", f"torch {machine.torch} sees none, {seen}", mend)

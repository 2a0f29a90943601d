"""MANIFEST.json: files cut into parts and made whole again, and the ways in which a folder may not be what was made."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from data_prep.errors import UserError

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
import gpu_manifest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two wheels, the larger in three parts of at most 40 bytes."""
    made, out = tmp_path / "made", tmp_path / "out"
    made.mkdir()
    out.mkdir()
    (made / "large-1-py3-none-any.whl").write_bytes(bytes(range(100)))
    (made / "small-1-py3-none-any.whl").write_bytes(b"small")
    files = [gpu_manifest.place(wheel, out, 40) for wheel in sorted(made.iterdir())]
    gpu_manifest.write(out, {"python": "cp312", "files": files})
    return out


def test_parts_are_small_enough_and_make_the_file_they_are_of(folder: Path, tmp_path: Path) -> None:
    manifest = gpu_manifest.read(folder)
    assert gpu_manifest.names(manifest) | {"MANIFEST.json"} == {path.name for path in folder.iterdir()}
    assert [file["size"] for file in gpu_manifest.lying(manifest)] == [40, 40, 20, 5]
    gpu_manifest.check_files(folder, manifest)
    for _ in range(2):
        gpu_manifest.join(folder, manifest, tmp_path / "joined")
        assert [path.name for path in (tmp_path / "joined").iterdir()] == ["large-1-py3-none-any.whl"]
        assert (tmp_path / "joined" / "large-1-py3-none-any.whl").read_bytes() == bytes(range(100))


def damage(folder: Path, how: str) -> None:
    part = folder / "large-1-py3-none-any.whl.part01"
    if how == "missing":
        part.unlink()
    elif how == "short":
        part.write_bytes(part.read_bytes()[:-1])
    elif how == "damaged":
        part.write_bytes(bytes(40))
    elif how == "no manifest":
        (folder / "MANIFEST.json").unlink()
    elif how == "no JSON":
        (folder / "MANIFEST.json").write_text("{", encoding="utf-8")
    else:
        (folder / "MANIFEST.json").write_text(json.dumps({"format_version": 2}), encoding="utf-8")


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("missing", "large-1-py3-none-any.whl.part01: is missing (40 bytes); bring it again"),
        ("short", "large-1-py3-none-any.whl.part01: has 39 bytes, not 40; bring it again"),
        ("damaged", "large-1-py3-none-any.whl.part01: is damaged: its sha256 is not the manifest's; bring it again"),
        ("no manifest", "MANIFEST.json: is not there; make the folder with tools/gpu_wheels.sh"),
        ("no JSON", "MANIFEST.json: is not JSON"),
        ("another format", "MANIFEST.json: is not of format 1; make the folder with this version's gpu_wheels.sh"),
    ],
)
def test_a_folder_that_is_not_what_was_made_is_told(folder: Path, how: str, told: str) -> None:
    damage(folder, how)
    with pytest.raises(UserError) as error:
        gpu_manifest.check_files(folder, gpu_manifest.read(folder))
    assert told in str(error.value)


def test_parts_in_the_wrong_order_are_found_when_joined(folder: Path, tmp_path: Path) -> None:
    manifest = gpu_manifest.read(folder)
    manifest["files"][0]["parts"].reverse()
    with pytest.raises(UserError, match="its parts do not make the file"):
        gpu_manifest.join(folder, manifest, tmp_path / "joined")
    assert not list((tmp_path / "joined").glob("*.whl"))


def test_what_an_earlier_manifest_lists_goes_and_other_files_stay(folder: Path) -> None:
    (folder / "notes.txt").write_text("mine", encoding="utf-8")
    kept = [file for file in gpu_manifest.read(folder)["files"] if file["name"].startswith("small")]
    gpu_manifest.write(folder, {"python": "cp312", "files": kept})
    assert {path.name for path in folder.iterdir()} == {"MANIFEST.json", "notes.txt", "small-1-py3-none-any.whl"}


@pytest.mark.parametrize(("text", "size"), [("60M", 60_000_000), ("1500", 1500), ("2k", 2000), ("1G", 10**9)])
def test_sizes(text: str, size: int) -> None:
    assert gpu_manifest.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "M", "0", "-1K", "60MB", "1.5M"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError):
        gpu_manifest.parse_size(text)


def test_the_tool_refuses_a_size_before_it_does_anything(tmp_path: Path, monkeypatch: Any) -> None:
    import gpu_wheels

    monkeypatch.setattr(sys, "argv", ["gpu_wheels.py", str(tmp_path / "out"), "--part-size", "60MB"])
    with pytest.raises(SystemExit, match=r"error: --part-size: 60MB is no size \(.*\); use 60M, say"):
        gpu_wheels.main()
    assert not (tmp_path / "out").exists()

"""The rooms import downwards only, as the architecture says; the command line loads nothing heavy."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

CONTRACTS = {"data_prep.errors", "data_prep.records", "data_prep.manifest", "data_prep.settings"}
LEVELS: list[set[str]] = [
    CONTRACTS,
    {"data_prep"},
    {"megatron_ipt.settings", "megatron_ipt.paths", "megatron_ipt.fp32"},
    {"megatron_ipt.recipe"},
    {"megatron_ipt.architecture"},
    {"megatron_ipt.mcore"},
    {"megatron_ipt.data", "megatron_ipt.convert", "megatron_ipt.training"},
    {"megatron_ipt.pretrain", "megatron_ipt.evaluate", "megatron_ipt.plan"},
    {"megatron_ipt.ablate"},
    {"megatron_ipt.report"},
    {"megatron_ipt.cli"},
    {"tools"},
]
# what the trainer's half may take from the data half; the command line may take all
SHARED = {
    *CONTRACTS,
    "data_prep.readers",
    "data_prep.indexing.lineage",
    "data_prep.indexing.reader",
    "data_prep.indexing.spans",
    "data_prep.indexing.verify",
    "data_prep.order",
    "data_prep.packing",
    "data_prep.pairs_report",
    "data_prep.blend",
}
MEGATRON = ("megatron", "transformer_engine", "apex")
WITHOUT_SHIM = {
    "megatron_ipt.mcore.shim",
    "megatron_ipt.mcore.indexed_dataset",
    "megatron_ipt.mcore.user_buffers",  # names a type of megatron-core, no more
}


def modules() -> Iterator[tuple[str, Path]]:
    for package in ("data_prep", "megatron_ipt", "tools"):
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


@functools.cache
def imports(path: Path) -> list[tuple[str, bool]]:
    """(imported module, whether at the top level); `from a import b` gives a.b too, if that is a module."""
    return [*_imports(ast.parse(path.read_text(encoding="utf-8")))]


def _imports(tree: ast.Module) -> Iterator[tuple[str, bool]]:
    top = {id(node) for node in tree.body}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) in top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module, id(node) in top
            for alias in node.names:
                target = ROOT / node.module.replace(".", "/") / alias.name
                if target.is_dir() or target.with_suffix(".py").exists():
                    yield f"{node.module}.{alias.name}", id(node) in top


def within(module: str, rooms: set[str]) -> bool:
    return any(module == room or module.startswith(room + ".") for room in rooms)


def level(module: str) -> int:
    found = [index for index, rooms in enumerate(LEVELS) if within(module, rooms)]
    assert found, f"{module} stands in no room of LEVELS"
    return min(found)


ALL = list(modules())


@pytest.mark.parametrize(("module", "path"), ALL, ids=[name for name, _ in ALL])
def test_a_module_imports_its_own_level_or_lower(module: str, path: Path) -> None:
    if module == "megatron_ipt":
        return
    for name, _ in imports(path):
        if name.split(".")[0] in ("data_prep", "megatron_ipt") and name != "megatron_ipt":
            assert level(name) <= level(module), f"{module} imports {name}, which stands above it"
            if module in CONTRACTS:
                assert within(name, CONTRACTS), f"the contract {module} imports {name}"
            if within(module, {"megatron_ipt"}) and not within(module, {"megatron_ipt.cli"}) and name != "data_prep":
                assert within(name, SHARED | {"megatron_ipt"}), f"{module} takes {name} from the other half"


@pytest.mark.parametrize(("module", "path"), ALL, ids=[name for name, _ in ALL])
def test_only_mcore_imports_megatron_and_the_shim_comes_first(module: str, path: Path) -> None:
    names = [name for name, top in imports(path) if top]
    if not any(name.split(".")[0] in MEGATRON for name in [name for name, _ in imports(path)]):
        return
    assert within(module, {"megatron_ipt.mcore"}), f"{module} imports megatron"
    if module not in WITHOUT_SHIM:
        first = next(index for index, name in enumerate(names) if name.split(".")[0] in MEGATRON)
        assert "megatron_ipt.mcore.shim" in names[:first], f"{module} imports megatron before the shim"


def test_there_is_no_circle() -> None:
    """Among modules of one level too."""
    graph = {name: {found for found, top in imports(path) if top} for name, path in ALL}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail, name))
        if name in done or name not in graph:
            return
        for found in graph[name]:
            if found != name and not name.startswith(found + "."):  # a package and its own modules
                visit(found, (*trail, name))
        done.add(name)

    for name in graph:
        visit(name, ())


def test_the_installer_needs_nothing_installed() -> None:
    """It is the first thing that runs in an image."""
    roots = {name.split(".")[0] for name, _ in imports(ROOT / "tools" / "in_image.py")}
    assert roots <= sys.stdlib_module_names


def test_importing_the_command_line_loads_nothing_heavy() -> None:
    code = "import sys, megatron_ipt.cli.main; print([m for m in ('torch', 'megatron', 'transformers', 'numpy', "
    code += "'pyarrow', 'matplotlib', 'lm_eval') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

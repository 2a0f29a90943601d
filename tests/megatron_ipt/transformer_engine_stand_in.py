"""Imported first, gives a process a `transformer_engine` of empty classes: megatron-core then makes its TE specs.

Only names are shown with it (which layers a spec is made of); nothing of it computes.
"""

from __future__ import annotations

import importlib.machinery
import importlib.metadata
import sys
import types
from typing import Any

VERSION = "2.8.0"
PACKAGES = ("transformer_engine", "transformer_engine_torch")


class _StandIn(types.ModuleType):
    __version__ = VERSION
    __path__ = ()  # a package without files

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        made: Any = type(name, (), {}) if name[0].isupper() else _StandIn(f"{self.__name__}.{name}")
        setattr(self, name, made)
        return made

    def __call__(self, *_: Any, **__: Any) -> Any:
        return self


class _Finder:
    def find_spec(self, name: str, *_: Any) -> importlib.machinery.ModuleSpec | None:
        if name.split(".")[0] not in PACKAGES:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)  # type: ignore[arg-type]

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, _: types.ModuleType) -> None: ...


_version = importlib.metadata.version
importlib.metadata.version = lambda name: (
    VERSION if name.replace("-", "_").startswith("transformer_engine") else _version(name)
)
sys.meta_path.insert(0, _Finder())  # type: ignore[arg-type]

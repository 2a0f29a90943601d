"""A recipe's value for a field of megatron-core's configurations, checked against the field's type hint.  Pure.

megatron-core checks next to nothing: a word where a number belongs is met in the middle of training, and a word in
place of an Enum's member equals no member and is silently ignored.
"""

from __future__ import annotations

import types
import typing
from enum import Enum
from typing import Any

import torch

_PLAIN = {bool: "true or false", int: "a whole number", float: "a number", str: "a word"}


def as_hinted(hint: Any, value: Any) -> Any:
    """`value` as the hint wants it: an Enum's member for its name, a dtype for torch's name, else itself.

    ValueError, with what is legal, for a value that the hint does not allow.
    """
    kinds = _kinds(hint)
    for kind in kinds:
        allowed, found = _as(kind, value)
        if allowed:
            return found
    shown = "null" if value is None else repr(value)
    raise ValueError(f"{shown} is not legal", f"use {_legal(kinds)}")


def _kinds(hint: Any) -> tuple[Any, ...]:
    """The alternatives of a Union, or the hint alone."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return tuple(kind for part in typing.get_args(hint) for kind in _kinds(part))
    return (hint,)


def _as(kind: Any, value: Any) -> tuple[bool, Any]:
    """(whether one alternative allows `value`, what it becomes)."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return any(type(value) is type(legal) and value == legal for legal in arguments), value
    if origin in (list, tuple):
        inner = [part for part in arguments if part is not ...]
        return isinstance(value, list | tuple) and all(
            any(_as(part, item)[0] for part in inner) for item in value
        ), value
    if isinstance(kind, type) and issubclass(kind, Enum) and isinstance(value, str):
        return value in kind.__members__, kind.__members__.get(value)
    if kind is torch.dtype and isinstance(value, str):
        found = getattr(torch, value, None)
        return isinstance(found, torch.dtype), found
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool), value
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool), value
    if isinstance(kind, type):
        return isinstance(value, kind), value
    # a function or the like: nothing that a recipe can hold
    return value is not None and not isinstance(value, str | bool | int | float | list | dict), value


def _legal(kinds: tuple[Any, ...]) -> str:
    words: list[str] = []
    for kind in kinds:
        if typing.get_origin(kind) is typing.Literal:
            words.append(f"one of {', '.join(map(str, typing.get_args(kind)))}")
        elif isinstance(kind, type) and issubclass(kind, Enum):
            words.append(f"one of {', '.join(kind.__members__)}")
        elif kind is torch.dtype:
            words.append("one of float32, bfloat16, float16 or another of torch's names")
        elif kind is types.NoneType:
            words.append("null")
        elif kind in _PLAIN:
            words.append(_PLAIN[kind])
        elif typing.get_origin(kind) in (list, tuple):
            words.append("a list")
    return " or ".join(dict.fromkeys(words)) or "what megatron-core's Python makes: no recipe can hold it; leave it out"

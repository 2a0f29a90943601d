"""The styles of a language: read from its folder of YAML files and checked against `schema`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash
import yaml

from data_prep.errors import UserError, nearest
from data_prep.templates.schema import FILES, AlwaysFalse, Entries, Share

OURS = Path(__file__).parent

Entry = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Styles:
    """The lists of a language, by file.list, and its shares.

    `name` is language@fingerprint, a hash of everything that decides what is rendered; `versions` those of the files.
    """

    name: str
    versions: Mapping[str, int]
    lists: Mapping[str, tuple[Entry, ...]]
    shares: Mapping[str, float]


def load_styles(language: str, root: Path | str | None = None) -> Styles:
    """The styles of ROOT/LANGUAGE; without a root, of ours.

    Raises:
        UserError: no such folder or file, or one that is not as `schema.FILES` says; in one line with file and place.
    """
    folder = Path(root or OURS) / language
    _check_folder(folder)
    versions, lists, shares = {}, {}, {}
    for name in FILES:
        path = folder / f"{name}.yaml"
        content = _read(path)
        versions[name] = _version(path, content)
        for key, rule in FILES[name].items():
            if key not in content:
                raise UserError(path, f"'{key}' is missing", "add it, as in our file of that name for 'en'")
            if isinstance(rule, Entries):
                lists[f"{name}.{key}"] = _entries(f"{path}: {key}", content[key], rule)
            elif isinstance(rule, Share):
                shares[f"{name}.{key}"] = _share(f"{path}: {key}", content[key])
            elif isinstance(rule, AlwaysFalse) and content[key] is not False:
                raise UserError(f"{path}: {key}", f"expected false, found {content[key]!r}", "this mode has none")
        _refuse_unknown(path, content, {"version", *FILES[name]})
    return Styles(f"{language}@{_fingerprint(lists, shares)}", versions, lists, shares)


def languages(root: Path | str | None = None) -> list[str]:
    """Names of the language folders in a root."""
    return sorted({file.parent.name for file in Path(root or OURS).glob("*/*.yaml")})


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        found = languages(folder.parent)
        mend = f"there are: {', '.join(found)}" if found else "--templates is the folder that holds language folders"
        raise UserError(folder, f"no templates for the language '{folder.name}'", mend)
    for path in sorted(folder.glob("*.y*ml")):
        if path.suffix != ".yaml" or path.stem not in FILES:
            raise UserError(
                path, "no template file has this name", nearest(path.name, (f"{name}.yaml" for name in FILES))
            )


class _Loader(yaml.SafeLoader):
    """A key that stands twice would silently lose its first list."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"'{key.value}' stands twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError as error:
        raise UserError(path, "no such file", "add it, as in our folder 'en'") from error
    except UnicodeDecodeError as error:
        raise UserError(path, f"not UTF-8 at byte {error.start}", "save it as UTF-8") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: an impossible date, say
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or error
        raise UserError(where, f"not YAML ({problem})", "quote every style") from error
    if not isinstance(content, dict):
        raise UserError(path, f"expected a mapping, found {type(content).__name__}", "begin it with `version: 1`")
    return content


def _version(path: Path, content: Mapping[str, Any]) -> int:
    version = content.get("version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        found = repr(version) if "version" in content else "none"
        raise UserError(f"{path}: version", f"expected a whole number from 1 up, found {found}", "add `version: 1`")
    return version


def _share(where: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise UserError(where, f"expected a number from 0 to 1, found {value!r}", "mend it")
    return float(value)


def _entries(where: str, value: Any, rule: Entries) -> tuple[Entry, ...]:
    if not isinstance(value, list) or not value:
        raise UserError(where, "expected a list of at least one style", "add one")
    met: dict[Entry, int] = {}
    for number, item in enumerate(value, 1):
        entry = _entry(f"{where}, style {number}", item, rule)
        if entry in met:
            raise UserError(f"{where}, style {number}", f"the same as style {met[entry]}", "remove one of the two")
        met[entry] = number
    return tuple(met)


def _entry(where: str, item: Any, rule: Entries) -> Entry:
    parts = rule.parts
    texts = [item] if len(parts) == 1 else item
    if not isinstance(texts, list) or len(texts) != len(parts) or not all(isinstance(text, str) for text in texts):
        expected = "a string" if len(parts) == 1 else f"a list of {len(parts)} strings"
        raise UserError(where, f"expected {expected}, found {str(item)[:60]!r}", "put it in quotes")
    for part, text in zip(parts, texts, strict=True):
        if fault := part.fault(text):
            raise UserError(where, fault, "mend the style")
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise UserError(where, "half of a surrogate pair, which no text can hold", "write the character itself")
    return tuple(texts)


def _refuse_unknown(path: Path, content: Mapping[str, Any], legal: set[str]) -> None:
    for key in content:
        if key not in legal:
            raise UserError(f"{path}: {key}", "there is no such list", nearest(str(key), legal))


def _fingerprint(lists: Mapping[str, tuple[Entry, ...]], shares: Mapping[str, float]) -> str:
    content = json.dumps([sorted(lists.items()), sorted(shares.items())], ensure_ascii=False)
    return xxhash.xxh3_64_hexdigest(content.encode())[:8]

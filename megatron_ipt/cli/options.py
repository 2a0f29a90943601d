"""Command-line options made from a settings model: one name, default, unit and help text for file and flag."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import orjson
import typer
import yaml
from pydantic import ValidationError
from pydantic_core import PydanticUndefined
from rich.markup import escape

from data_prep.errors import UserError
from data_prep.settings import Settings


def settings_options(model: type[Settings], *leave_out: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorate a verb `f(..., settings: model)`: `settings` becomes one option a field of `model`.

    Fields in `leave_out` keep their defaults.  A table is given as JSON, or as a YAML or JSON file.  A value that the
    model refuses is a UserError naming the option.
    """
    names = [name for name in model.model_fields if name not in leave_out]
    hints = get_type_hints(model)

    def decorate(verb: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(verb)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            values = {name: kwargs.pop(name) for name in names}
            values |= {name: _table(_flag(name), values[name]) for name in names if _is_table(hints[name])}
            return verb(*args, settings=_validated(model, values), **kwargs)

        own = inspect.signature(verb, eval_str=True)
        kept = [parameter for name, parameter in own.parameters.items() if name != "settings"]
        options = [_option(model, name, hints[name]) for name in names]
        wrapper.__signature__ = own.replace(parameters=[*kept, *options])  # type: ignore[attr-defined]
        wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in [*kept, *options]}
        return wrapper

    return decorate


def _option(model: type[Settings], name: str, hint: Any) -> inspect.Parameter:
    field = model.model_fields[name]
    default = None if field.default is PydanticUndefined else field.default
    if get_origin(hint) is tuple:
        hint, default = list[get_args(hint)[0]], list(default or ())  # type: ignore[misc]
    if _is_table(hint):
        hint, default = str | None, None
    flag = _flag(name)
    flags = (f"{flag}/--no-{flag[2:]}",) if bool in (hint, *get_args(hint)) else (flag,)
    description = escape(field.description or "")  # units stand in brackets, which rich would read as markup
    annotation: Any = Annotated[hint, typer.Option(*flags, help=description, rich_help_panel="Settings")]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _is_table(hint: Any) -> bool:
    return get_origin(hint) is dict


def _table(flag: str, given: str | None) -> Any:
    """What an option says that is JSON, or the path of a YAML or JSON file.

    Raises:
        UserError: it is neither, or what it says is no object.
    """
    if given is None:
        return {}
    as_text, path = given.lstrip().startswith(("{", "[")), Path(given)
    mend = """give JSON, as '{"key": 1}', or the path of a YAML or JSON file that says the same"""
    if not as_text and not path.is_file():
        raise UserError(flag, f"{given!r} is neither a JSON object nor a file", mend)
    try:
        found = orjson.loads(given) if as_text else yaml.safe_load(path.read_bytes())
    except (ValueError, yaml.YAMLError) as error:
        raise UserError(flag, f"{given!r} cannot be read: {error}", mend) from error
    if not isinstance(found, dict):
        raise UserError(flag, f"{given!r} holds no object, but {found!r}", mend)
    return found


def _validated(model: type[Settings], values: dict[str, Any]) -> Settings:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        flag = _flag(str(first["loc"][0])) if first["loc"] else model.__name__
        raise UserError(flag, f"{first['input']!r}: {first['msg']}") from error


def rows_of(model: type[Settings], prefix: str) -> list[tuple[str, str, str]]:
    """(dotted key, default, meaning with its unit) of every setting of `model`, for a table."""
    rows = []
    for name, field in model.model_fields.items():
        default = "required" if field.is_required() else "" if field.default is None else str(field.default)
        rows.append((f"{prefix}.{name}", default, escape(field.description or "")))
    return rows

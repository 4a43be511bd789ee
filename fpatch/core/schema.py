"""Conversion between frozen dataclasses of settings and JSON values, with type hints as the schema."""

import dataclasses
import datetime
import json
import math
import re
import types
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from fpatch.core.checks import nearest, shown
from fpatch.core.errors import Errors
from fpatch.core.names import show
from fpatch.core.text import Real, Whole
from fpatch.core.types import Range

OMIT_EMPTY = {"omit_empty": True}
"""The metadata of a field that is written only if it holds something."""


def encode(value: Any) -> Any:
    """Encode settings as dicts, lists, strings, numbers, booleans and None.

    A live object becomes `{"live": "module:Type"}`; the config alone cannot rebuild it.

    Example:
        >>> import torch
        >>> from fpatch import Range
        >>> from fpatch.core.schema import encode
        >>> encode({"stops": Range(-1.0, 1.0), "model": torch.nn.Identity()})
        {'stops': [-1.0, 1.0], 'model': {'live': 'torch.nn.modules.linear:Identity'}}
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        given = {f: getattr(value, f.name) for f in dataclasses.fields(value)}
        return {f.name: encode(v) for f, v in given.items() if not f.metadata.get("omit_empty") or v}
    if isinstance(value, Mapping):
        return {str(k): encode(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [encode(v) for v in value]
    if isinstance(value, (set, frozenset)):
        return sorted(encode(v) for v in value)
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    kind = value if hasattr(value, "__qualname__") else type(value)
    return {"live": f"{kind.__module__}:{kind.__qualname__}"}


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten a nested config; names are joined by dots.

    Example:
        >>> from fpatch.core.schema import flatten
        >>> flatten({"train": {"num_steps": 20}, "seed": 0})
        {'train.num_steps': 20, 'seed': 0}
    """
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def to_toml(config: Mapping[str, Any]) -> str:
    """Write a config of JSON values as TOML; `decode` reads the same config from it.

    TOML has no null: None becomes false.

    Example:
        >>> from fpatch.core.schema import to_toml
        >>> print(to_toml({"seed": 0, "train": {"num_steps": 20}}), end="")
        seed = 0
        <BLANKLINE>
        [train]
        num_steps = 20
    """
    return "\n".join(_toml_lines(config, ())) + "\n"


def _toml_lines(table: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    inner = {n: v for n, v in table.items() if isinstance(v, Mapping) and v and len(path) < 2}
    for name, value in table.items():
        if name not in inner:
            yield f"{_toml_key(name)} = {_toml_value(value)}"
    for name, value in inner.items():
        yield f"\n[{'.'.join(map(_toml_key, (*path, name)))}]"
        yield from _toml_lines(value, (*path, name))


def _toml_key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _toml_string(name)


def _toml_value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_toml_key(n)} = {_toml_value(v)}" for n, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml_value, value)) + "]"
    if value is None:
        return "false"
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else str(value)
    return _toml_string(value) if isinstance(value, str) else json.dumps(value)


def _toml_string(value: str) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return "".join(c if show(c) == c else f"\\U{ord(c):08x}" for c in text)  # JSON escapes fewer of them


def decode(kind: Any, value: Any, where: str) -> Any:
    """Decode a value of a TOML or JSON file, checked against a type; the inverse of `encode`.

    Args:
        kind: A frozen dataclass, Range, tuple, dict, Literal, union, or a plain type.
        value: The value.
        where: Its dotted name, for errors.

    Raises:
        ValueError: If the value does not fit the type. The message has the dotted name, the expected type and
            the value; for an unknown key, the nearest known one. A line for each wrong setting of a table.

    Example:
        >>> from fpatch import Range
        >>> from fpatch.core.schema import decode
        >>> decode(Range, [-1, 1], "exposure.stops")
        Range(low=-1.0, high=1.0)
        >>> decode(int, "3", "train.num_steps")
        Traceback (most recent call last):
        ValueError: train.num_steps: expected a whole number, got '3'
    """
    if kind is Any or (isinstance(kind, type) and isinstance(value, kind) and kind not in (int, float)):
        return value
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _decode_dataclass(kind, value, where)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return _decode_union(arguments, value, where)
    if origin is Literal and value in arguments:
        return value
    if kind is Range and isinstance(value, (list, tuple)) and len(value) == 2:
        return Range(decode(float, value[0], f"{where}.low"), decode(float, value[1], f"{where}.high"))
    if kind is Range and isinstance(value, Mapping) and set(value) == {"low", "high"}:
        return Range(
            decode(float, value["low"], f"{where}.low"), decode(float, value["high"], f"{where}.high")
        )
    if origin is tuple and isinstance(value, (list, tuple)):
        items = (arguments[0],) * len(value) if arguments[-1] is Ellipsis else arguments
        if len(items) == len(value):
            return tuple(
                decode(k, v, f"{where}[{i}]") for i, (k, v) in enumerate(zip(items, value, strict=True))
            )
    if origin is list and isinstance(value, list):
        return [decode(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value)]
    if origin in (dict, Mapping) and isinstance(value, Mapping):
        return {
            decode(arguments[0], k, where): decode(arguments[1], v, f"{where}.{k}") for k, v in value.items()
        }
    if kind in (int, float) and isinstance(value, int | float) and not isinstance(value, bool):
        with suppress(OverflowError):  # of a whole number beyond all floats
            if kind is float:
                return float(value)
            if isinstance(value, int) or (isinstance(value, Real) and value % 1 == 0):
                return int(value)
    if kind is str and isinstance(value, Whole | Real):
        return value.text  # typed in an option
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind in (None, type(None)) and value is None:
        return None
    raise ValueError(f"{where}: expected {_expected(kind)}, got {shown(value)}{_quoted(kind, value)}")


def _quoted(kind: Any, value: Any) -> str:
    """Return the way out for a number, a date or a truth value in the place of a string."""
    plain = isinstance(value, int | float | datetime.date | datetime.time)
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return f'; write it in quotes: "{text}"' if kind is str and plain and len(text) < 40 else ""


def _decode_dataclass(kind: type, value: Any, where: str) -> Any:
    if not isinstance(value, Mapping):
        raise ValueError(f"{where}: expected a table of settings, got {shown(value)}")
    hints = get_type_hints(kind)
    fields, errors = {f.name: f for f in dataclasses.fields(kind) if f.init}, Errors()
    for key in value:
        if key not in fields:
            errors.add(f"{where}: unknown key {key!r}; {nearest(key, fields)}")
    for name, field in fields.items():
        if not _is_optional(field) and name not in value:
            errors.add(f"{where}: the key {name!r} is required; add it ({_expected(hints[name])})")
    decoded: dict[str, Any] = {}
    for key in (key for key in value if key in fields):
        with errors.caught():
            decoded[key] = _decode_field(fields[key], hints[key], value[key], f"{where}.{key}")
    errors.raise_all()
    return _make(kind, decoded, fields, where)


def _make(kind: type, settings: Mapping[str, Any], fields: Mapping[str, Any], where: str) -> Any:
    """Make a dataclass; settings that it refuses are left out and the rest is tried, to say all errors."""
    errors, left = Errors(), dict(settings)
    while True:
        try:
            made = kind(**left)
        except ValueError as error:
            with errors.caught(where):
                raise
            named = {n for n in left if re.search(rf"(\(|\.){n}\b", str(error)) and _is_optional(fields[n])}
            left = {n: value for n, value in left.items() if n not in named}
            if named:
                continue
        errors.raise_all()
        return made


def _is_optional(field: dataclasses.Field[Any]) -> bool:
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING


def _decode_field(field: dataclasses.Field[Any], kind: Any, value: Any, where: str) -> Any:
    """Decode a setting; the form that its field may name is what an error expects."""
    try:
        return decode(kind, value, where)
    except ValueError as error:
        if "form" not in field.metadata:
            raise
        form = field.metadata["form"]
        raise ValueError(f"{where}: expected {form}, each a whole number, got {shown(value)}") from error


def _decode_union(options: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is False and type(None) in options and bool not in options:
        return None  # TOML has no null
    errors = []
    for option in options:
        try:
            return decode(option, value, where)
        except ValueError as error:
            errors.append(str(error))
    deepest = [e for e in errors if not e.startswith(f"{where}: expected")]
    if deepest:
        raise ValueError(deepest[0])
    raise ValueError(f"{where}: expected {' or '.join(map(_expected, options))}, got {shown(value)}")


def _expected(kind: Any) -> str:
    if kind is Range:
        return "[low, high]"
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(map(repr, get_args(kind)))
    if get_origin(kind) in (Union, types.UnionType):
        return " or ".join(map(_expected, get_args(kind)))
    if get_origin(kind) is tuple:
        each = [_expected(item) for item in get_args(kind) if item is not Ellipsis]
        return f"a list, each {each[0]}" if Ellipsis in get_args(kind) else f"[{', '.join(each)}]"
    if get_origin(kind) is list:
        return f"a list, each {_expected(get_args(kind)[0])}"
    if get_origin(kind) in (dict, Mapping):
        return f"a table, each value {_expected(get_args(kind)[1])}"
    if dataclasses.is_dataclass(kind):
        return "a table of settings"
    return "nothing" if kind in (None, type(None)) else _WORDS.get(kind, "an object")


_WORDS = {float: "a number", int: "a whole number", str: "a string", bool: "true or false", Path: "a path"}

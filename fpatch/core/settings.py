"""Settings given in Python: pairs and lists as their fields store them, plain values by their types."""

import functools
import inspect
import types
import typing
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any, TypeVar, Union, cast, get_args, get_origin

import numpy as np
from torch import Tensor

from fpatch.core.checks import shown, suggest_keyword
from fpatch.core.schema import decode
from fpatch.core.types import Range

T = TypeVar("T")

_PLAIN = (int, float, str, bool, Range, type(None))


def checked_settings(kind: type[T]) -> type[T]:
    """Decorate a dataclass so that a wrong keyword or type in Python is an error that names the setting.

    Example:
        >>> import fpatch
        >>> fpatch.Optimizer(learning_rat=0.1)
        Traceback (most recent call last):
        TypeError: Optimizer: no keyword 'learning_rat'; did you mean 'learning_rate'?
        >>> fpatch.Optimizer(learning_rate="fast")
        Traceback (most recent call last):
        ValueError: Optimizer(learning_rate): expected a number, got 'fast'
    """
    make = suggest_keyword(kind.__init__)

    @functools.wraps(make)
    def checked(self: Any, *args: Any, **given: Any) -> None:
        hints, names = type_hints(kind), list(inspect.signature(kind).parameters)
        named = dict(zip(names, args, strict=False))
        settled = {n: settle(hints.get(n), v, f"{kind.__name__}({n})") for n, v in {**named, **given}.items()}
        if len(args) > len(names) or named.keys() & given.keys():
            make(self, *args, **given)  # which raises Python's error
        make(self, **settled)

    kind.__init__ = checked
    return kind


@functools.cache
def type_hints(config: Any) -> dict[str, Any]:
    """The types of the settings; none where a name of them is for type checkers alone."""
    try:
        return typing.get_type_hints(config)
    except NameError:
        return {}


def settle(hint: Any, value: Any, field: str) -> Any:
    """Convert a value to the immutable form of its type, and check it where the type is plain.

    A pair of numbers becomes a `Range`, and the list of a sequence a tuple. Numbers of any library, tensors
    and objects pass; their stage checks them.

    Args:
        hint: The declared type.
        value: The value.
        field: Its name, for errors.

    Raises:
        ValueError: If a range is given by something else than two numbers, or a plain value has another type.

    Example:
        >>> from fpatch import Range
        >>> from fpatch.core.settings import settle
        >>> settle(Range, [0, 1], "blur(sigma_px)")
        Range(low=0, high=1)
        >>> settle(int, "many", "blur(taps)")
        Traceback (most recent call last):
        ValueError: blur(taps): expected a whole number, got 'many'
    """
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    if Range in options and isinstance(value, (tuple, list, Mapping, np.ndarray, Tensor)):
        return value if isinstance(value, Range) and _are_numbers(value) else _to_range(value, field)
    for option in options:
        origin, inner = get_origin(option), get_args(option)
        if origin is tuple and isinstance(value, (tuple, list)):
            kinds = (inner[0],) * len(value) if inner[-1] is Ellipsis else inner
            if len(kinds) == len(value):
                return tuple(settle(k, v, field) for k, v in zip(kinds, value, strict=True))
        if origin in (dict, Mapping) and isinstance(value, Mapping) and len(inner) == 2 and inner[1] != Any:
            return {k: settle(inner[1], v, field) for k, v in value.items()}
    if isinstance(value, Path) and str in options:
        return str(value)
    is_tuple = any(get_origin(o) is tuple and str in get_args(o) for o in options)
    if isinstance(value, str) and is_tuple and str not in options:
        raise ValueError(f"{field} must be a tuple of names, got {shown(value)}; write ({shown(value)},)")
    if not _may_be(options, value):
        decode(hint, value, field)
    if int in options and float not in options and isinstance(value, Real) and not isinstance(value, bool):
        if not isinstance(value, Integral) and float(value) % 1 != 0:
            raise ValueError(f"{field}: expected a whole number, got {value}")
        return int(cast(Any, value))
    return value


def _are_numbers(values: Sequence[Any]) -> bool:
    return all(isinstance(value, Real) for value in values)


def _to_range(value: Any, field: str) -> Range:
    """Return the range that a pair, an array of two or a table of `low` and `high` gives."""
    pair = value.tolist() if isinstance(value, np.ndarray | Tensor) else value
    if isinstance(pair, Mapping) and pair.keys() == {"low", "high"}:
        pair = (pair["low"], pair["high"])
    if not isinstance(pair, tuple | list) or len(pair) != 2 or not _are_numbers(pair):
        raise ValueError(f"{field} must be two numbers (low, high), got {shown(value)}")
    return Range(*pair)


def _may_be(options: tuple[Any, ...], value: Any) -> bool:
    """Return whether a value may have one of the types, or whether that is for its stage to say."""
    if not all(o in _PLAIN or get_origin(o) in (tuple, dict, Mapping) for o in options):
        return True
    if any(get_origin(o) in (dict, Mapping) for o in options) and isinstance(value, Mapping):
        return True
    if isinstance(value, Tensor):
        return value.ndim == 0
    if isinstance(value, (tuple, list)) and any(get_origin(o) is tuple for o in options):
        return True
    return isinstance(value, Real) and any(o in (int, float, Range) for o in options)

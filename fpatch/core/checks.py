"""Checks of settings; an error names the field, the rule, the value and the way out."""

import datetime
import difflib
import functools
import inspect
from collections.abc import Callable, Iterable
from numbers import Integral, Real
from typing import Any, TypeVar, cast

from fpatch.core.types import Range

F = TypeVar("F", bound=Callable[..., Any])


def nearest(name: str, options: Iterable[str], count: int = 1) -> str:
    """Suggest known names for an unknown one, as the end of an error message.

    Args:
        name: The unknown name.
        options: The known names.
        count: The largest number of similar names to suggest; without a similar one, all are listed.

    Example:
        >>> from fpatch.core.checks import nearest
        >>> nearest("expsure", ["exposure", "blur"])
        "did you mean 'exposure'?"
        >>> nearest("noise", ["exposure", "blur"])
        'known: blur, exposure'
    """
    options = sorted(map(str, options))
    if len(name := str(name)) > _LONGEST_NAME:
        return "it is too long for a name"
    if close := difflib.get_close_matches(name, options, n=count, cutoff=0.6):
        return f"did you mean {' or '.join(map(repr, close))}?"
    if len(options) > _MOST_NAMES:
        return f"known: {', '.join(options[:_MOST_NAMES])} and {len(options) - _MOST_NAMES} more"
    return f"known: {', '.join(options)}" if options else "none is known"


def suggest_keyword(function: F) -> F:
    """Decorate a function so that a call with an unknown keyword names the nearest one.

    Example:
        >>> from fpatch.core.checks import suggest_keyword
        >>> @suggest_keyword
        ... def dim(gain=0.5): ...
        >>> dim(gian=1.0)
        Traceback (most recent call last):
        TypeError: dim: no keyword 'gian'; did you mean 'gain'?
    """
    known = inspect.signature(function).parameters
    name = function.__qualname__.removesuffix(".__init__").rpartition(".")[2]

    @functools.wraps(function)
    def checked(*args: Any, **keywords: Any) -> Any:
        for keyword in keywords:
            if keyword not in known:
                options = [name for name in known if name != "self"]
                raise TypeError(f"{name}: no keyword {keyword!r}; {nearest(keyword, options)}")
        return function(*args, **keywords)

    return cast(F, checked)


def check_kind(field: str, value: object, kind: type | tuple[type, ...], way_out: str) -> None:
    """Check that an argument is an object of a class.

    Raises:
        ValueError: If it is not; the message names the argument, the class of the value and the way out.

    Example:
        >>> from fpatch.core.checks import check_kind
        >>> check_kind("train(study)", "study.toml", dict, "load it by load_study")
        Traceback (most recent call last):
        ValueError: train(study) must be a dict, got a str; load it by load_study
    """
    if not isinstance(value, kind):
        named = " or ".join(_an(k.__name__) for k in (kind if isinstance(kind, tuple) else (kind,)))
        raise ValueError(f"{field} must be {named}, got {_an(type(value).__name__)}; {way_out}")


def _an(name: str) -> str:
    return f"{'an' if name[0] in 'AEIOaeio' else 'a'} {name}"


_LONGEST_NAME, _MOST_NAMES = 300, 40


def shown(value: object, most: int = 120) -> str:
    """Return a value as an error shows it: cut if it is long, dates as TOML writes them.

    Example:
        >>> from fpatch.core.checks import shown
        >>> shown("x" * 1000, 12)
        "'xxxxxxxx..."
        >>> from datetime import date
        >>> shown([date(2026, 1, 1)])
        '[2026-01-01]'
    """
    try:
        text = repr(_dated(value))
    except (RecursionError, ValueError):  # nested too deeply, or of too many digits
        return f"a long {'number' if isinstance(value, int) else 'list or table'}"
    return text if len(text) <= most else f"{text[: most - 3]}..."


class _Date(str):
    """A date, without quotes."""

    __slots__ = ()
    __repr__ = str.__str__


def _dated(value: Any) -> Any:
    """Return a value with each date as text, also in lists and tables."""
    if isinstance(value, datetime.date | datetime.time):
        return _Date(value.isoformat())
    if type(value) in (list, tuple):
        return type(value)(map(_dated, value))
    return {key: _dated(item) for key, item in value.items()} if type(value) is dict else value


def check_range(
    field: str, value: Range | tuple[float, float], low: float = float("-inf"), high: float = float("inf")
) -> None:
    """Check that a range is finite and that `low <= value.low <= value.high <= high`.

    Raises:
        ValueError: If it is not; the message names the field, the rule and the value.

    Example:
        >>> from fpatch.core.checks import check_range
        >>> check_range("rect(scale)", (1.5, 0.5))
        Traceback (most recent call last):
        ValueError: rect(scale) must be (low, high) with low <= high, got (1.5, 0.5); swap the two
    """
    if isinstance(value, (int, float)):
        raise ValueError(f"{field} must be (low, high), got {value!r}; for one value, give it twice")
    if not all(isinstance(end, Real) for end in value):
        raise ValueError(f"{field} must be two numbers (low, high), got {tuple(value)}")
    infinite = float("inf") in map(abs, value)
    if len(value) != 2 or not low <= value[0] <= value[1] <= high or infinite:
        bounds = "" if (low, high) == (float("-inf"), float("inf")) else f" within [{low:g}, {high:g}]"
        bounds += ", both finite" if infinite else ""
        swap = "; swap the two" if len(value) == 2 and low <= value[1] < value[0] <= high else ""
        raise ValueError(f"{field} must be (low, high) with low <= high{bounds}, got {tuple(value)}{swap}")


def check_number(field: str, value: float, low: float, high: float = float("inf")) -> None:
    """Check that a number is finite and within [low, high].

    Raises:
        ValueError: If it is not; the message names the field, the rule and the value.

    Example:
        >>> from fpatch.core.checks import check_number
        >>> check_number("jpeg(quality)", 101, 1, 100)
        Traceback (most recent call last):
        ValueError: jpeg(quality) must be between 1 and 100, got 101
    """
    if not isinstance(value, Real):
        raise ValueError(f"{field} must be a number, got {shown(value)}")
    if not low <= value <= high or value == float("inf"):
        ends = f"{low:g}", f"{high:.0f}" if high >= 1e6 and high % 1 == 0 and high < 1e18 else f"{high:g}"
        rule = f"between {' and '.join(ends)}" if high < float("inf") else f"at least {low:g}"
        rule = "finite" if value == high == float("inf") else rule
        raise ValueError(f"{field} must be {rule}, got {value!r}")


MOST = 10**9
"""The largest count of anything that a setting asks for, unless the setting has a smaller one."""


def check_count(field: str, value: int, low: int = 1, high: int = MOST) -> None:
    """Check that a count is within [low, high], so that no typing error fills the memory.

    Raises:
        ValueError: If it is not; the message names the field, the rule and the value.

    Example:
        >>> from fpatch.core.checks import check_count
        >>> check_count("train.batch_size", 10**18, high=10**6)
        Traceback (most recent call last):
        ValueError: train.batch_size must be between 1 and 1000000, got 1000000000000000000
    """
    if not isinstance(value, Integral):
        raise ValueError(f"{field} must be a whole number, got {shown(value)}")
    if low <= value <= high:
        return
    rule = f"at least {low}" if value < low else f"between {low} and {high}"
    got = f"{value}" if abs(value) < 10**30 else f"a number of {len(str(abs(value)))} digits"
    raise ValueError(f"{field} must be {rule}, got {got}")


def check_choice(field: str, value: object, options: tuple[object, ...]) -> None:
    """Check that a value is one of the given options.

    Raises:
        ValueError: If it is not; the message names the field, the options and the value.

    Example:
        >>> from fpatch.core.checks import check_choice
        >>> check_choice("norm", "l3", ("l1", "l2"))
        Traceback (most recent call last):
        ValueError: norm must be 'l1' or 'l2', got 'l3'
    """
    if value not in options:
        raise ValueError(f"{field} must be {' or '.join(map(repr, options))}, got {value!r}")


def check_class(field: str, value: int | str) -> None:
    """Check that a setting is a class: its name, or its number from 0 on.

    Raises:
        ValueError: If it is not; the message names the field, the rule and the value.

    Example:
        >>> from fpatch.core.checks import check_class
        >>> check_class("misclassify(target)", "stop")
        >>> check_class("misclassify(target)", 1.5)
        Traceback (most recent call last):
        ValueError: misclassify(target) must be the name or the number of a class, got 1.5
    """
    if isinstance(value, Integral) and not isinstance(value, bool):
        check_number(field, int(value), 0)
    elif not isinstance(value, str) or not value:
        raise ValueError(f"{field} must be the name or the number of a class, got {value!r}")


def check_label(field: str, label: int | str | None, num_classes: int) -> int:
    """Return the number of a class, and refuse one that the victim lacks.

    Raises:
        ValueError: With the field and the value.

    Example:
        >>> from fpatch.core.checks import check_label
        >>> check_label("misclassify(target)", 7, 5)
        Traceback (most recent call last):
        ValueError: misclassify(target) is 7, but the victim has 5 classes, 0 to 4; labels are the victim's...
    """
    assert not isinstance(label, str | None), "a stage runs with numbers of classes"
    if not 0 <= label < num_classes:
        raise ValueError(
            f"{field} is {label}, but the victim has {num_classes} classes, 0 to {num_classes - 1}; labels "
            "are the victim's own numbers"
        )
    return int(label)

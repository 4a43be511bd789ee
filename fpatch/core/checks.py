"""Sentences for errors: the field, the rule, the value and the way out."""

import difflib
from collections.abc import Iterable

from fpatch.core.types import Range


def nearest(name: str, options: Iterable[str], count: int = 1) -> str:
    """The end of an error about an unknown name: the nearest known ones, at most `count`, or all of them."""
    options = sorted(map(str, options))
    if close := difflib.get_close_matches(str(name), options, n=count, cutoff=0.6):
        return f"did you mean {' or '.join(map(repr, close))}?"
    return f"known: {', '.join(options)}" if options else "there is none"


def check_range(field: str, value: Range, low: float = float("-inf"), high: float = float("inf")) -> None:
    """Refuse a range that is not `low <= value.low <= value.high <= high`, and infinity.

    Raises:
        ValueError: With the field, the rule and the value.
    """
    if isinstance(value, (int, float)):
        raise ValueError(f"{field} must be (low, high), got {value!r}; for one value, give it twice")
    infinite = float("inf") in map(abs, value)
    if len(value) != 2 or not low <= value[0] <= value[1] <= high or infinite:
        bounds = "" if (low, high) == (float("-inf"), float("inf")) else f" within [{low:g}, {high:g}]"
        bounds += ", both finite" if infinite else ""
        swap = "; swap the two" if len(value) == 2 and low <= value[1] < value[0] <= high else ""
        raise ValueError(f"{field} must be (low, high) with low <= high{bounds}, got {tuple(value)}{swap}")


def check_number(field: str, value: float, low: float, high: float = float("inf")) -> None:
    """Refuse a number outside [low, high], NaN and infinity.

    Raises:
        ValueError: With the field, the rule and the value.
    """
    if not low <= value <= high or value == float("inf"):
        rule = f"between {low:g} and {high:g}" if high < float("inf") else f"at least {low:g}"
        rule = "finite" if value == high == float("inf") else rule
        raise ValueError(f"{field} must be {rule}, got {value!r}")


def check_choice(field: str, value: object, options: tuple[object, ...]) -> None:
    """Refuse what is none of a few values.

    Raises:
        ValueError: With the field, the values and what was given.
    """
    if value not in options:
        raise ValueError(f"{field} must be {' or '.join(map(repr, options))}, got {value!r}")

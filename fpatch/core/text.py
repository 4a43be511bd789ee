"""The one reader of numbers and values that a person types, in options and tables."""

import datetime
import math
import re
from typing import Any

from fpatch.core.inputs import parse_toml

_DIGITS = r"\d+(?:_\d+)*"
_NUMBER = re.compile(rf"[+-]?(?:{_DIGITS}(?:\.(?:{_DIGITS})?)?|\.{_DIGITS})(?:[eE][+-]?\d+)?", re.ASCII)
_BARE = re.compile(rf"(?<![\w.\"'])([+-]?)(\.{_DIGITS}|{_DIGITS}\.(?!\d))", re.ASCII)
_LONGEST = 400  # characters of a number; a float has 309 digits before the point at most


class Whole(int):
    """A whole number with the text that was typed, which a setting of text takes.

    Attributes:
        text: The text.
    """

    text: str

    def __new__(cls, value: int, text: str = "") -> "Whole":
        """Make the number."""
        made = super().__new__(cls, value)
        made.text = text
        return made


class Real(float):
    """A number with the text that was typed, which a setting of text takes.

    Attributes:
        text: The text.
    """

    text: str

    def __new__(cls, value: float, text: str = "") -> "Real":
        """Make the number."""
        made = super().__new__(cls, value)
        made.text = text
        return made


def read_number(field: str, text: str) -> float:
    """Read a finite number, such as 12, -0.5, .1, 1e3 or 1_000.

    Raises:
        ValueError: If the text is none; the message names the field and the text.

    Example:
        >>> from fpatch.core.text import read_number
        >>> read_number("--score", ".1"), read_number("--score", "1_000")
        (0.1, 1000.0)
        >>> read_number("--score", "half")
        Traceback (most recent call last):
        ValueError: --score must be a finite number such as 12.5, got 'half'
    """
    text = text.strip()
    value = float(text) if len(text) <= _LONGEST and _NUMBER.fullmatch(text) else math.nan
    if not math.isfinite(value):
        raise ValueError(f"{field} must be a finite number such as 12.5, got {text!r:.80}")
    return value


def read_whole(field: str, text: str, low: int | None = None) -> int:
    """Read a whole number, such as 12, -3, 1e3 or 1_000.

    Args:
        field: The name of the option, for errors.
        text: The text.
        low: The smallest allowed number.

    Raises:
        ValueError: If the text is none, or the number is too small.

    Example:
        >>> from fpatch.core.text import read_whole
        >>> read_whole("--rows", "1e3")
        1000
        >>> read_whole("--rows", "1.5")
        Traceback (most recent call last):
        ValueError: --rows must be a whole number such as 12, got '1.5'
    """
    try:
        value = read_number(field, text)
    except ValueError:
        value = math.nan
    if math.isnan(value) or value % 1 or (low is not None and value < low):
        least = "" if low is None else f" from {low}"
        raise ValueError(f"{field} must be a whole number{least} such as 12, got {text.strip()!r:.80}")
    return int(text) if re.fullmatch(rf"\s*[+-]?{_DIGITS}\s*", text, re.ASCII) else int(value)


def read_value(text: str) -> Any:
    """Read the value of a setting as in TOML; what is no TOML is text.

    Numbers may also be written as .1, 1. and 1e3; they keep their text, for a setting of text. A date is
    text.

    Example:
        >>> from fpatch.core.text import read_value
        >>> [read_value(text) for text in (".1", "[.5, 1e3]", "true", "adam", "2026-01-01")]
        [0.1, [0.5, 1000.0], True, 'adam', '2026-01-01']
    """
    stripped = text.strip()
    if len(stripped) <= _LONGEST and _NUMBER.fullmatch(stripped):
        if re.fullmatch(rf"[+-]?{_DIGITS}", stripped, re.ASCII):
            return Whole(int(stripped), stripped)
        return Real(float(stripped), stripped)
    for given in (text, _BARE.sub(_whole_part, text)):
        try:
            read = parse_toml(f"value = {given}")
        except ValueError:
            continue
        value = read["value"] if len(read) == 1 else text
        if isinstance(value, bool) or not isinstance(value, int | float):
            return stripped if isinstance(value, datetime.date | datetime.time) else value
        return Whole(value, stripped) if isinstance(value, int) else Real(value, stripped)
    return text


def _whole_part(found: re.Match[str]) -> str:
    sign, digits = found.groups()
    return f"{sign}0{digits}" if digits.startswith(".") else f"{sign}{digits}0"

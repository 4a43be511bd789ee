"""Read a search space from Python values or TOML, and encode it as JSON values.

A scalar is fixed. (low, high), (low, high, "log"), (low, high, "int") and (low, high, "log", "int") are
intervals. A list in Python, `{choices = [...]}` in TOML, is a choice. `when` makes a setting conditional.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from fpatch.core.checks import nearest, shown
from fpatch.tune.search.space import Choice, Interval, Space, SpaceError, Varied

_INTERVAL = ("low", "high", "scale", "type", "when")
_CHOICE = ("choices", "when")
_MARKS = ("log", "int")


def parse_space(raw: Mapping[str, Any], *, toml: bool = False) -> Space:
    """Read a search space.

    Args:
        raw: By dotted name or nested: a scalar, a tuple (low, high, "log", "int"), a list of choices, or a
            table {low, high, scale="log", type="int", when} or {choices, when}. `weights.NAME` is short for
            `objective.weights.NAME`.
        toml: Whether `raw` comes from TOML, where a bare list is ambiguous and refused.

    Raises:
        SpaceError: If `raw` is malformed; the message gives the name, the rule, the value and the way out.

    Example:
        >>> from fpatch.tune import parse_space
        >>> space = parse_space({"optimizer": {"learning_rate": (0.02, 0.4, "log"), "name": ["adam", "bim"]}})
        >>> space.varied["optimizer.learning_rate"]
        Interval(low=0.02, high=0.4, log=True, integer=False)
        >>> space.varied["optimizer.name"]
        Choice(options=('adam', 'bim'))
    """
    fixed: dict[str, Any] = {}
    varied: dict[str, Varied] = {}
    when: dict[str, Mapping[str, tuple[Any, ...]]] = {}
    for given, value in _leaves(raw):
        name = _full(given)
        if name in fixed or name in varied:
            raise SpaceError(f"space.{given}: {name} is given twice; leave one out")
        if isinstance(value, Mapping):
            varied[name] = _read_table(given, value)
            if "when" in value:
                when[name] = _read_when(given, value["when"], fixed, varied)
        elif isinstance(value, tuple) and not toml:
            varied[name] = _read_tuple(given, value)
        elif isinstance(value, list | tuple):
            if toml:
                raise SpaceError(_ambiguous(given, value))
            varied[name] = _read_choices(given, value)
        elif isinstance(value, bool | int | float | str):
            fixed[name] = value
        else:
            raise SpaceError(
                f"space.{given}: expected a scalar, an interval or choices, got {shown(value)}; "
                "give (low, high), a list, or one number, string or bool"
            )
    if not varied:
        raise SpaceError("space: no setting varies; give at least one interval or choice")
    return Space(fixed, varied, when)


def encode_space(space: Space) -> dict[str, Any]:
    """Return JSON values from which `parse_space` makes the same space."""
    made: dict[str, Any] = dict(space.fixed)
    for name, kind in space.varied.items():
        if isinstance(kind, Choice):
            made[name] = {"choices": list(kind.options)}
        else:
            made[name] = {"low": kind.low, "high": kind.high}
            made[name] |= {"scale": "log"} if kind.log else {}
            made[name] |= {"type": "int"} if kind.integer else {}
        if name in space.when:
            made[name]["when"] = {parent: list(values) for parent, values in space.when[name].items()}
    return made


def _full(name: str) -> str:
    return f"objective.{name}" if name.startswith("weights.") else name


def _leaves(raw: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted names and the interval, choice or scalar of each."""
    for name, value in raw.items():
        if isinstance(value, Mapping) and not _describes_values(value):
            if not value:
                raise SpaceError(f"space.{prefix}{name}: an empty table; give low and high, or choices")
            if wrong := _OTHERS.intersection(value):
                raise SpaceError(
                    f"space.{prefix}{name}: unknown key {min(wrong)!r}; an interval is "
                    "{low = ..., high = ...}, a choice {choices = [...]}"
                )
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


_OTHERS = frozenset(("min", "max", "lower", "upper", "values", "options"))
"""Names of ends and choices in other programs; no setting has one of them."""


def _describes_values(table: Mapping[str, Any]) -> bool:
    ends = [table[end] for end in ("low", "high") if end in table]
    return "choices" in table or any(not isinstance(end, Mapping) for end in ends)


def _read_table(name: str, table: Mapping[str, Any]) -> Varied:
    known = _CHOICE if "choices" in table else _INTERVAL
    for key in table:
        if key not in known:
            raise SpaceError(f"space.{name}: unknown key {key!r}; {nearest(key, known)}")
    if "choices" in table:
        return _read_choices(name, table["choices"])
    for end in ("low", "high"):
        if end not in table:
            raise SpaceError(
                f"space.{name}: {end} is missing in {shown(dict(table))}; give both ends, or quote the whole "
                f"name to fix one end: '{name}.{next(iter(table))}' = {shown(next(iter(table.values())))}"
            )
    marks = []
    for key, mark, other in (("scale", "log", "linear"), ("type", "int", "float")):
        if (value := table.get(key, other)) not in (mark, other):
            raise SpaceError(f"space.{name}.{key} must be {mark!r} or {other!r}, got {shown(value)}")
        marks += [mark] if value == mark else []
    return _read_tuple(name, (table["low"], table["high"], *marks))


def _read_tuple(name: str, value: tuple[Any, ...]) -> Interval:
    ends, marks = value[:2], value[2:]
    if len(ends) < 2 or any(mark not in _MARKS for mark in marks) or len(set(marks)) < len(marks):
        raise SpaceError(
            f"space.{name}: expected (low, high), (low, high, 'log') or (low, high, 'int'), got "
            f"{shown(value)}; a choice is a list"
        )
    for end in ends:
        if isinstance(end, bool) or not isinstance(end, int | float) or not math.isfinite(end):
            raise SpaceError(
                f"space.{name}: low and high must be finite numbers, got {shown(end)} in {shown(value)}"
            )
    low, high = ends
    if not low < high:
        way_out = f"for one value, give {low!r}" if low == high else "swap the two"
        raise SpaceError(f"space.{name}: low must be less than high, got {(low, high)}; {way_out}")
    if "log" in marks and low <= 0:
        raise SpaceError(f"space.{name}: a logarithmic interval must start above 0, got low = {low!r}")
    if "int" in marks and (low != int(low) or high != int(high)):
        raise SpaceError(f"space.{name}: the ends of an integer interval must be integers, got {(low, high)}")
    if "int" in marks:
        return Interval(int(low), int(high), "log" in marks, True)
    return Interval(float(low), float(high), "log" in marks)


def _read_choices(name: str, options: Any) -> Choice:
    if not isinstance(options, list | tuple) or not options:
        raise SpaceError(f"space.{name}: choices must be a list of at least one value, got {shown(options)}")
    for i, option in enumerate(options):
        if not _is_plain(option):
            raise SpaceError(
                f"space.{name}: a choice must be a scalar or a list of scalars, got {shown(option)}; "
                "vary the settings in it by their own names"
            )
        if any(option == other and type(option) is type(other) for other in options[:i]):
            raise SpaceError(f"space.{name}: {shown(option)} occurs twice among the choices; leave one out")
    return Choice(tuple(list(o) if isinstance(o, tuple) else o for o in options))


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value))


def _read_when(
    name: str, when: Any, fixed: Mapping[str, Any], varied: Mapping[str, Varied]
) -> dict[str, tuple[Any, ...]]:
    if not isinstance(when, Mapping) or not when:
        raise SpaceError(
            f"space.{name}.when must be a table such as {{'optimizer.name' = 'sgd'}}, got {shown(when)}"
        )
    found: dict[str, tuple[Any, ...]] = {}
    for given, value in _conditions(when):
        parent = _full(given)
        above = {n: k.options for n, k in varied.items() if isinstance(k, Choice)}
        above |= {n: (v,) for n, v in fixed.items()}
        if parent not in above or parent == _full(name):
            known = [n for n in above if n != _full(name)]
            raise SpaceError(
                f"space.{name}.when: {given!r} must be a choice or scalar above it; {nearest(parent, known)}"
            )
        values = tuple(value) if isinstance(value, list | tuple) else (value,)
        for one in values:
            if one not in above[parent]:
                raise SpaceError(
                    f"space.{name}.when: {parent} cannot be {one!r}; it is one of {list(above[parent])}"
                )
        found[parent] = values
    return found


def _conditions(when: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in when.items():
        if isinstance(value, Mapping):
            yield from _conditions(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _ambiguous(name: str, value: Any) -> str:
    listed = ", ".join(map(shown, value))
    spellings = [f"{{choices = [{listed}]}} for one of these"]
    if len(value) == 2 and all(isinstance(v, int | float) for v in value):
        spellings.insert(0, f"{{low = {shown(value[0])}, high = {shown(value[1])}}} for an interval")
    else:
        spellings.insert(0, "{low = ..., high = ...} for an interval")
    return f"space.{name}: a bare list is ambiguous, got [{listed}]; write {' or '.join(spellings)}"

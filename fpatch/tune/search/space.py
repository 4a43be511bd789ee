"""What a sweep may vary: a setting of the study by dotted name, and the values that it may take.

A scalar is fixed; (low, high), (low, high, "log"), (low, high, "int") and their combination are intervals; a
list in code, `{choices = [...]}` in TOML, is a choice. `when` makes a setting depend on another.
"""

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from fpatch import random
from fpatch.core.checks import nearest

_INTERVAL = ("low", "high", "scale", "type", "when")
_CHOICE = ("choices", "when")
_MARKS = ("log", "int")


class SpaceError(ValueError):
    """A space that nothing can be drawn from."""


@dataclass(frozen=True)
class Interval:
    """A number in [low, high], uniform in itself or in its logarithm; whole numbers only if `integer`."""

    low: float
    high: float
    log: bool = False
    integer: bool = False

    def at(self, unit: float) -> float | int:
        """The value at a place in [0, 1]; integers share it evenly."""
        low, high = (self.low - 0.5, self.high + 0.5) if self.integer else (self.low, self.high)
        if self.log:
            value = math.exp(math.log(low) + unit * (math.log(high) - math.log(low)))
        else:
            value = low + unit * (high - low)
        value = min(max(value, self.low), self.high)
        return round(value) if self.integer else value

    def unit(self, value: float) -> float:
        """The place of a value in [0, 1]."""
        low, high = (self.low - 0.5, self.high + 0.5) if self.integer else (self.low, self.high)
        if self.log:
            return (math.log(value) - math.log(low)) / (math.log(high) - math.log(low))
        return (value - low) / (high - low)

    def points(self, count: int) -> list[float | int]:
        """So many values from low to high, evenly spaced; fewer where there are fewer integers."""
        evenly = np.linspace(0.0, 1.0, count)
        if self.log:
            values = [self.low * (self.high / self.low) ** u for u in evenly]
        else:
            values = [self.low + u * (self.high - self.low) for u in evenly]
        values = [min(max(float(v), self.low), self.high) for v in values]
        return list(dict.fromkeys(round(v) for v in values)) if self.integer else values


@dataclass(frozen=True)
class Choice:
    """One of a few values, which share [0, 1] evenly."""

    options: tuple[Any, ...]

    def at(self, unit: float) -> Any:
        """The value at a place in [0, 1]."""
        return self.options[min(int(unit * len(self.options)), len(self.options) - 1)]

    def unit(self, value: Any) -> float:
        """The middle of a value's part of [0, 1]."""
        return (self.options.index(value) + 0.5) / len(self.options)

    def points(self, count: int) -> list[Any]:
        """All values, however many are asked for."""
        return list(self.options)


Varied = Interval | Choice
Settings = dict[str, Any]
"""Values by dotted name."""


@dataclass(frozen=True)
class Space:
    """What may vary, in the order written.

    Attributes:
        fixed: Values by dotted name, alike in all trials.
        varied: Intervals and choices by dotted name.
        when: For a setting that depends on others: by their names, the values under which it is there.
    """

    fixed: Mapping[str, Any]
    varied: Mapping[str, Varied]
    when: Mapping[str, Mapping[str, tuple[Any, ...]]]

    def active(self, name: str, settings: Mapping[str, Any]) -> bool:
        """Whether a setting is there, given those above it."""
        known = {**self.fixed, **settings}
        return all(parent in known and known[parent] in v for parent, v in self.when.get(name, {}).items())

    def at(self, units: Mapping[str, float]) -> Settings:
        """The settings at places in [0, 1], one for every varied name; what is not active is left out."""
        settings: Settings = {}
        for name, kind in self.varied.items():
            if self.active(name, settings):
                settings[name] = kind.at(units[name])
        return settings

    def draw(self, key: Tensor, count: int) -> list[Settings]:
        """So many independent settings; a name's draws do not depend on the other names."""
        columns = {n: random.uniform(random.fold_in(key, n), (count,)).tolist() for n in self.varied}
        return [self.at({n: column[i] for n, column in columns.items()}) for i in range(count)]

    def grid(self, count: int) -> Iterator[Settings]:
        """Every combination of `count` points of each interval and all choices, the last name fastest."""

        def below(names: tuple[str, ...], settings: Settings) -> Iterator[Settings]:
            if not names:
                yield settings
                return
            name, *rest = names
            if not self.active(name, settings):
                yield from below(tuple(rest), settings)
                return
            for value in self.varied[name].points(count):
                yield from below(tuple(rest), settings | {name: value})

        return below(tuple(self.varied), {})

    def encode(self, settings: Mapping[str, Any]) -> np.ndarray:
        """A point in the unit cube: places of numbers, a column per option; 0.5 or 0 for what is absent."""
        columns: list[float] = []
        for name, kind in self.varied.items():
            if isinstance(kind, Interval):
                columns.append(kind.unit(settings[name]) if name in settings else 0.5)
            else:
                columns += [float(name in settings and settings[name] == option) for option in kind.options]
        return np.array(columns)

    def foreign_setting(self, settings: Mapping[str, Any]) -> str | None:
        """The first name whose value, or whose presence, is not of this space; None if there is none."""
        for name in dict.fromkeys([*self.varied, *settings]):
            kind = self.varied.get(name)
            if kind is None or (name in settings) != self.active(name, settings):
                return name
            if name not in settings:
                continue
            value = settings[name]
            inside = value in kind.options if isinstance(kind, Choice) else kind.low <= value <= kind.high
            if not inside:
                return name
        return None

    def extremes(self) -> Iterator[Settings]:
        """Both ends of every interval and every option, each under the conditions that it needs."""
        for name, kind in self.varied.items():
            for value in kind.points(2):
                yield self._supported(name) | {name: value}

    def around(self, settings: Mapping[str, Any]) -> Settings:
        """These, and of all else that is there with them the middle."""
        found: Settings = {}
        for name, kind in self.varied.items():
            if name in settings or self.active(name, found):
                found[name] = settings[name] if name in settings else kind.at(0.5)
        return found

    def _supported(self, name: str) -> Settings:
        """The first values of other settings under which one is there."""
        settings: Settings = {}
        for parent, values in self.when.get(name, {}).items():
            if parent in self.varied:
                settings |= self._supported(parent) | {parent: values[0]}
        return settings


# -- reading one -------------------------------------------------------------------------------------------


def parse_space(raw: Mapping[str, Any], *, toml: bool = False) -> Space:
    """The space that a mapping describes.

    Args:
        raw: By dotted name or nested: a scalar, a tuple (low, high, "log", "int"), a list of choices, or a
            table {low, high, scale="log", type="int", when} or {choices, when}. `weights.NAME` is short for
            `objective.weights.NAME`.
        toml: Whether it was read from a file, where a bare list might mean either and is refused.

    Raises:
        SpaceError: With the name, the rule, the value and the way out.
    """
    fixed: dict[str, Any] = {}
    varied: dict[str, Varied] = {}
    when: dict[str, Mapping[str, tuple[Any, ...]]] = {}
    for given, value in _leaves(raw):
        name = _full(given)
        if name in fixed or name in varied:
            raise SpaceError(f"space.{given}: {name} stands twice; leave one out")
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
                f"space.{given}: expected a scalar, an interval or choices, got {value!r} "
                f"({type(value).__name__}); give (low, high), a list, or one number, string or bool"
            )
    if not varied:
        raise SpaceError("space: nothing varies; give at least one interval or choice")
    return Space(fixed, varied, when)


def encode_space(space: Space) -> dict[str, Any]:
    """JSON values from which `parse_space` makes the same space."""
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
    """Names with dots between nested tables, down to what describes values."""
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
"""What other programs call ends and choices; no setting is called that."""


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
                f"space.{name}: {end} is missing in {dict(table)!r}; give both ends, or quote the whole "
                f"name to fix one end: '{name}.{next(iter(table))}' = {next(iter(table.values()))!r}"
            )
    marks = []
    for key, mark, other in (("scale", "log", "linear"), ("type", "int", "float")):
        if (value := table.get(key, other)) not in (mark, other):
            raise SpaceError(f"space.{name}.{key} must be {mark!r} or {other!r}, got {value!r}")
        marks += [mark] if value == mark else []
    return _read_tuple(name, (table["low"], table["high"], *marks))


def _read_tuple(name: str, value: tuple[Any, ...]) -> Interval:
    ends, marks = value[:2], value[2:]
    if len(ends) < 2 or any(mark not in _MARKS for mark in marks) or len(set(marks)) < len(marks):
        raise SpaceError(
            f"space.{name}: expected (low, high), (low, high, 'log') or (low, high, 'int'), got {value!r}; "
            "a choice is a list"
        )
    for end in ends:
        if isinstance(end, bool) or not isinstance(end, int | float) or not math.isfinite(end):
            raise SpaceError(f"space.{name}: low and high must be finite numbers, got {end!r} in {value!r}")
    low, high = ends
    if not low < high:
        way_out = f"for one value, give {low!r}" if low == high else "swap the two"
        raise SpaceError(f"space.{name}: low must be less than high, got {(low, high)}; {way_out}")
    if "log" in marks and low <= 0:
        raise SpaceError(f"space.{name}: a logarithmic interval must start above 0, got low = {low!r}")
    if "int" in marks and (low != int(low) or high != int(high)):
        raise SpaceError(f"space.{name}: the ends of whole numbers must be whole, got {(low, high)}")
    if "int" in marks:
        return Interval(int(low), int(high), "log" in marks, True)
    return Interval(float(low), float(high), "log" in marks)


def _read_choices(name: str, options: Any) -> Choice:
    if not isinstance(options, list | tuple) or not options:
        raise SpaceError(f"space.{name}: choices must be a list of at least one value, got {options!r}")
    for i, option in enumerate(options):
        if not _is_plain(option):
            raise SpaceError(
                f"space.{name}: a choice must be a scalar or a list of scalars, got {option!r}; vary the "
                "settings in it by their own names"
            )
        if any(option == other and type(option) is type(other) for other in options[:i]):
            raise SpaceError(f"space.{name}: {option!r} stands twice among the choices; leave one out")
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
            f"space.{name}.when must be a table such as {{'optimizer.name' = 'sgd'}}, got {when!r}"
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
                    f"space.{name}.when: {parent} is never {one!r}; it is one of {list(above[parent])}"
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
    listed = ", ".join(map(repr, value))
    spellings = [f"{{choices = [{listed}]}} for one of these"]
    if len(value) == 2 and all(isinstance(v, int | float) for v in value):
        spellings.insert(0, f"{{low = {value[0]!r}, high = {value[1]!r}}} for an interval")
    else:
        spellings.insert(0, "{low = ..., high = ...} for an interval")
    return f"space.{name}: a bare list may mean two things, got [{listed}]; write {' or '.join(spellings)}"


def combinations(space: Space, count: int) -> int:
    """How many points the grid has."""
    return sum(1 for _ in itertools.islice(space.grid(count), 1_000_000))

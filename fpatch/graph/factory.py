"""The call of a factory: settings by Python's rules, made hashable, with errors and help that name them."""

import inspect
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, fields
from typing import Any, get_args

import torch
from torch import Tensor

from fpatch.core.checks import nearest
from fpatch.core.resource import Resource
from fpatch.core.settings import settle, type_hints

_LINE = 100
"""The length in characters up to which a call stands on one line of help."""


def bind(name: str, config: Any, args: tuple[Any, ...], given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a call by name: a pair of numbers becomes a `Range`, a list of a sequence a tuple.

    Raises:
        TypeError: For a setting that is unknown, missing or given twice, and for too many settings.
        ValueError: If a range is given by something else than two numbers, or a plain setting has another
            type.

    Example:
        >>> from fpatch import compose
        >>> compose.exposure([-1.0, 1.0]) == compose.exposure(stops=(-1.0, 1.0)) == compose.exposure()
        True
        >>> compose.exposure(stop=(-1.0, 1.0))
        Traceback (most recent call last):
        TypeError: compose.exposure: no setting 'stop'; did you mean 'stops'?
    """
    parameters = inspect.signature(config).parameters
    for setting in given:
        if setting not in parameters:
            raise TypeError(f"{name}: no setting {setting!r}; {nearest(setting, parameters)}")
    named = [n for n, p in parameters.items() if p.kind is not p.KEYWORD_ONLY]
    if len(args) > len(named):
        known = f"the settings {', '.join(named)}" if named else "no setting"
        raise TypeError(f"{name} has {known}, got {len(args)} values; name each setting")
    settings = dict(zip(named, args, strict=False))
    if twice := settings.keys() & given.keys():
        raise TypeError(f"{name}: the setting {min(twice)!r} is given twice; leave one out")
    settings |= given
    required = [n for n, p in parameters.items() if p.default is p.empty and n not in settings]
    if required:
        raise TypeError(f"{name}: the setting {required[0]!r} is required; add it, {required[0]}=...")
    hints = type_hints(config)
    return {n: settle(hints.get(n), value, f"{name}({n})") for n, value in settings.items()}


def signature(config: Any) -> inspect.Signature:
    """The signature of a factory: the settings, and what a call returns."""
    return inspect.signature(config).replace(return_annotation="Stage")


def document(
    name: str, config: Any, module: str, reads: Sequence[str], optional: Sequence[str], writes: Sequence[str]
) -> str:
    """The help of a factory: its call with all defaults, its purpose, the values it reads, its settings.

    Example:
        >>> from fpatch import compose
        >>> print(compose.blur.__doc__.partition("Example:")[0].strip())
        compose.blur(sigma_px: Range = (0.0, 1.0)) -> Stage
        <BLANKLINE>
        Gaussian blur: a lens slightly out of focus.
        <BLANKLINE>
        Range of the standard deviation in pixels of the image; 0 changes nothing.
        <BLANKLINE>
        Reads: image
        Writes: image
    """
    about = sys.modules[module].__doc__ if module.startswith("fpatch.") else None
    plain = f"{config.__name__}("  # the docstring of a dataclass without one
    settings = "" if (config.__doc__ or plain).startswith(plain) else inspect.cleandoc(config.__doc__)
    first, _, more = settings.partition("\n\n")
    wiring = f"Reads: {', '.join([*reads, *(f'{n} (if there)' for n in optional)]) or 'nothing'}"
    wiring += f"\nWrites: {', '.join(writes) or 'nothing'}"
    more = re.sub(r"^Attributes:$", "Args:", more, flags=re.MULTILINE)
    parts = (_call(name, config), inspect.cleandoc(about or ""), first, wiring, more)
    return "\n\n".join(filter(None, parts)) + "\n"


def _call(name: str, config: Any) -> str:
    """The call with the types and defaults of all settings, on one line or on one for each."""
    hints = type_hints(config)
    settings = [f"{f.name}: {_show_type(hints.get(f.name, f.type))}{_default(f)}" for f in fields(config)]
    line = f"{name}({', '.join(settings)}) -> Stage"
    if len(line) <= _LINE:
        return line
    return "\n".join([f"{name}(", *(f"    {setting}," for setting in settings), ") -> Stage"])


def _show_type(hint: Any) -> str:
    """A type without the modules of its names."""
    plain = hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint)
    return re.sub(r"\b(?:\w+\.)+(?=\w)", "", plain)


def _default(setting: Field[Any]) -> str:
    if setting.default is not MISSING:
        return f" = {brief(setting.default)}"
    return f" = {brief(setting.default_factory())}" if setting.default_factory is not MISSING else ""


def brief(value: Any) -> str:
    """A setting on one line: ranges as (low, high), live objects by their type."""
    if isinstance(value, tuple):
        shown = [*map(brief, value[:4]), *(["..."] if len(value) > 4 else [])]
        return f"({', '.join(shown)}{',' if len(shown) == 1 else ''})"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{name!r}: {brief(part)}' for name, part in value.items())}}}"
    if isinstance(value, torch.nn.Module):
        return type(value).__name__
    if isinstance(value, Tensor):
        return f"tensor {list(value.shape)}"
    return str(value) if isinstance(value, Resource) else repr(value)

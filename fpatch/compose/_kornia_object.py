"""The name and the arguments of an augmentation of kornia that was made by hand."""

import enum
import inspect
from typing import Any

from torch import Tensor, nn


def read_arguments(module: Any) -> tuple[str, dict[str, Any]]:
    """Return the class and the arguments from which an augmentation can be made again.

    Kornia keeps most arguments under their names. An augmentation made from those must hold the same state.

    Raises:
        ValueError: If it is no augmentation of kornia, or keeps too little of its arguments.

    Example:
        >>> from kornia.augmentation import RandomAffine
        >>> from fpatch.compose._kornia_object import read_arguments
        >>> read_arguments(RandomAffine(10.0, translate=(0.1, 0.2), p=0.7))
        ('RandomAffine', {'degrees': 10.0, 'translate': (0.1, 0.2), 'p': 0.7})
    """
    from kornia.augmentation import AugmentationBase2D

    kind = module if isinstance(module, type) else type(module)
    name = kind.__name__
    if not isinstance(module, AugmentationBase2D):
        got = f"{'the class' if module is kind else 'a'} {name}"
        raise ValueError(
            f"augmentation(name) must be one of kornia's in 2-D, by its name or as an object, got {got} of "
            f"{kind.__module__.partition('.')[0]}; give each augmentation a node of its own, as in "
            "compose.augmentation('RandomAffine', {'degrees': 10.0})"
        )
    places = _places(module)
    arguments = {}
    for argument, parameter in inspect.signature(kind).parameters.items():
        held = next((_plain(place[argument]) for place in places if argument in place), parameter.default)
        if repr(held) != repr(_plain(parameter.default)):
            arguments[argument] = held
    try:
        same = _state(kind(**arguments)) == _state(module)
    except (TypeError, ValueError, AssertionError, RuntimeError):
        same = False
    if not same:
        raise ValueError(
            f"augmentation(name): this {name} does not keep all its arguments; give them beside its name: "
            f"compose.augmentation({name!r}, {{...}})"
        )
    return name, arguments


def _places(module: nn.Module) -> tuple[dict[str, Any], ...]:
    """The mappings in which kornia keeps arguments."""
    generator = getattr(module, "_param_generator", None)
    return vars(module), getattr(module, "flags", None) or {}, {} if generator is None else vars(generator)


def _plain(value: Any) -> Any:
    """A value as a config holds it: an option by its name, a tensor as lists."""
    if isinstance(value, enum.Enum):
        return value.name
    return value.tolist() if isinstance(value, Tensor) else value


def _state(module: nn.Module) -> list[str]:
    """All that an augmentation holds, but for the mode and what it drew last."""
    skipped = ("training", "_params", "_modules")
    return [f"{n}={v!r}" for place in _places(module) for n, v in sorted(place.items()) if n not in skipped]

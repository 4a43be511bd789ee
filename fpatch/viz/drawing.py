"""Pictures by a function of the user, called once per image."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from fpatch.core.checks import check_choice, nearest
from fpatch.core.resource import Resource, resolve
from fpatch.core.types import Params, Sample, Values
from fpatch.graph.stage import ALL, define, deterministic
from fpatch.viz._pictures import PICTURE, stack_pictures, view_pictures
from fpatch.viz.unpacking import KINDS, Kind, unpack

_IMAGES = ("image", "scene", "picture")
"""Values that a function gets as PIL images unless its settings say otherwise."""


@dataclass(frozen=True)
class Drawing:
    """Settings of `viz.drawing`: a function, and the types of what it gets.

    The function gets the values of one image by keyword, each under its name, and returns a PIL image, a
    matplotlib figure, an array or a tensor. `fpatch.viz.unpack` says which values have rows. The stage writes
    `picture` [b, 3, h, w], uint8, which only other drawings read. It passes no gradient, and no step of a
    training runs it. A training logs the pictures of a few images at every validation in which it is alive.

    Attributes:
        function: `(**values) -> picture`; or a `Resource` of one.
        inputs: The names of the values that the function gets; `("*",)` for all. Empty: the names of its
            arguments; those with a default are read where they exist.
        by_type: The type of what the function gets: "numpy", "pil" or "tensor".
        by_name: Types by name or path, which beat `by_type`. The images `image`, `scene` and `picture` are
            "pil" unless they are named here.
        whole: Names or paths of values that have no rows.

    Example:
        >>> import torch
        >>> from PIL import ImageDraw
        >>> from fpatch import viz
        >>> def write_answer(image, logits):
        ...     ImageDraw.Draw(image).text((2, 2), f"class {logits.argmax()}")
        ...     return image
        >>> stage = viz.drawing(write_answer)
        >>> values = {"image": torch.zeros(2, 3, 24, 48), "logits": torch.tensor([[0.0, 1.0], [1.0, 0.0]])}
        >>> picture = stage.apply({}, {}, values)["picture"]
        >>> picture.shape, bool((picture[0] != picture[1]).any())
        (torch.Size([2, 3, 24, 48]), True)

    Raises:
        ValueError: If the function cannot be called by the names, or a type is unknown.
    """

    function: Resource | Callable[..., Any]
    inputs: tuple[str, ...] = ()
    by_type: Kind = "numpy"
    by_name: Mapping[str, Kind] = field(default_factory=dict)
    whole: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.function, Resource):
            if not self.inputs:
                raise ValueError(
                    "drawing(inputs) must name the arguments of a function that a resource makes, e.g. "
                    'inputs = ["image", "logits"]'
                )
        elif not callable(self.function):
            got = type(self.function).__name__
            raise ValueError(f"drawing(function) must be a function or a resource of one, got a {got}")
        for name, kind in {"by_type": self.by_type, **self.by_name}.items():
            check_choice(f"drawing({name})", kind, KINDS)
        read = [name for names in _names(self).values() for name in names]
        for name in (*self.by_name, *self.whole):
            if ALL not in read and name.partition("/")[0] not in read and name not in read:
                raise ValueError(f"drawing: the function gets no {name!r}; {nearest(name, read)}")


def _names(config: Drawing) -> dict[str, tuple[str, ...]]:
    """Return the names that a function needs, and those that it reads where they exist."""
    if config.inputs:
        return {"reads": config.inputs, "optional": ()}
    try:
        taken = inspect.signature(config.function).parameters.values()  # type: ignore[arg-type]
    except ValueError as error:
        raise ValueError(
            f"drawing(inputs): {config.function!r} has no signature; name its arguments"
        ) from error
    named = [p for p in taken if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    only = [p.name for p in taken if p.kind is p.POSITIONAL_ONLY]
    if only or not named:
        what = f"takes {only[0]!r} by position alone" if only else "names no arguments"
        raise ValueError(
            f"drawing(inputs): the function {what}; a drawing is called by keyword, as draw(image=..., "
            "logits=...): name the values that it gets"
        )
    needed = tuple(p.name for p in named if p.default is p.empty or p.name == PICTURE)
    return {"reads": needed, "optional": tuple(p.name for p in named if p.name not in needed)}


def declare(config: Drawing) -> dict[str, Any]:
    """Read the arguments of the function."""
    return _names(config)


def apply(config: Drawing, patch_params: Params, sample: Sample, values: Values) -> Values:
    """Call the function for every image."""
    by_name = dict.fromkeys((name for name in _IMAGES if name in values), "pil") | dict(config.by_name)
    rows = unpack(values, {Tensor: config.by_type}, by_name, config.whole)  # type: ignore[arg-type]
    function = resolve(config.function)
    return {PICTURE: stack_pictures("drawing", [_call(function, row, i) for i, row in enumerate(rows)])}


def _call(function: Callable[..., Any], row: Mapping[str, Any], number: int) -> Any:
    try:
        return function(**row)
    except Exception as error:
        error.add_note(f"in the drawing of row {number}")
        raise


def describe(config: Drawing) -> str:
    """Name the function."""
    name = getattr(config.function, "__qualname__", str(config.function))
    return f"pictures by `{name}`"


drawing = define(
    "drawing",
    Drawing,
    deterministic,
    apply,
    reads=("image",),
    writes=("picture",),
    role="drawing",
    declare=declare,
    show=view_pictures,
    describe=describe,
    vmap=False,
    gradient=False,
    compile=False,
)

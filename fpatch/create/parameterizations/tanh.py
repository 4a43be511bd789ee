"""Patches as the hyperbolic tangent of free parameters, which keeps pixels in range without clamping."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fpatch.core.checks import check_range
from fpatch.core.types import Params, Range, Sample, Values
from fpatch.create._shapes import (
    Shapes,
    check_names,
    check_shapes,
    describe_shapes,
    draw_uniform,
    view_patches,
)
from fpatch.graph.stage import define, deterministic


@dataclass(frozen=True)
class Tanh:
    """Patches x = (tanh(w) + 1) / 2; parameters are w, [c, h, w], or [b, c, h, w] for one patch per row.

    Attributes:
        shapes: `{name: (c, h, w)}`.
        start: Range of the initial pixels x, drawn uniformly. Its distance to 0 and 1 keeps the gradient from
            vanishing.

    Example:
        >>> import torch
        >>> from fpatch import create
        >>> params = {"hood": torch.tensor([[[-20.0, 0.0, 20.0]]])}
        >>> create.tanh({"hood": (1, 1, 3)}).apply(params, {}, {})["patch"]["hood"].tolist()
        [[[0.0, 0.5, 1.0]]]

    References:
        Carlini and Wagner (2017), Towards evaluating the robustness of neural networks, section V-D.
    """

    shapes: Shapes
    start: Range = Range(0.05, 0.95)

    def __post_init__(self) -> None:
        check_range("tanh(start)", self.start, 1e-3, 1 - 1e-3)
        check_names("tanh(shapes)", self.shapes, "{'hood': (3, 64, 64)}")
        check_shapes("tanh", self.shapes)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the patches."""
        return tuple(self.shapes)


def init(config: Tanh, key: Tensor) -> dict[str, Tensor]:
    start = draw_uniform(key, config.shapes, config.start)
    return {name: torch.atanh(2 * pixels.double() - 1).float() for name, pixels in start.items()}


def apply(config: Tanh, patch_params: Params, sample: Sample, values: Values) -> Values:
    return {"patch": {name: (patch_params[name].tanh() + 1) / 2 for name in config.names}}


def show(config: Tanh, values: Values, control_values: Values) -> Values:
    return view_patches(values["patch"])


def describe(config: Tanh) -> str:
    return f"patches as pixels behind a tanh: {describe_shapes(config.shapes)}"


tanh = define(
    "tanh",
    Tanh,
    deterministic,
    apply,
    reads=(),
    writes=("patch",),
    init=init,
    show=show,
    describe=describe,
)

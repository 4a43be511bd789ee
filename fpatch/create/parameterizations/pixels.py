"""The plainest parameterization: the parameters are the pixels."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fpatch.core.checks import check_range
from fpatch.core.resource import Resource, resolve
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
class Pixels:
    """Patches by name; parameters are [channels, height, width], or [b, ...] for one patch per row.

    For a patch of low resolution or of symmetric form, put `resize` or `symmetric` after it.

    Attributes:
        shapes: `{name: (c, h, w)}` of patches that start at random.
        start: Range of their initial pixels, drawn uniformly.
        images: Patches that start from an image: `data.image_file("art.png")`, or a tensor [c, h, w] in 0..1.
        clamp: Range to which pixels are clamped at the start and after every update. None lets them leave
            0..1, for a later stage that limits them.

    Example:
        >>> import torch
        >>> from fpatch import create
        >>> stage = create.pixels({"hood": (1, 1, 3)})
        >>> params = {"hood": torch.tensor([[[-0.5, 0.25, 1.5]]])}  # as an update may leave them
        >>> stage.definition.project(stage.config, params)["hood"].tolist()
        [[[0.0, 0.25, 1.0]]]
        >>> stage.apply(params, {}, {})["patch"]["hood"] is params["hood"]
        True
    """

    shapes: Shapes = field(default_factory=dict)
    start: Range = Range(0.0, 1.0)
    images: Mapping[str, Resource | Tensor] = field(default_factory=dict)
    clamp: Range | tuple[float, float] | None = Range(0.0, 1.0)

    def __post_init__(self) -> None:
        check_range("pixels(start)", self.start, 0.0, 1.0)
        check_names("pixels(shapes)", {**self.shapes, **self.images}, "{'hood': (3, 64, 64)}")
        check_shapes("pixels", self.shapes)
        if self.clamp is not None:
            check_range("pixels(clamp)", self.clamp, 0.0, 1.0)
        if both := set(self.shapes) & set(self.images):
            raise ValueError(f"pixels: {min(both)!r} is in both shapes and images; keep one of them")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the patches."""
        return (*self.shapes, *self.images)


def init(config: Pixels, key: Tensor) -> dict[str, Tensor]:
    images = {name: _as_pixels(name, resolve(image)) for name, image in config.images.items()}
    return project(config, draw_uniform(key, config.shapes, config.start) | images)


def _as_pixels(name: str, image: Tensor) -> Tensor:
    inside = image.ndim == 3 and image.numel() > 0 and 0 <= float(image.min()) <= float(image.max()) <= 1
    if not inside or not image.is_floating_point():
        raise ValueError(
            f"pixels(images): {name!r} must be floats [c, h, w] within 0..1, got {image.dtype} "
            f"{list(image.shape)}; divide 8-bit levels by 255"
        )
    return image.detach().to(torch.float32, copy=True)


def project(config: Pixels, patch_params: Params) -> dict[str, Tensor]:
    return {
        name: patch_params[name] if config.clamp is None else patch_params[name].clamp(*config.clamp)
        for name in config.names
    }


def apply(config: Pixels, patch_params: Params, sample: Sample, values: Values) -> Values:
    return {"patch": {name: patch_params[name] for name in config.names}}


def show(config: Pixels, values: Values, control_values: Values) -> Values:
    return view_patches(values["patch"])


def describe(config: Pixels) -> str:
    images = ", ".join(f"{name} from an image" for name in config.images)
    return f"patches as pixels: {', '.join(filter(None, (describe_shapes(config.shapes), images)))}"


pixels = define(
    "pixels",
    Pixels,
    deterministic,
    apply,
    reads=(),
    writes=("patch",),
    init=init,
    project=project,
    show=show,
    describe=describe,
)

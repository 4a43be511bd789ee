"""The plainest parameterization: the parameters are the pixels."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from fpatch import random
from fpatch.checks import check_range
from fpatch.stage import define, deterministic
from fpatch.types import Params, Range, Sample, Values


@dataclass(frozen=True)
class Pixels:
    """Patches by name, each [channels, height, width].

    Attributes:
        shapes: `{name: (c, h, w)}`.
        start: Pixels start uniformly distributed in this range.
    """

    shapes: Mapping[str, tuple[int, int, int]]
    start: Range = Range(0.0, 1.0)

    def __post_init__(self) -> None:
        check_range("pixels(start)", self.start, 0.0, 1.0)
        if not self.shapes:
            raise ValueError(
                "pixels(shapes) must name at least one patch, got none; e.g. {'hood': (3, 64, 64)}"
            )
        for name, shape in self.shapes.items():
            if len(shape) != 3 or min(shape) < 1:
                raise ValueError(
                    f"pixels(shapes): {name!r} must be (channels, height, width), got {tuple(shape)}"
                )

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the patches."""
        return tuple(self.shapes)


def init(config: Pixels, key: Tensor) -> dict[str, Tensor]:
    return {
        name: random.uniform(random.fold_in(key, name), tuple(shape), *config.start)
        for name, shape in config.shapes.items()
    }


def project(config: Pixels, patch_params: Params) -> dict[str, Tensor]:
    return {name: patch_params[name].clamp(0.0, 1.0) for name in config.names}


def apply(config: Pixels, patch_params: Params, sample: Sample, values: Values) -> Values:
    return {"patch": {name: patch_params[name] for name in config.names}}


def show(config: Pixels, values: Values, control_values: Values) -> Values:
    patches = values["patch"]
    return patches | {f"{name} values": patch.flatten() for name, patch in patches.items()}


def describe(config: Pixels) -> str:
    sizes = ", ".join(f"{name} {h} x {w} x {c}" for name, (c, h, w) in config.shapes.items())
    return f"patches as pixels: {sizes}"


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

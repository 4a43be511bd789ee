"""Resize patches, antialiased."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch.nn.functional as F

from fpatch.core.checks import check_choice, nearest
from fpatch.core.types import Params, Sample, Values
from fpatch.graph.stage import define, deterministic
from fpatch.ops.color import clip

Interpolation = Literal["nearest", "nearest-exact", "bilinear", "bicubic", "area"]


@dataclass(frozen=True)
class Resize:
    """New sizes by name; other patches keep their size.

    Attributes:
        sizes: `{name: (height, width)}`.
        interpolation: "bilinear" and "bicubic" are antialiased. "nearest-exact" is the nearest of PIL.
            "nearest" is that of OpenCV, which takes a pixel up to half a step further to the top left.

    Example:
        >>> import torch
        >>> from fpatch import create
        >>> patch = {"hood": torch.tensor([[0.0, 1.0], [1.0, 0.0]]).expand(3, 2, 2)}
        >>> out = create.resize({"hood": (4, 4)}, "nearest").apply({}, {}, {"patch": patch})["patch"]["hood"]
        >>> out[0].int()
        tensor([[0, 0, 1, 1],
                [0, 0, 1, 1],
                [1, 1, 0, 0],
                [1, 1, 0, 0]], dtype=torch.int32)
    """

    sizes: Mapping[str, tuple[int, int]]
    interpolation: Interpolation = "bilinear"

    def __post_init__(self) -> None:
        check_choice("resize(interpolation)", self.interpolation, get_args(Interpolation))
        for name, size in self.sizes.items():
            if len(size) != 2 or min(size) < 1:
                raise ValueError(f"resize(sizes): {name!r} must be (height, width), got {tuple(size)}")


def apply(config: Resize, patch_params: Params, sample: Sample, values: Values) -> Values:
    patches = dict(values["patch"])
    smooth = config.interpolation in ("bilinear", "bicubic")
    for name, size in config.sizes.items():
        if name not in patches:
            raise ValueError(f"resize(sizes): no patch {name!r}; {nearest(name, patches)}")
        patch = patches[name]
        resized = F.interpolate(
            patch if patch.ndim == 4 else patch[None],
            tuple(size),
            mode=config.interpolation,
            antialias=smooth,
        )
        patches[name] = clip(resized if patch.ndim == 4 else resized[0])
    return {"patch": patches}


resize = define("resize", Resize, deterministic, apply, reads=("patch",), writes=("patch",))

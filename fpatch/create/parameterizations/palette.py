"""Patches mixed from a few printable colors."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fpatch import random
from fpatch.core.checks import check_number
from fpatch.core.tree import constant
from fpatch.core.types import Params, Sample, Values
from fpatch.create._shapes import check_names, view_patches
from fpatch.graph.stage import define, deterministic
from fpatch.ops.color import clip


@dataclass(frozen=True)
class Palette:
    """Patches whose pixels are means of the colors, weighted by softmax(logits / temperature).

    Parameters are the logits, [n, h, w], or [b, n, h, w] for one patch per row. A print has pure colors only:
    for evaluation, put `snap(colors)` behind it, which also snaps the control patches. Snapping picks the
    color of the largest logit wherever that color has nearly all the weight.

    Attributes:
        sizes: `{name: (height, width)}`.
        colors: (red, green, blue) triples within 0..1, as measured from a print.
        temperature: Lower values start nearer to one color per pixel.
        std: Standard deviation of the initial logits; 0 gives the mean color everywhere.

    Example:
        >>> import torch
        >>> from fpatch import create
        >>> stage = create.palette({"hood": (1, 2)}, colors=((1.0, 0.0, 0.0), (0.0, 0.0, 1.0)))
        >>> logits = torch.tensor([[[0.0, 200.0]], [[0.0, 0.0]]])  # [color, height, width]
        >>> stage.apply({"hood": logits}, {}, {})["patch"]["hood"][:, 0].T.tolist()  # a mixture, then red
        [[0.5, 0.0, 0.5], [1.0, 0.0, 0.0]]
    """

    sizes: Mapping[str, tuple[int, int]]
    colors: tuple[tuple[float, float, float], ...]
    temperature: float = 1.0
    std: float = 1.0

    def __post_init__(self) -> None:
        check_names("palette(sizes)", self.sizes, "{'hood': (64, 64)}")
        for name, size in self.sizes.items():
            if len(size) != 2 or min(size) < 1:
                raise ValueError(f"palette(sizes): {name!r} must be (height, width), got {tuple(size)}")
        if len(self.colors) < 2 or not all(len(c) == 3 and 0 <= min(c) <= max(c) <= 1 for c in self.colors):
            raise ValueError(
                "palette(colors) must be two or more (red, green, blue) triples within 0..1, "
                f"got {self.colors}"
            )
        check_number("palette(temperature)", self.temperature, 1e-3)
        check_number("palette(std)", self.std, 0.0)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the patches."""
        return tuple(self.sizes)


def init(config: Palette, key: Tensor) -> dict[str, Tensor]:
    return {
        name: random.gaussian_field(random.fold_in(key, name), (len(config.colors), *size)) * config.std
        for name, size in config.sizes.items()
    }


def apply(config: Palette, patch_params: Params, sample: Sample, values: Values) -> Values:
    def mixed(logits: Tensor) -> Tensor:
        colors = constant(config.colors, logits)[:, :, None, None]
        weights = torch.softmax(logits / config.temperature, dim=-3)[..., :, None, :, :]
        return clip((weights * colors).sum(-4))  # rounding may pass 1

    return {"patch": {name: mixed(patch_params[name]) for name in config.names}}


def show(config: Palette, values: Values, control_values: Values) -> Values:
    return view_patches(values["patch"])


def describe(config: Palette) -> str:
    sizes = ", ".join(f"{name} {h} x {w}" for name, (h, w) in config.sizes.items())
    return f"patches mixed from {len(config.colors)} colors: {sizes}"


palette = define(
    "palette",
    Palette,
    deterministic,
    apply,
    reads=(),
    writes=("patch",),
    init=init,
    show=show,
    describe=describe,
)

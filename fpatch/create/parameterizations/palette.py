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
    """Every pixel is the mean of the colors, weighted by softmax(logits / temperature).

    Parameters are the logits, [n, h, w], or [b, n, h, w] for a patch of each row's own. A print has pure
    colors only: put `snap(colors)` behind it for evaluation, which then prints the controls in them too. It
    picks the color of the largest logit wherever that one has nearly all the weight.

    Attributes:
        sizes: `{name: (height, width)}`.
        colors: (red, green, blue) triples within 0..1, as measured from a print.
        temperature: The lower, the nearer to one color per pixel from the start.
        std: Logits start normally distributed; 0 is the mean of the colors everywhere.
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

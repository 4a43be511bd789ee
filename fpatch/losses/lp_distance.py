"""Distance of a patch to an image that it should keep looking like."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fpatch.core.checks import nearest
from fpatch.core.resource import Resource, resolve
from fpatch.core.tree import is_concrete
from fpatch.core.types import Params, Sample, Values
from fpatch.graph.stage import define, deterministic
from fpatch.losses._patches import mean_over_patches
from fpatch.ops.patches import check_only


@dataclass(frozen=True)
class LpDistance:
    """What to keep to, and how strictly.

    Attributes:
        content: Image by patch name, [c, h, w] in 0..1 as large as the patch, or a `data.image_file`; patches
            that are not named are free.
        p: Of the norm, at least 1: 1 tolerates few large differences, 2 many small ones; infinity is the
            largest difference alone.
        masks: Where a patch must keep to its image, by patch name: weights [h, w] in 0..1, or a
            `create.mask_image`; patches that are not named keep to it everywhere.
    """

    content: Mapping[str, Resource | Tensor]
    p: float = 2.0
    masks: Mapping[str, Resource | Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.p >= 1.0:
            raise ValueError(
                f"lp_distance(p) must be at least 1, got {self.p!r}; inf is the largest difference"
            )
        if not self.content:
            raise ValueError(
                "lp_distance(content) must name at least one patch, got none; leave the stage out"
            )
        for name in self.masks:
            if name not in self.content:
                raise ValueError(
                    f"lp_distance(masks): no content for {name!r}; {nearest(name, self.content)}"
                )


def fill(config: LpDistance, names: tuple[str, ...]) -> LpDistance:
    check_only("lp_distance(content)", tuple(config.content), names)
    return config


def apply(config: LpDistance, patch_params: Params, sample: Sample, values: Values) -> Values:
    def score(name: str, patch: Tensor) -> Tensor:
        content = resolve(config.content[name]).to(patch, non_blocking=True)
        if content.shape != patch.shape[-3:]:
            raise ValueError(
                f"lp_distance(content): {name!r} must have the shape of its patch, "
                f"{list(patch.shape[-3:])}, got {list(content.shape)}; resize the image to that"
            )
        _check_range(f"lp_distance(content): {name!r}", content)
        mask = resolve(config.masks[name]) if name in config.masks else torch.ones(patch.shape[-2:])
        weights = _checked(name, mask, patch).to(patch, non_blocking=True)
        return mean_norm(patch - content, weights, config.p)

    return {"lp_distance": mean_over_patches("lp_distance(content)", tuple(config.content), values, score)}


def _checked(name: str, mask: Tensor, patch: Tensor) -> Tensor:
    where = f"lp_distance(masks): {name!r}"
    if mask.shape != patch.shape[-2:]:
        raise ValueError(f"{where} must be {list(patch.shape[-2:])}, as its patch, got {list(mask.shape)}")
    _check_range(where, mask)
    if is_concrete(mask) and not mask.any():
        raise ValueError(f"{where} is 0 everywhere; leave the patch out of content")
    return mask


def _check_range(where: str, image: Tensor) -> None:
    if is_concrete(image) and not 0 <= float(image.min()) <= float(image.max()) <= 1:
        found = f"{float(image.min()):g} to {float(image.max()):g}"
        raise ValueError(f"{where} must be within 0..1, got {found}; divide 8-bit levels by 255")


def mean_norm(difference: Tensor, mask: Tensor, p: float) -> Tensor:
    """The p-norm as a mean, `(sum(mask |d|^p) / sum(mask))^(1/p)`, so that a uniform d has norm |d|.

    The gradient is 0 where nothing differs.

    Args:
        difference: [c, h, w] or [b, c, h, w].
        mask: Weights [h, w]; for infinite p only whether they are 0 matters.
        p: At least 1.
    """
    magnitude = torch.where(mask > 0, difference.abs(), 0.0).flatten(-3)
    largest = magnitude.amax(-1)
    if math.isinf(p):
        return largest
    # in units of the largest, a constant: no power of a small number vanishes, and the gradient is the same
    unit = torch.where(largest == 0, 1.0, largest).detach()
    weights = mask.expand(difference.shape[-3:]).flatten()
    same = magnitude == 0
    logarithm = torch.where(same, 1.0, magnitude / unit[..., None]).log()
    power = torch.where(same, 0.0, (p * logarithm).exp())
    mean = (weights * power).sum(-1) / weights.sum()
    none = mean == 0
    return torch.where(none, 0.0, unit * (torch.where(none, 1.0, mean).log() / p).exp())


lp_distance = define(
    "lp_distance",
    LpDistance,
    deterministic,
    apply,
    reads=("patch", "image_id"),
    writes=("lp_distance",),
    role="loss",
    of_patch=True,
    fill=fill,
)

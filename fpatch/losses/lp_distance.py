"""The distance between a patch and the image that it shall resemble."""

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
    """Settings of `losses.lp_distance`: the images, the norm and the masks.

    The stage writes `lp_distance` [b].

    Attributes:
        content: An image per patch name, [c, h, w] in 0..1 of the patch's shape, or a `data.image_file`.
            Patches that are not named are free.
        p: The order of the norm, at least 1. 1 tolerates few large differences, 2 many small ones; infinity
            is the largest difference alone.
        masks: Weights [h, w] in 0..1 per patch name, or a `create.mask_image`: where the patch shall resemble
            its image. Patches that are not named do so everywhere.

    Example:
        >>> import torch
        >>> from fpatch import losses
        >>> stage = losses.lp_distance({"sticker": torch.zeros(3, 2, 2)})
        >>> patches = {"sticker": torch.full((3, 2, 2), 0.25)}
        >>> stage.apply({}, {}, {"patch": patches, "image_id": torch.tensor([0])})["lp_distance"]
        tensor([0.2500])

    Raises:
        ValueError: If `p` is below 1, `content` is empty, or a mask has no content.
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
        weights = _check_mask(name, mask, patch).to(patch, non_blocking=True)
        return mean_norm(patch - content, weights, config.p)

    return {"lp_distance": mean_over_patches("lp_distance(content)", tuple(config.content), values, score)}


def _check_mask(name: str, mask: Tensor, patch: Tensor) -> Tensor:
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
    """Return the p-norm as a mean, `(sum(mask |d|^p) / sum(mask))^(1/p)`: a uniform d has norm |d|.

    The gradient is 0 where d is 0.

    Args:
        difference: [c, h, w] or [b, c, h, w].
        mask: Weights [h, w]; an infinite p counts every weight above 0 alike.
        p: At least 1.

    Returns:
        A number, or [b].
    """
    magnitude = torch.where(mask > 0, difference.abs(), 0.0).flatten(-3)
    largest = magnitude.amax(-1)
    if math.isinf(p):
        return largest
    # in units of the largest, a constant: no power underflows, and the gradient stays the same
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

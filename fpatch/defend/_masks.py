"""Masks that cover every place of a patch, and the answers of a classifier behind them."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from fpatch.core.resource import Resource
from fpatch.core.tree import constant
from fpatch.infer import classifier


class Mask(NamedTuple):
    """A rectangle of an image that is hidden: first row and column, height and width in pixels."""

    y: int
    x: int
    height: int
    width: int


def covering_masks(size_hw: Sequence[int], patch_px: Sequence[int], num_masks: int) -> list[Mask]:
    """Return masks of which one covers the patch wherever it is in the image.

    Args:
        size_hw: The height and width of the image.
        patch_px: The height and width of the patch.
        num_masks: The number of masks along each axis, k. The side of a mask is p + s - 1 for a patch of
            side p, with s = ceil((n - p + 1) / k) pixels between neighbors.

    Raises:
        ValueError: If the patch is larger than the image.

    References:
        Xiang, Mahloujifar and Mittal (2022), PatchCleanser, USENIX Security, section 3.2 and lemma 1.
    """
    if any(p > n for p, n in zip(patch_px, size_hw, strict=True)):
        raise ValueError(
            f"patch_px must be within the image of {tuple(size_hw)} pixels, got {tuple(patch_px)}; no mask "
            "could leave anything of the image"
        )
    axes = []
    for n, p in zip(size_hw, patch_px, strict=True):
        step = -(-(n - p + 1) // num_masks)
        side = p + step - 1
        starts = sorted({*range(0, n - side + 1, step), n - side})
        axes.append([(start, side) for start in starts])
    return [Mask(y, x, height, width) for y, height in axes[0] for x, width in axes[1]]


def hide(images: Float[Tensor, "b 3 h w"], masks: Sequence[Mask], fill: float) -> Float[Tensor, "b 3 h w"]:
    """Set the pixels under some masks to a value."""
    y, x = (torch.arange(n, device=images.device) for n in images.shape[-2:])
    for mask in masks:
        rows = (y >= mask.y) & (y < mask.y + mask.height)
        columns = (x >= mask.x) & (x < mask.x + mask.width)
        images = torch.where(rows[:, None] & columns, constant(fill, images), images)
    return images


def ask(
    model: Resource | torch.nn.Module,
    images: Float[Tensor, "b 3 h w"],
    groups: Sequence[Sequence[Mask]],
    fill: float,
) -> Float[Tensor, "b m c"]:
    """Return the logits of the images behind each group of masks.

    Several groups are asked at once, as many as the batch allows. Rows stay together, so that a row keeps its
    bits whatever the others are.
    """
    stage, found = classifier(model), []
    at_once = max(1, _ROWS // len(images))
    for i in range(0, len(groups), at_once):
        hidden = torch.cat([hide(images, masks, fill) for masks in groups[i : i + at_once]])
        logits = stage.written({}, {}, {"image": hidden})["logits"]
        found += logits.split(len(images))
    return torch.stack(found, dim=1)


_ROWS = 128
"""Masked images that a classifier is asked for at once."""


def majority(labels: Int64[Tensor, "b m"], num_classes: int) -> Int64[Tensor, " b"]:
    """Return the label of most masks; of equally many, the lowest number."""
    classes = torch.arange(num_classes, device=labels.device)
    return (labels[..., None] == classes).sum(1).argmax(-1)

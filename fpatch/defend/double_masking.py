"""PatchCleanser: a classifier that answers behind masks, in two rounds."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from fpatch.core.checks import check_count, check_number
from fpatch.core.resource import Resource
from fpatch.core.types import Params, Sample, Values
from fpatch.defend._masks import ask, covering_masks, majority
from fpatch.graph.stage import define, deterministic
from fpatch.infer import classifier


@dataclass(frozen=True)
class DoubleMasking:
    """The classifier, and the patch that the masks shall cover.

    The stage writes `logits` [b, c]: the mean over the masked images that decided the answer. An attack that
    is trained through them is adaptive. An image costs one call of the classifier for each mask, and as many
    more for each mask that disagrees.

    Attributes:
        model: A classifier, as for `infer.classifier`.
        patch_px: The height and width of the largest patch, in pixels of the image.
        num_masks: Masks along each axis; more of them hide less at a time.
        fill: The value of a hidden pixel, 0..1.

    Example:
        >>> import torch
        >>> from fpatch import defend
        >>> model = torch.nn.Sequential(torch.nn.AvgPool2d(16), torch.nn.Flatten()).eval()  # the main color
        >>> image = torch.tensor([0.4, 0.3, 0.3]).view(1, 3, 1, 1).repeat(1, 1, 16, 16)
        >>> image[..., 2:9, 2:9] = torch.tensor([0.0, 1.0, 0.0])[:, None, None]  # a patch
        >>> model(image).argmax().item()
        1
        >>> defend.double_masking(model, (7, 7)).apply({}, {}, {"image": image})["logits"].argmax().item()
        0
    """

    model: Resource | nn.Module
    patch_px: tuple[int, int]
    num_masks: int = 6
    fill: float = 0.5

    def __post_init__(self) -> None:
        classifier(self.model)
        for side in self.patch_px:
            check_count("double_masking(patch_px)", side, 1)
        check_count("double_masking(num_masks)", self.num_masks, 2, 32)
        check_number("double_masking(fill)", self.fill, 0.0, 1.0)


def apply(config: DoubleMasking, patch_params: Params, sample: Sample, values: Values) -> Values:
    """Answer what all masks agree on, or the minority that a second mask never changes, or the majority.

    References:
        Xiang, Mahloujifar and Mittal (2022), PatchCleanser: certifiably robust defense against adversarial
        patches for any image classifier, USENIX Security, algorithm 1.
    """
    image = values["image"]
    masks = covering_masks(image.shape[-2:], config.patch_px, config.num_masks)
    first = ask(config.model, image, [(mask,) for mask in masks], config.fill)
    labels = first.argmax(-1)
    most = majority(labels, first.shape[-1])
    votes = labels == most[:, None]
    logits, is_finite, open_rows = _mean(first, votes), first.isfinite().all(-1).all(-1), ~votes.all(1)
    for i, mask in enumerate(masks):
        asked = open_rows & ~votes[:, i]
        if not bool(asked.any()):
            continue
        second = ask(config.model, image, [(mask, other) for other in masks], config.fill)
        labels = second.argmax(-1)
        decides = asked & (labels == labels[:, :1]).all(1)
        logits = torch.where(decides[:, None], _mean(second, torch.ones_like(votes)), logits)
        is_finite = is_finite & (second.isfinite().all(-1).all(-1) | ~asked)
        open_rows = open_rows & ~decides
    return {"logits": torch.where(is_finite[:, None], logits, torch.nan)}


def _mean(logits: Float[Tensor, "b m c"], chosen: Bool[Tensor, "b m"]) -> Float[Tensor, "b c"]:
    """The mean over the chosen masks, summed in fixed order; an answer that all have is that of the mean."""
    terms = torch.where(chosen[..., None], logits, 0.0).unbind(1)
    return sum(terms) / chosen.sum(1, keepdim=True)  # type: ignore[return-value]


double_masking = define(
    "double_masking",
    DoubleMasking,
    deterministic,
    apply,
    reads=("image",),
    writes=("logits",),
    role="victim",
    vmap=False,
    compile=False,
    eager=True,
)

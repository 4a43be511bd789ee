"""The certificate of double masking."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from fpatch.core.resource import Resource
from fpatch.defend._masks import ask, covering_masks


@torch.no_grad()
def certify(
    model: Resource | nn.Module,
    images: Float[Tensor, "b 3 h w"],
    target: Int64[Tensor, " b"],
    patch_px: Sequence[int],
    num_masks: int = 6,
    fill: float = 0.5,
) -> Bool[Tensor, " b"]:
    """Return the images for which no patch of this size changes the answer of `double_masking`.

    The certificate holds for one patch of any content at any place, with the same settings of the defense. An
    image costs k (k + 1) / 2 calls of the classifier for k = `num_masks` ** 2 masks.

    Args:
        model: A classifier, as for `infer.classifier`.
        images: Images without a patch.
        target: The true classes.
        patch_px: The height and width of the largest patch, in pixels of the images.
        num_masks: Masks along each axis.
        fill: The value of a hidden pixel, 0..1.

    Returns:
        True where the answer behind every pair of masks is the true class.

    References:
        Xiang, Mahloujifar and Mittal (2022), PatchCleanser: certifiably robust defense against adversarial
        patches for any image classifier, USENIX Security, algorithm 2 and theorem 1.

    Example:
        >>> import torch
        >>> from fpatch import defend
        >>> model = torch.nn.Sequential(torch.nn.AvgPool2d(16), torch.nn.Flatten()).eval()  # the main color
        >>> images = torch.tensor([[0.9, 0.2, 0.2], [0.5, 0.48, 0.2]])[..., None, None].repeat(1, 1, 16, 16)
        >>> images[1, :, :12, :12] = torch.tensor([0.4, 0.49, 0.2])[:, None, None]
        >>> defend.certify(model, images, torch.tensor([0, 0]), patch_px=(3, 3), num_masks=2)
        tensor([ True, False])
    """
    masks = covering_masks(images.shape[-2:], patch_px, num_masks)
    certified = torch.ones(len(images), dtype=torch.bool, device=images.device)
    for i, mask in enumerate(masks):
        logits = ask(model, images, [(mask, other) for other in masks[i:]], fill)
        certified &= ((logits.argmax(-1) == target[:, None]) & logits.isfinite().all(-1)).all(1)
    return certified

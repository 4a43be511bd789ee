"""Helper of losses on the patch itself: the mean over the patches that count."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from fpatch.core.types import Values
from fpatch.ops.patches import check_only


def mean_over_patches(
    field: str, only: tuple[str, ...] | None, values: Values, score: Callable[[str, Tensor], Tensor]
) -> Tensor:
    """Average a score over patches.

    Args:
        field: The setting that holds `only`, for errors.
        only: Patches that count; None for all.
        values: Holds `patch` and `image_id`.
        score: From the name and the patch, [c, h, w] or [b, c, h, w], to a number or [b].

    Returns:
        The mean score of each row, [b].
    """
    patches: Mapping[str, Tensor] = values["patch"]
    check_only(field, only, tuple(patches))
    terms = [
        score(n, patch).expand(len(values["image_id"]))
        for n, patch in patches.items()
        if n in (only or patches)
    ]
    return torch.stack(terms).mean(0)

"""What losses on the patch itself share: which patches count, and their mean."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from fpatch.core.types import Values
from fpatch.ops.patches import check_only


def mean_over_patches(
    field: str, only: tuple[str, ...] | None, values: Values, score: Callable[[str, Tensor], Tensor]
) -> Tensor:
    """The mean over patches of a score, [b].

    Args:
        field: Where `only` stands, for errors.
        only: Patches that count; None for all.
        values: With `patch` and `image_id`.
        score: From the name and the patch [c, h, w] or [b, c, h, w] to a number or [b].
    """
    patches: Mapping[str, Tensor] = values["patch"]
    check_only(field, only, tuple(patches))
    terms = [
        score(n, patch).expand(len(values["image_id"]))
        for n, patch in patches.items()
        if n in (only or patches)
    ]
    return torch.stack(terms).mean(0)

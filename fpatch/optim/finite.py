"""Losses, gradients and parameters that are not finite: the first, by its row, its image and its sample."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


class NotFiniteError(ValueError):
    """A step whose loss or gradient is not finite.

    Attributes:
        state: The state after it, which holds no patch worth keeping.
        info: Its report.
    """

    def __init__(self, sentence: str, state: Any, info: Any) -> None:
        """Say what is not finite."""
        super().__init__(sentence)
        self.state, self.info = state, info


def find_bad_row(info: Any, paths: Sequence[Path] | None = None) -> str | None:
    """Find the first row with a loss that is not finite.

    Args:
        info: The `StepInfo` of the step.
        paths: Files of the images by id; None: the row is named by its id.

    Returns:
        A sentence with the term, the row, its image and its sample; None if every number is finite.
    """
    for name, term in info.terms.items():
        bad = (~torch.isfinite(term)).nonzero()
        if len(bad):
            row = int(bad[0])
            drawn = {
                f"{path}/{field}": value[row].tolist()
                for path, fields in info.sample.items()
                for field, value in fields.items()
            }
            image_id = int(info.batch["image_id"][row])
            return (
                f"the loss term {name!r} is {float(term[row])} in row {row}, "
                f"{f'image {image_id}' if paths is None else paths[image_id]}, "
                f"draw {int(info.batch['draw'][row])}, "
                f"with the sample {drawn}"
            )
    if not bool(torch.isfinite(info.grad_norm)):
        return "the gradient is not finite, but every loss term is"
    return None


def find_bad_patch(params: Mapping[str, Tensor]) -> str | None:
    """Find the first patch with parameters that are not finite.

    Args:
        params: Patch parameters after an update.

    Returns:
        A sentence with the patch and the count; None if every number is finite.

    Example:
        >>> import torch
        >>> from fpatch.optim.loop import find_bad_patch
        >>> find_bad_patch({"tag": torch.tensor([0.5, torch.nan])}).partition(",")[0]
        "1 of 2 parameters of the patch 'tag' are not finite after it"
    """
    for name, value in params.items():
        if count := int((~value.isfinite()).sum()):
            what = "the network" if "/" in name else "the patch"
            return (
                f"{count} of {value.numel()} parameters of {what} {name!r} are not finite after it, but "
                "loss and gradient are; lower optimizer.learning_rate"
            )
    return None

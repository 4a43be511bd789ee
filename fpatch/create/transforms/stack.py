"""Repeat a one-channel patch, so that a patch trained in gray is printed in gray."""

from dataclasses import dataclass

from torch import Tensor

from fpatch.core.checks import check_count
from fpatch.core.types import Params, Sample, Values
from fpatch.graph.stage import define, deterministic
from fpatch.ops.patches import map_patches


@dataclass(frozen=True)
class Stack:
    """Number of channels to write; patches that already have this number pass unchanged.

    Attributes:
        num_channels: 3 for a print.
        only: Patches that it acts on; None: all.

    Example:
        >>> import torch
        >>> from fpatch import create
        >>> gray = {"hood": torch.full((1, 4, 4), 0.5)}
        >>> create.stack().apply({}, {}, {"patch": gray})["patch"]["hood"].shape
        torch.Size([3, 4, 4])
    """

    num_channels: int = 3
    only: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        check_count("stack(num_channels)", self.num_channels, high=10_000)


def apply(config: Stack, patch_params: Params, sample: Sample, values: Values) -> Values:
    def stacked(name: str, patch: Tensor) -> Tensor:
        if patch.shape[-3] not in (1, config.num_channels):
            raise ValueError(f"stack: patch {name!r} must have 1 channel, got shape {list(patch.shape)}")
        return patch.expand(*patch.shape[:-3], config.num_channels, -1, -1)

    return {"patch": map_patches("stack", values["patch"], config.only, stacked)}


stack = define("stack", Stack, deterministic, apply, reads=("patch",), writes=("patch",))

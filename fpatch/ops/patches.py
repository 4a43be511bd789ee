"""Helpers of stages that change patches by name."""

from collections.abc import Callable, Mapping

from torch import Tensor

from fpatch.core.checks import nearest


def map_patches(
    stage: str,
    patches: Mapping[str, Tensor],
    only: tuple[str, ...] | None,
    change: Callable[[str, Tensor], Tensor],
) -> dict[str, Tensor]:
    """Change all patches, or only the named ones.

    Args:
        stage: The name of the stage, for errors.
        patches: `{name: [c, h, w] or [b, c, h, w]}`.
        only: The names of the patches to change; None for all.
        change: `(name, patch) -> patch`.

    Raises:
        ValueError: If a name is unknown, or `only` is empty.

    Example:
        >>> import torch
        >>> from fpatch.ops.patches import map_patches
        >>> patches = {"roof": torch.ones(1, 1, 1), "side": torch.ones(1, 1, 1)}
        >>> map_patches("dim", patches, ("roof",), lambda name, patch: patch / 2)
        {'roof': tensor([[[0.5000]]]), 'side': tensor([[[1.]]])}
    """
    check_only(f"{stage}(only)", only, tuple(patches))
    return {
        name: change(name, patch) if only is None or name in only else patch
        for name, patch in patches.items()
    }


def check_only(field: str, only: tuple[str, ...] | None, names: tuple[str, ...]) -> None:
    """Check that `only` names at least one patch, and only known ones.

    Raises:
        ValueError: Naming the field and the patch.

    Example:
        >>> from fpatch.ops.patches import check_only
        >>> check_only("dim(only)", ("roof",), ("roof", "side"))
    """
    if isinstance(only, str):
        raise ValueError(f"{field} must be a tuple of patch names, got {only!r}; write ({only!r},)")
    if only == ():
        raise ValueError(f"{field} must name at least one patch, got none; leave it out for all patches")
    for name in only or ():
        if name not in names:
            raise ValueError(f"{field}: no patch {name!r}; {nearest(name, names)}")


def check_color(stage: str, name: str, patch: Tensor) -> None:
    """Check that a patch has the channels red, green and blue.

    Raises:
        ValueError: Naming the stage and the patch.

    Example:
        >>> import torch
        >>> from fpatch.ops.patches import check_color
        >>> check_color("snap", "roof", torch.zeros(3, 8, 8))
    """
    if patch.shape[-3] != 3:
        raise ValueError(
            f"{stage}: patch {name!r} must have 3 channels, got shape {list(patch.shape)}; "
            "put create.stack(3) above it"
        )

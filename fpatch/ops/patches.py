"""Stages that act on patches by name: which ones, and what is asked of them."""

from collections.abc import Callable, Mapping

from torch import Tensor

from fpatch.core.checks import nearest


def map_patches(
    stage: str,
    patches: Mapping[str, Tensor],
    only: tuple[str, ...] | None,
    change: Callable[[str, Tensor], Tensor],
) -> dict[str, Tensor]:
    """Change all patches, or only those that are named.

    Args:
        stage: For errors.
        patches: `{name: [c, h, w] or [b, c, h, w]}`.
        only: Names; None for all.
        change: From a name and its patch to the new patch.

    Raises:
        ValueError: If a name is unknown.
    """
    check_only(f"{stage}(only)", only, tuple(patches))
    return {
        name: change(name, patch) if only is None or name in only else patch
        for name, patch in patches.items()
    }


def check_only(field: str, only: tuple[str, ...] | None, names: tuple[str, ...]) -> None:
    """Refuse a limit to no patch, or to one that is not there.

    Raises:
        ValueError: Naming the field and the patch.
    """
    if isinstance(only, str):
        raise ValueError(f"{field} must be names of patches, got {only!r}; write ({only!r},)")
    if only == ():
        raise ValueError(f"{field} must name at least one patch, got none; leave it out for all patches")
    for name in only or ():
        if name not in names:
            raise ValueError(f"{field}: no patch {name!r}; {nearest(name, names)}")


def check_color(stage: str, name: str, patch: Tensor) -> None:
    """Refuse a patch that is not red, green and blue.

    Raises:
        ValueError: Naming the stage and the patch.
    """
    if patch.shape[-3] != 3:
        raise ValueError(
            f"{stage}: patch {name!r} must have 3 channels, got shape {list(patch.shape)}; "
            "put create.stack(3) above it"
        )

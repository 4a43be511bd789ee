"""The conditions of an evaluation: the trained patch, no patch, and control patches.

A condition is a set of patches: the trained one, noise, a flat print, the patch's own pixels shuffled, or a
picture of the user's. It replaces the *output of the parameterization*, so that all conditions pass the same
print, size, place and camera. The condition "none" is the trained patch with every opacity 0.
A pipeline that makes no patch, such as one that trains a network alone, has the condition "none" only.
"""

from collections.abc import Container, Mapping
from typing import Any

import optree
import torch.nn.functional as F
from torch import Tensor

from fpatch import random
from fpatch.core.names import check_name
from fpatch.core.tree import device_of, to_device
from fpatch.core.types import Params, Values
from fpatch.graph.pipeline import Pipeline
from fpatch.ops.color import luma

PATCH, NONE = "patch", "none"
"""The conditions that every evaluation of a patch has: the trained patch, and no patch."""
CONTROLS = ("noise", "flat", "shuffled")

Patches = Mapping[str, Any]
"""The output of the parameterizations: pytrees of patches by name."""


def make_patches(pipeline: Pipeline, patch_params: Params) -> Patches:
    """Make the patches that the parameterizations of a pipeline write for these parameters.

    Example:
        >>> from fpatch import create, implant, pipeline, random
        >>> from fpatch.evaluation.conditions import make_patches
        >>> stages = pipeline({"pixels": create.pixels({"tag": (3, 8, 8)}), "implant": implant.warp()})
        >>> patches = make_patches(stages, stages.init(random.key(0)))
        >>> patches["patch"]["tag"].shape
        torch.Size([3, 8, 8])
    """
    values: Values = {}
    for path in pipeline.parameterizations:
        n = pipeline[path]
        written = n.stage.written(patch_params, {}, n.inputs(values))
        values |= {n.writes[own]: value for own, value in written.items()}
    return optree.tree_map(lambda x: x.detach(), values)  # type: ignore[return-value]


def check_control_name(field: str, name: str) -> None:
    """Refuse a name of a control that is taken, or that a table could confuse with another column.

    Raises:
        ValueError: If the name is taken, or cannot be that of a file.
    """
    check_name(field, name)
    taken = (PATCH, NONE, *CONTROLS, "delta", "clean")
    if name.casefold() in taken:
        raise ValueError(
            f"{field}: a control cannot be called {name!r}; choose a name that is none of {', '.join(taken)}"
        )


def make_controls(
    patches: Patches, key: Tensor, pictures: Mapping[str, Tensor] | None = None
) -> dict[str, Patches]:
    """Make control patches of each patch's size: uniform noise, its mean color, its pixels shuffled.

    Args:
        patches: The output of the parameterizations.
        key: The key of the noise and of the order of pixels; each patch folds in its name.
        pictures: Further controls by name, [3, h, w] in 0..1. Each is stretched to the size of every patch,
            and turned gray for a gray one.

    Raises:
        ValueError: If a name is taken, or a picture has another shape.

    Example:
        >>> import torch
        >>> from fpatch import random
        >>> from fpatch.evaluation.conditions import make_controls
        >>> patches = {"patch": {"tag": torch.tensor([[[0.0, 0.25, 0.5]]])}}
        >>> controls = make_controls(patches, random.key(0))
        >>> list(controls), controls["flat"]["patch"]["tag"]
        (['noise', 'flat', 'shuffled'], tensor([[[0.2500, 0.2500, 0.2500]]]))
        >>> sorted(controls["shuffled"]["patch"]["tag"].flatten().tolist())
        [0.0, 0.25, 0.5]
    """
    for name, picture in (pictures or {}).items():
        check_control_name("make_controls(pictures)", name)
        if picture.ndim != 3 or len(picture) != 3:
            shape = list(picture.shape)
            raise ValueError(f"make_controls(pictures): {name!r} must be [3, h, w], in color, got {shape}")
    on_host = to_device(patches, "cpu")  # so that the bits are the same on every device
    paths, leaves, tree = optree.tree_flatten_with_path(on_host)
    made: dict[str, list[Tensor]] = {name: [] for name in (*CONTROLS, *(pictures or {}))}
    for path, patch in zip(paths, leaves, strict=True):
        own = key
        for segment in path:
            own = random.fold_in(own, str(segment))
        order = random.permutation(random.fold_in(own, "shuffled"), patch.shape[-2] * patch.shape[-1])
        made["noise"].append(random.uniform(random.fold_in(own, "noise"), tuple(patch.shape)))
        made["flat"].append(patch.mean((-2, -1), keepdim=True).expand_as(patch).contiguous())
        made["shuffled"].append(patch.flatten(-2)[..., order].unflatten(-1, patch.shape[-2:]))
        for name, picture in (pictures or {}).items():
            made[name].append(_fit_picture(picture, patch))
    controls = {name: optree.tree_unflatten(tree, entries) for name, entries in made.items()}
    return to_device(controls, device_of(patches))


def _fit_picture(picture: Tensor, patch: Tensor) -> Tensor:
    """Stretch a picture [3, h, w] to the shape of a patch [..., c, h, w]."""
    colored = picture if patch.shape[-3] == 3 else luma(picture)
    size = [int(side) for side in patch.shape[-2:]]
    fitted = F.interpolate(colored[None], size, mode="bilinear", antialias=True)[0].clamp(0.0, 1.0)
    return fitted.expand_as(patch).contiguous()


def check_finite(conditions: Mapping[str, Any]) -> None:
    """Refuse patches with numbers that are not finite: nothing can be measured with them.

    Raises:
        ValueError: If a patch has one; the message names patch, condition and count.

    Example:
        >>> import torch
        >>> from fpatch.evaluation.conditions import check_finite
        >>> try:
        ...     check_finite({"patch": {"patch": {"tag": torch.tensor([[[0.5, torch.inf]]])}}})
        ... except ValueError as error:
        ...     print(str(error).partition(";")[0])
        evaluate: 1 of 2 numbers of the patch 'tag' under the condition 'patch' are not finite
    """
    for condition, patches in conditions.items():
        paths, leaves, _ = optree.tree_flatten_with_path(patches)
        for path, patch in zip(paths, leaves, strict=True):
            if count := int((~patch.isfinite()).sum()):
                raise ValueError(
                    f"evaluate: {count} of {patch.numel()} numbers of the patch {path[-1]!r} under the "
                    f"condition {condition!r} are not finite; measure a checkpoint from before they broke, "
                    "such as --checkpoint step-00000000, or train again"
                )


def make_conditions(
    pipeline: Pipeline, patch_params: Params, key: Tensor, pictures: Mapping[str, Tensor] | None = None
) -> dict[str, Patches]:
    """Make all conditions: the trained patch, no patch, then the controls of `make_controls`.

    A pipeline that makes no patch has the condition "none" alone, without patches.

    Example:
        >>> import fpatch
        >>> from fpatch.evaluation.conditions import make_conditions
        >>> dim = fpatch.pipeline({"dim": fpatch.compose.exposure()})
        >>> make_conditions(dim, {}, fpatch.random.key(0))
        {'none': {}}
    """
    if not pipeline.parameterizations:
        return {NONE: {}}
    patches = make_patches(pipeline, patch_params)
    return {PATCH: patches, NONE: patches, **make_controls(patches, key, pictures)}


def main_condition(conditions: Container[str]) -> str:
    """Return the condition that others are compared with: the patch, or no patch where none is shown.

    Example:
        >>> from fpatch.evaluation.conditions import main_condition
        >>> main_condition(["none", "patch", "noise"]), main_condition(["none"])
        ('patch', 'none')
    """
    return PATCH if PATCH in conditions else NONE


TITLES = {
    "patch": "trained patch",
    "noise": "noise",
    "flat": "flat print",
    "shuffled": "shuffled pixels",
    "rendered": "rendered trial",
}
"""Titles of the conditions in tables and figures."""

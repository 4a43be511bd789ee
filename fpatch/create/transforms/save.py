"""Log the patch at this position of the pipeline."""

from dataclasses import dataclass

from fpatch.core.types import Params, Sample, Values
from fpatch.create._shapes import view_patches
from fpatch.graph.stage import define, deterministic
from fpatch.ops.patches import map_patches


@dataclass(frozen=True)
class Save:
    """The patches to log at every evaluation; they pass unchanged.

    Where rows differ, the patch of the first row is logged.

    Attributes:
        only: Patches that are logged; None: all.

    Example:
        >>> import torch
        >>> from fpatch import create
        >>> stage = create.save()
        >>> values = stage.apply({}, {}, {"patch": {"hood": torch.full((3, 4, 4), 0.5)}})
        >>> list(stage.definition.show(stage.config, values, values))  # an image and a histogram
        ['hood', 'hood values']
    """

    only: tuple[str, ...] | None = None


def apply(config: Save, patch_params: Params, sample: Sample, values: Values) -> Values:
    return {"patch": map_patches("save", values["patch"], config.only, lambda name, patch: patch)}


def show(config: Save, values: Values, control_values: Values) -> Values:
    patches = values["patch"]
    return view_patches({name: patches[name] for name in config.only or patches})


save = define("save", Save, deterministic, apply, reads=("patch",), writes=("patch",), show=show)

"""Log the patch as it is at this place of the pipeline."""

from dataclasses import dataclass

from fpatch.core.types import Params, Sample, Values
from fpatch.create._shapes import view_patches
from fpatch.graph.stage import define, deterministic
from fpatch.ops.patches import map_patches


@dataclass(frozen=True)
class Save:
    """Changes nothing; at every evaluation the patch goes to all sinks, the first row's where rows differ.

    Attributes:
        only: Patches that are logged; None: all.
    """

    only: tuple[str, ...] | None = None


def apply(config: Save, patch_params: Params, sample: Sample, values: Values) -> Values:
    return {"patch": map_patches("save", values["patch"], config.only, lambda name, patch: patch)}


def show(config: Save, values: Values, control_values: Values) -> Values:
    patches = values["patch"]
    return view_patches({name: patches[name] for name in config.only or patches})


save = define("save", Save, deterministic, apply, reads=("patch",), writes=("patch",), show=show)

"""Values that a stage can draw, so that an edited sample keeps its meaning."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from fpatch.core.checks import check_number
from fpatch.core.types import Range
from fpatch.graph.pipeline import Pipeline
from fpatch.graph.stage import Stage

_OPACITY = "opacity"
"""The field by which a stage mixes in its patch, 0 to 1, whatever its settings."""


def check_drawable(pipeline: Pipeline, values: Mapping[str, Any]) -> None:
    """Check that a stage could draw edited values with some setting, such as an opacity within 0..1.

    An opacity is within 0..1. A sampled value with the name of a setting that is a range or a number must be
    allowed as that setting. All other values are not checked.

    Args:
        pipeline: The pipeline of the samples.
        values: Values by path, as for `fpatch.override`.

    Raises:
        ValueError: If a value is out of the bounds of its setting; the message names the path and the bounds.

    Example:
        >>> import fpatch
        >>> from fpatch.graph.drawable import check_drawable
        >>> made = fpatch.pipeline({"soft": fpatch.node(fpatch.compose.blur(), reads={"image": "scene"})})
        >>> check_drawable(made, {"soft/sigma_px": -1.0})
        Traceback (most recent call last):
        ValueError: soft/sigma_px = -1: compose.blur cannot draw it; blur(sigma_px) must be (low, high)...
    """
    for path, value in values.items():
        found = [node for node in pipeline if path.startswith(f"{node}/")]
        if not found:
            continue  # `override` says what is there
        stage = pipeline[max(found, key=len)].stage
        field = path.removeprefix(f"{max(found, key=len)}/").partition("/")[0]
        for number in np.unique(np.asarray(value, dtype=np.float64)).tolist():
            try:
                _check_number(stage, field, number)
            except ValueError as error:
                name = stage.definition.name
                raise ValueError(f"{path} = {number:g}: {name} cannot draw it; {error}") from error


def _check_number(stage: Stage, field: str, number: float) -> None:
    """Check a sampled number by the rules of the setting that has the name of its field."""
    setting = getattr(stage.config, field, None)
    if field == _OPACITY:
        check_number(field, number, 0.0, 1.0)
    elif isinstance(setting, Range):
        dataclasses.replace(stage.config, **{field: Range(number, number)})
    elif isinstance(setting, float):
        dataclasses.replace(stage.config, **{field: number})

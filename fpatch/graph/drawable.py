"""Values that a stage can draw, so that an edited sample keeps its meaning."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from fpatch.core.checks import check_number
from fpatch.core.types import Batch, Range, Sample
from fpatch.graph.pipeline import Pipeline
from fpatch.graph.stage import Stage

ALL_PLACEMENTS = -1
"""The sampled placement of an implanter that fills all of them."""

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
        if stage.definition.traits.late and not stage.config.takes_sample:
            raise ValueError(
                f"{path}: {stage.definition.name} draws by its key, so that an override changes nothing; "
                "give the function a fourth argument, sample=None, and return it"
            )
        field = path.removeprefix(f"{max(found, key=len)}/").partition("/")[0]
        for number in np.unique(np.asarray(value, dtype=np.float64)).tolist():
            try:
                _check_number(stage, field, number)
            except ValueError as error:
                name = stage.definition.name
                raise ValueError(f"{path} = {number:g}: {name} cannot draw it; {error}") from error


def check_placed(pipeline: Pipeline, sample: Sample, batch: Batch) -> None:
    """Check that every placement of an edited sample is one of its image, so that a patch is there.

    Args:
        pipeline: The pipeline of the samples.
        sample: The edited samples.
        batch: Their rows.

    Raises:
        ValueError: If a row lacks the placement; the message names the node and the image.

    Example:
        >>> import torch
        >>> from fpatch import create, implant, pipeline
        >>> from fpatch.graph.drawable import check_placed
        >>> p = pipeline({"pixels": create.pixels({"a": (3, 4, 4)}), "implant": implant.warp(boxes="one")})
        >>> batch = {"image_id": torch.tensor([7]), "quad_valid": torch.tensor([[True, False]])}
        >>> check_placed(p, {"implant": {"placement": torch.tensor([1])}}, batch)
        Traceback (most recent call last):
        ValueError: implant/placement = 1: image 7 has no such placement, so that no patch would be there...
    """
    for path, n in pipeline.items():
        valid = batch.get(n.reads.get("quad_valid", ""))
        if valid is None or not n.stage.definition.module.startswith("fpatch.implant"):
            continue
        chosen = sample.get(path, {}).get("placement")
        if chosen is None:
            continue
        places = torch.arange(valid.shape[1], device=chosen.device)
        valid = valid.to(chosen.device)
        there = ((chosen[:, None] == places) & valid).any(1) | (chosen == ALL_PLACEMENTS) | ~valid.any(1)
        if not bool(there.all()):
            row = int((~there).nonzero()[0])
            raise ValueError(
                f"{path}/placement = {int(chosen[row])}: image {int(batch['image_id'][row])} has no such "
                "placement, so that no patch would be there; leave out such images, or take -1 for all "
                "placements"
            )


def _check_number(stage: Stage, field: str, number: float) -> None:
    """Check a sampled number by the rules of the setting that has the name of its field."""
    setting = getattr(stage.config, field, None)
    if field == _OPACITY:
        check_number(field, number, 0.0, 1.0)
    elif isinstance(setting, Range):
        dataclasses.replace(stage.config, **{field: Range(number, number)})
    elif isinstance(setting, float):
        dataclasses.replace(stage.config, **{field: number})

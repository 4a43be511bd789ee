"""Views of a batch: images, scalars and histograms of every stage, with the patch and without."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fpatch.core.tree import device_of, to_device
from fpatch.core.types import Batch, Params, Sample, Values
from fpatch.evaluation.conditions import PATCH
from fpatch.graph.node import Node
from fpatch.graph.pipeline import Pipeline
from fpatch.graph.samples import control

_MOST_DRAWN = 4
"""The most rows that a drawing draws, the first of each image."""


class StageViews(NamedTuple):
    """The views of a batch.

    Attributes:
        phase: The phase of the pipeline.
        shown: Views of the stages: images [c, h, w], scalars, and arrays [n] for histograms.
        patched: All values with the patch, without pictures.
        without: All values with every opacity 0, likewise.
        failed: The errors of drawings, by path.
    """

    phase: str
    shown: dict[str, Tensor]
    patched: Values
    without: Values
    failed: dict[str, Exception]


def view_stages(
    pipeline: Pipeline, patch_params: Params, sample: Sample, batch: Batch, phase: str
) -> StageViews:
    """Call the `show` of every stage with the values it reads and writes, with the patch and without.

    Where the pipeline makes no patch, both are the same, and no view is called that of the patch.

    The pipeline runs on the device of the parameters. The views are on the host. Drawings draw the first row
    of each of the first four images. Their errors are returned, and leave the other views as they are.

    Args:
        pipeline: The pipeline of the phase.
        patch_params: The trained parameters.
        sample: The samples of the rows [b, ...].
        batch: The same rows.
        phase: The name of the phase.
    """
    shown: dict[str, Tensor] = {}
    patched, without = dict(batch), dict(batch)
    device = device_of(patch_params)
    given = to_device(batch, device)
    drawings = {path: n for path, n in pipeline.items() if n.stage.definition.role == "drawing"}
    measured = pipeline.without(*drawings) if drawings else pipeline
    with torch.no_grad():
        traces = [
            to_device(measured.trace(patch_params, to_device(drawn, device), given), "cpu")
            for drawn in (sample, *([control(sample)] if pipeline.parameterizations else []))
        ]
    with_patch, with_none = traces[0], traces[-1]
    for path, n in measured.items():
        patched.update(with_patch[path])
        without.update(with_none[path])
        shown |= _show(path, n, patched, without)
    drawn, failed = _draw(drawings, patched, without)
    if not pipeline.parameterizations:
        shown = {name: value for name, value in shown.items() if name.rpartition("/")[2] != PATCH}
    return StageViews(phase, shown | drawn, patched, without, failed)


def _show(path: str, n: Node, patched: Values, without: Values) -> dict[str, Tensor]:
    """Return the views of one node."""
    if n.stage.definition.show is None:
        return {}
    names = {**n.reads, **n.writes}
    views = [{own: v[r] for own, r in names.items() if r in v} for v in (patched, without)]
    found = n.stage.definition.show(n.stage.config, *views)
    return {f"{path}/{name}": torch.as_tensor(value) for name, value in found.items()}


def _draw(
    drawings: Mapping[str, Node], patched: Values, without: Values
) -> tuple[dict[str, Tensor], dict[str, Exception]]:
    """Return the views of drawings for a few rows, and the errors of those that fail."""
    shown: dict[str, Tensor] = {}
    failed: dict[str, Exception] = {}
    if drawings:
        rows = _first_of_images(patched["image_id"])
        few = [_take(values, rows, len(patched["image_id"])) for values in (patched, without)]
    for path, n in drawings.items():
        try:
            for values in few:
                written = n.stage.written({}, {}, n.inputs(values))
                values.update({n.writes[own]: value for own, value in written.items()})
            shown |= _show(path, n, *few)
        except Exception as error:  # of a function of the user
            failed[path] = error
    return shown, failed


def _first_of_images(image_id: Tensor) -> list[int]:
    """Return the first row of each of the first images."""
    first = {number: row for row, number in reversed(list(enumerate(image_id.tolist())))}
    return sorted(first.values())[:_MOST_DRAWN]


def _take(value: Any, rows: list[int], count: int) -> Any:
    """Return rows of all tensors with an axis of rows; patches that all rows share stay."""
    if isinstance(value, Mapping):
        shared = ("patch", "masks")
        return {
            name: {k: p if p.ndim < 4 else p[rows] for k, p in part.items()}
            if name in shared and isinstance(part, Mapping)
            else _take(part, rows, count)
            for name, part in value.items()
        }
    return value[rows] if isinstance(value, Tensor) and value.ndim and len(value) == count else value

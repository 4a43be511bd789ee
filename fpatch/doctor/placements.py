"""Judgements on the training rows: objects and placements that they lack, and the form of the places."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from fpatch.data import TargetSet
from fpatch.doctor.findings import Finding
from fpatch.doctor.observations import is_placed
from fpatch.graph.pipeline import Pipeline
from fpatch.ops.geometry import quad_bounds

ASPECTS = (0.67, 1.5)
"""A place is of another form than its patch if the ratio of their aspects is outside of these."""

KEEP_ASPECT = ("implant.rectangle", "implant.fixed_ratio")
"""Implants that keep the form of the patch in every place."""


class RowFacts(NamedTuple):
    """Images of the training split that lack something.

    Attributes:
        images: The images of the split.
        without_object: The images without an object; None if no objects are known.
        without_patch: The images without a placement, by patch.
    """

    images: int
    without_object: int | None
    without_patch: dict[str, int]

    def __str__(self) -> str:
        objects = [] if self.without_object is None else [f"{self.without_object} without an object"]
        patches = [f"{n} without a place of {name!r}" for name, n in self.without_patch.items()]
        return ", ".join([str(self.images), *objects, *patches])


def count_rows(dataset: TargetSet) -> RowFacts:
    """Count the images of a split that lack an object, or a placement of a patch.

    Example:
        >>> import tempfile
        >>> from fpatch.demo.tiny import tiny_study
        >>> from fpatch.doctor.placements import count_rows
        >>> count_rows(tiny_study(tempfile.mkdtemp()).data.open().split("train"))
        RowFacts(images=2, without_object=0, without_patch={'tag': 0})
    """
    tables = {name: table[dataset.image_ids] for name, table in dataset.tables.items()}
    lacking = int((~tables["box_valid"].any(-1)).sum()) if "box_valid" in tables else None
    patches = {name: int((~is_placed(tables, i)).sum()) for i, name in enumerate(dataset.names)}
    return RowFacts(len(dataset), lacking, patches)


def judge_aspects(
    dataset: TargetSet, pipeline: Pipeline, sizes: Mapping[str, tuple[int, int]]
) -> Iterator[Finding]:
    """Warn about places that stretch a patch, by the median over the training images.

    Args:
        dataset: The training images.
        pipeline: The pipeline of training.
        sizes: Height and width of each patch in its own pixels.
    """
    implants = [(p, n) for p, n in pipeline.items() if "opacity" in n.stage.definition.fields]
    stretching = [p for p, n in implants if n.stage.definition.name not in KEEP_ASPECT]
    if not stretching:
        return
    upright = pipeline[stretching[0]].stage.definition.name == "implant.fill_box"
    tables = {name: table[dataset.image_ids] for name, table in dataset.tables.items()}
    for index, name in enumerate(dataset.names):
        quads = tables["quads"][tables["quad_valid"] & (tables["quad_patch"] == index)]
        if not len(quads) or name not in sizes:
            continue
        place, (height, width) = float(aspects_of(quads, upright).median()), sizes[name]
        ratio = place / (width / height)
        if not ASPECTS[0] <= ratio <= ASPECTS[1]:
            side = "wider" if ratio > 1 else "narrower"
            what = (
                f"the places of the patch {name!r} are {place:.2f} times as wide as high (median), and the "
                f"patch {width / height:.2f} times: it is shown {max(ratio, 1 / ratio):.1f} times {side}; "
                f"give it a shape such as {_shape(height, width, place)}, or correct the corners"
            )
            yield Finding("warning", stretching[0], what)


def aspects_of(quads: Tensor, upright: bool) -> Tensor:
    """Return width over height of quads [n, 4, 2], or of the upright boxes around them.

    Example:
        >>> import torch
        >>> from fpatch.doctor.placements import aspects_of
        >>> aspects_of(torch.tensor([[[0.0, 0.0], [8.0, 0.0], [8.0, 4.0], [0.0, 4.0]]]), upright=False)
        tensor([2.])
    """
    if upright:
        x0, y0, x1, y1 = quad_bounds(quads).unbind(-1)
        return (x1 - x0) / (y1 - y0)
    top, right, bottom, left = (quads.roll(-1, dims=1) - quads).norm(dim=-1).unbind(-1)
    return (top + bottom) / (right + left)


def _shape(height: int, width: int, aspect: float) -> list[int]:
    """Return a shape [3, h, w] of the same area and another aspect."""
    area = torch.tensor(float(height * width))
    return [3, round(float((area / aspect).sqrt())), round(float((area * aspect).sqrt()))]

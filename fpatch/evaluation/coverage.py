"""How much of an image, and of its objects, each patch covers."""

import dataclasses
from collections.abc import Iterator, Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fpatch.core.types import Params, Sample, Values
from fpatch.graph.names import available_names
from fpatch.graph.node import Node
from fpatch.graph.pipeline import Pipeline

IMAGE, OBJECT = "covered_image_", "covered_object_"
"""Beginnings of the columns; the name of the patch follows."""


def covered_shares(
    pipeline: Pipeline, patch_params: Params, sample: Sample, values: Values
) -> dict[str, Float[Tensor, " b"]]:
    """Measure the share of the image, and of the object most covered, that each patch covers, by column.

    Each implanter draws a white patch on a black scene, so that opacity, masks, and patches on top of others
    count, also those that a later implanter draws over it. Shares are of the scene and the boxes as the last
    implanter reads them. Boxes are rounded to whole pixels. Without boxes there are no shares of objects. A
    patch has the sum, at most 1, where a stage moves the image between two implanters, or they draw into two
    images.

    Args:
        pipeline: The pipeline without parameterizations.
        patch_params: The parameters, for nodes that read some.
        sample: The samples of the rows.
        values: The batch, and the patches.
    """
    drawn: dict[str, dict[str, Tensor]] = {}  # what the patches cover in an image, by its name
    shares: dict[str, dict[str, Tensor]] = {}  # of each implanter that no later one draws over
    writers: dict[str, str] = {}
    for path, n in pipeline.items():
        if not _is_implanter(n):
            moved = n.stage.definition.traits.geometric
            for name in set(n.writes.values()) & set(drawn):
                if moved or name not in n.reads.values():
                    del drawn[name], writers[name]
            continue
        seen, scene = _values_at(pipeline, path, patch_params, sample, values), n.reads["scene"]
        shares.pop(writers.pop(scene, ""), None)
        made = dict(_draw_masks(n, sample[path], seen, drawn.pop(scene, {})))  # type: ignore[arg-type]
        drawn[n.writes["image"]], writers[n.writes["image"]] = made, path
        shares[path] = {c: share for name, mask in made.items() for c, share in _shares(name, mask, seen)}
    columns = dict.fromkeys(column for found in shares.values() for column in found)
    sums = {c: sum(found[c] for found in shares.values() if c in found) for c in columns}
    return {column: torch.as_tensor(total).clamp(max=1.0).float() for column, total in sums.items()}


def _shares(name: str, mask: Tensor, seen: Values) -> Iterator[tuple[str, Tensor]]:
    """Yield the columns of a patch from the share [b, h, w] of every pixel that it covers."""
    integral = torch.nn.functional.pad(mask.double().cumsum(-1).cumsum(-2), (1, 0, 1, 0))
    yield IMAGE + name, integral[:, -1, -1] / mask[0].numel()
    if "boxes" in seen and "box_valid" in seen:
        yield OBJECT + name, _largest_share(integral, seen["boxes"], seen["box_valid"])


def _is_implanter(n: Node) -> bool:
    d = n.stage.definition
    return {"scene", "patch"} <= set(d.reads) and "opacity" in d.fields and "image" in d.writes


def _values_at(pipeline: Pipeline, path: str, patch_params: Params, sample: Sample, values: Values) -> Values:
    """Return what a node reads, and the boxes there, under the names of the pipeline."""
    earlier = list(pipeline)[: list(pipeline).index(path)]
    if not earlier:
        return values
    before = pipeline.upto(earlier[-1])
    there = available_names(before, values)
    names = dict.fromkeys((*pipeline[path].reads.values(), "boxes", "box_valid"))
    return before.apply(patch_params, sample, values, [name for name in names if name in there])


def _draw_masks(
    n: Node, sample: Mapping[str, Tensor], seen: Values, below: Mapping[str, Tensor]
) -> Iterator[tuple[str, Tensor]]:
    """Yield the share [b, h, w] of every pixel that each patch covers, over those that it covered `below`."""
    inputs, stage = n.inputs(seen), n.stage
    if getattr(stage.config, "match_brightness", False):
        config = dataclasses.replace(stage.config, match_brightness=False)  # type: ignore[type-var]
        stage = dataclasses.replace(stage, config=config)
    black = torch.zeros_like(inputs["scene"])
    for name in dict.fromkeys((*inputs["patch"], *below)):
        patch = {other: torch.full_like(p, float(other == name)) for other, p in inputs["patch"].items()}
        scene = below[name][:, None].expand_as(black).contiguous() if name in below else black
        image = stage.written({}, sample, inputs | {"scene": scene, "patch": patch})["image"]
        yield name, image[:, 0]


def _largest_share(
    integral: Float[Tensor, "b h1 w1"], boxes: Float[Tensor, "b m 4"], valid: Bool[Tensor, "b m"]
) -> Float[Tensor, " b"]:
    """Return the largest covered share of a valid box in each row, 0 without one."""
    height, width = (side - 1 for side in integral.shape[1:])
    boxes = torch.where(valid[..., None], boxes.to(integral.device), 0.0).round().long()
    x0, x1 = (boxes[..., i].clamp(0, width) for i in (0, 2))
    y0, y1 = (boxes[..., i].clamp(0, height) for i in (1, 3))
    row = torch.arange(len(boxes), device=integral.device)[:, None]
    inside = integral[row, y1, x1] - integral[row, y0, x1] - integral[row, y1, x0] + integral[row, y0, x0]
    return (inside / ((x1 - x0) * (y1 - y0)).clamp(min=1)).amax(-1)

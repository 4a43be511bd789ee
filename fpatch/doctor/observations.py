"""The doctor's observations: a batch sent through every stage, with its gradient and its control."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import optree
import torch
from torch import Tensor

from fpatch.core.types import Batch, Sample, Values
from fpatch.data import TargetSet
from fpatch.graph.pipeline import Pipeline
from fpatch.graph.samples import control
from fpatch.optim.objective import Loss, Objective
from fpatch.optim.severed import Severed, find_severed, terms_of_victims
from fpatch.study.setup import Setup

VISIBLE = 1 / 510
"""Half a step of 8 bits: smaller differences between two images count as none."""
SATURATED_FRAC = 0.5
"""A stage that leaves a larger share of an image black or white gives a warning."""
ALL_SATURATED_FRAC = 0.95
"""A larger share black or white, in every row, hides the object."""


Trace = Mapping[str, Mapping[str, Any]]


class StageFacts(NamedTuple):
    """Measurements at one node over the rows of the batch.

    Attributes:
        writes: The names that it writes.
        gradient: The norm of the gradient of the loss in its outputs; NaN without one, or if it is not a
            number.
        delta: The mean absolute difference that the patch makes to its outputs.
        covered: The median share of the pixels that the patch changes, for images; else NaN.
        clipped: The share of their values that are 0 or 1; else NaN.
    """

    writes: tuple[str, ...]
    gradient: float
    delta: float
    covered: float
    clipped: float


class Views(NamedTuple):
    """The pixels and gradients of every patch.

    Attributes:
        pipeline: The pipeline of the training phase.
        dataset: The training images.
        values: The values of the batch and of all nodes before the first implant.
        batch: The examined rows.
        implants: Paths of the nodes that place patches.
        pictures: Paths of the nodes that write the image, in order.
        shown: By patch and path of a written image, the pixels [b, h, w] that differ with and without this
            patch.
        every: The same for all patches together.
        gradients: Those of the terms that read a victim; see `Followed.learned`.
    """

    pipeline: Pipeline
    dataset: TargetSet
    values: Values
    batch: Batch
    implants: list[str]
    pictures: list[str]
    shown: dict[str, dict[str, Tensor]]
    every: dict[str, Tensor]
    gradients: Mapping[str, Tensor]

    def gradient(self, name: str, path: str) -> float:
        """Return the norm of the gradient in a node's image, over the pixels that a patch changes."""
        whole = self.gradients.get(f"{path}/image")
        if whole is None:
            return 0.0
        return float((whole.double() * self.shown[name][path][:, None]).norm())


class Saturation(NamedTuple):
    """The share of an image without a patch that is black or white before and after a stage.

    Attributes:
        was: The share before the stage, mean over rows.
        now: The share after the stage, mean over rows.
        everywhere: True if nearly all of every row is black or white after the stage.
    """

    was: float
    now: float
    everywhere: bool


class Followed(NamedTuple):
    """The rows of a batch followed through every node, and the gradient back.

    Attributes:
        patched: The values with the patch, by path and name.
        without: The values without it.
        loss: The weighted loss and its terms.
        gradients: Gradients of the loss by "path/name" of a node's outputs and by "params/name".
        learned: The same of the terms that read a victim; of all terms if none does.
        severed: The terms whose gradient ends before the patch.
    """

    patched: Trace
    without: Trace
    loss: Loss
    gradients: dict[str, Tensor]
    learned: dict[str, Tensor]
    severed: tuple[Severed, ...]


def follow(parts: Setup, sample: Sample, batch: Batch) -> Followed:
    """Run every node with the patch and without, and differentiate the loss back through them."""
    objective = parts.objective
    pipeline = objective.pipeline
    leaves = {n: p.detach().requires_grad_() for n, p in parts.initial.params.items()}
    trace = pipeline.trace({**parts.initial.fixed, **leaves}, sample, batch)
    terms = {n: t for written in trace.values() for n, t in written.items() if n in pipeline.terms}
    loss = objective.weigh(terms)
    places: dict[str, Tensor] = {f"params/{n}": leaf for n, leaf in leaves.items()}
    for path, written in trace.items():
        for name, t in _tensors(written).items():
            if t.requires_grad and t.is_floating_point():
                places[f"{path}/{name}"] = t
    gradients = _differentiate(loss.value, places)
    asking = {name: objective.weights[name] for name in terms_of_victims(objective)}
    learned = gradients
    if asking and any(w for n, w in objective.weights.items() if n not in asking):
        learned = _differentiate(Objective(pipeline, asking).weigh(terms).value, places)
    severed = tuple(find_severed(objective, trace, leaves, batch))
    patched = optree.tree_map(lambda t: t.detach(), trace)  # type: ignore[arg-type]
    with torch.no_grad():
        without = pipeline.trace(parts.initial.all_params, control(sample), batch)
    return Followed(patched, without, Loss(loss.value.detach(), terms), gradients, learned, severed)  # type: ignore[arg-type]


def _differentiate(value: Tensor, places: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the gradients of a number in tensors by name, zeros where it does not depend on one."""
    gradients = {n: torch.zeros_like(t) for n, t in places.items()}
    if value.requires_grad:
        found = torch.autograd.grad(value, list(places.values()), allow_unused=True, retain_graph=True)
        gradients |= {n: g for n, g in zip(places, found, strict=True) if g is not None}
    return gradients


def measure_stage(
    path: str, patched: Trace, without: Trace, gradients: Mapping[str, Tensor], pipeline: Pipeline
) -> StageFacts:
    """Summarize one node from the values and gradients of `follow`."""
    after, before = _tensors(patched[path]), _tensors(without[path])
    differences = [
        (after[n].double() - before[n].double()).abs().nan_to_num().mean()
        for n in after
        if after[n].is_floating_point() and after[n].shape == before[n].shape and after[n].numel()
    ]
    own = [
        g for n, g in gradients.items() if n.startswith(f"{path}/") and n.removeprefix(f"{path}/") in after
    ]
    covered = clipped = float("nan")
    if "image" in after:
        changed = (after["image"] != before["image"]).any(1)
        at_edge = ((after["image"] <= 0) | (after["image"] >= 1)).float().mean(1)
        covered = float(changed.flatten(1).float().mean(1).median())
        clipped = float((at_edge * changed).sum() / changed.sum().clamp(min=1))
    return StageFacts(
        writes=tuple(pipeline[path].writes.values()),
        gradient=float(torch.stack([g.double().square().sum() for g in own]).sum().sqrt())
        if own
        else float("nan"),
        delta=float(torch.stack(differences).mean()) if differences else float("nan"),
        covered=covered,
        clipped=clipped,
    )


def view_patches(
    parts: Setup,
    sample: Sample,
    batch: Batch,
    patched: Trace,
    without: Trace,
    gradients: Mapping[str, Tensor],
) -> Views:
    """Leave out one patch after another, and find the pixels that change."""
    pipeline, names = parts.objective.pipeline, parts.dataset.names
    pictures = [p for p, written in patched.items() if "image" in written]
    implants = [p for p in pictures if "opacity" in pipeline[p].stage.definition.fields]
    values: Values = dict(batch)
    for path in list(pipeline)[: list(pipeline).index(implants[0])] if implants else ():
        values.update(patched[path])
    shown = {}
    for index, name in enumerate(names):
        lacking = without
        if len(names) > 1 and pictures:
            with torch.no_grad():
                lacking = pipeline.upto(pictures[-1]).trace(
                    parts.initial.all_params, _leave_out(pipeline, sample, batch, index), batch
                )
        shown[name] = {p: _differ(patched[p]["image"], lacking[p]["image"]) for p in pictures}
    every = {p: _differ(patched[p]["image"], without[p]["image"]) for p in pictures}
    return Views(pipeline, parts.dataset, values, batch, implants, pictures, shown, every, gradients)


def _leave_out(pipeline: Pipeline, sample: Sample, batch: Batch, patch: int) -> Sample:
    """Set the opacity of a sample to 0 where a placement shows this patch."""
    changed = {}
    for path, fields in sample.items():
        changed[path] = dict(fields)
        if "opacity" in fields:
            counted = batch.get(pipeline[path].reads.get("quad_patch", ""))
            kept = counted != patch if counted is not None else 0.0
            changed[path]["opacity"] = fields["opacity"] * kept
    return changed


def find_saturated(without: Trace, batch: Batch) -> dict[str, Saturation]:
    """Find the stages that turn most of an image black or white, by path."""
    found: dict[str, Saturation] = {}
    was = _saturated_frac(batch["scene"])
    for path, written in without.items():
        picture = written.get("image", written.get("scene"))
        if picture is not None:
            now = _saturated_frac(picture)
            if float(now.mean()) > max(SATURATED_FRAC, float(was.mean()) + 0.2):
                everywhere = bool((now > ALL_SATURATED_FRAC).all())
                found[path] = Saturation(float(was.mean()), float(now.mean()), everywhere)
            was = now
    return found


def _saturated_frac(picture: Tensor) -> Tensor:
    return is_saturated(picture).float().flatten(1).mean(1)


def is_saturated(picture: Tensor) -> Tensor:
    """Mark the values that are black or white, to half a level of 8 bits."""
    return (picture <= VISIBLE) | (picture >= 1 - VISIBLE)


def is_placed(values: Mapping[str, Any], patch: int) -> Tensor:
    """Return which rows have a placement of a patch, [b]."""
    return (values["quad_valid"] & (values["quad_patch"] == patch)).any(-1)


def count_pixels(shown: Tensor) -> Tensor:
    """Count the pixels [b] of a map [b, h, w]."""
    return shown.flatten(1).sum(1)


def count_placed(views: Views, name: str) -> Tensor:
    """Count the pixels [b] of a patch that the implants bring into the image."""
    return torch.stack([count_pixels(views.shown[name][p]) for p in views.implants]).amax(0)


def _differ(one: Tensor, other: Tensor) -> Tensor:
    """Return the pixels [b, h, w] in which two images of 8 bits would differ; NaN is a difference."""
    return ~((one - other).abs() <= VISIBLE).all(1)


def _tensors(tree: Any) -> dict[str, Tensor]:
    paths, leaves, _ = optree.tree_flatten_with_path(tree)
    return {"/".join(map(str, p)): t for p, t in zip(paths, leaves, strict=True)}

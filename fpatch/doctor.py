"""Why a patch does nothing: a study looked at on one batch of its training photographs.

The patch is sent through every stage, and the control too (the same samples at opacity 0), and the gradient
of the loss is followed back through every stage. What a person would look for by hand stands in one
report: where the gradient is lost, how many pixels the patch reaches, how many are clipped, which loss sees
it, whether the victim sees the object at all, and what the stages' own checks say. What stops a patch is
judged for each patch by itself, and said once: the first cause, without what follows from it.
"""

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import optree
import torch
from torch import Tensor

from fpatch import random
from fpatch.data import TargetSet
from fpatch.evaluation import blocks
from fpatch.geometry import quad_bounds
from fpatch.graph import Pipeline, control
from fpatch.loop import make_step
from fpatch.objective import Loss
from fpatch.parts import Parts, make_parts
from fpatch.run_evaluation import evaluation_key
from fpatch.stage import ALL
from fpatch.study import Study
from fpatch.types import Batch, Sample, Values

VISIBLE = 1 / 510
"""Half a step of 8 bits: a smaller difference between two pictures is none."""
CLIPPED_FRAC = 0.5
"""More than this share of the patch's values at 0 or 1 is worth a warning: no gradient passes them."""
COVERED_FRAC = 0.005
"""A patch that covers less than this share of a picture (median) is worth a warning."""
KEPT_FRAC = 0.5
"""A stage after which fewer of the patch's pixels show is worth a warning."""
LOST_FRAC = 0.01
"""A stage after which no row shows more than this share of a patch's pixels is the end of that patch."""
BURNT_FRAC = 0.5
"""More than this share of a picture black or white, by a stage, is worth a warning."""
ALL_BURNT_FRAC = 0.95
"""More than this share in every row leaves nothing to see."""
MAX_SHOWN = 3
"""Places that a finding lists."""
FOUND_FRAC = 0.5
"""A victim that is right in fewer rows than this, without a patch, is worth a warning."""


class Finding(NamedTuple):
    """Something that a person should know.

    Attributes:
        level: "error" if the patch cannot learn, or nothing can be measured, as things stand.
        where: The node or the setting.
        what: What was found, and what to do.
    """

    level: Literal["error", "warning"]
    where: str
    what: str


class StageFacts(NamedTuple):
    """What was measured at one node, over the rows of the batch.

    Attributes:
        writes: The names that it writes.
        gradient: Norm of the gradient of the loss in what it writes; NaN where none is needed or it is no
            number.
        delta: Mean absolute difference that the patch makes to what it writes.
        covered: Median share of the pixels that the patch changes, for pictures; else NaN.
        clipped: Share of their values that are 0 or 1; else NaN.
    """

    writes: tuple[str, ...]
    gradient: float
    delta: float
    covered: float
    clipped: float


class Diagnosis(NamedTuple):
    """The report on a study.

    Attributes:
        findings: Errors first.
        stages: What was measured, by path of the training phase, in order.
    """

    findings: tuple[Finding, ...]
    stages: dict[str, StageFacts]

    @property
    def can_learn(self) -> bool:
        """Whether nothing was found that stops the patch from learning."""
        return all(f.level != "error" for f in self.findings)


def examine(study: Study, num_rows: int = 16) -> Diagnosis:
    """Look for every reason why the patch of a study would not learn, or could not be measured.

    Args:
        study: What would be trained.
        num_rows: Photographs in the test batch, and rows of each evaluated split that are looked at; the
            stages' own checks see all training photographs, so many at a time.

    Returns:
        All findings at once, and the table of what was measured stage by stage.

    Raises:
        ValueError: If there is nothing to run: the data or the pipeline cannot be made at all.
    """
    study = dataclasses.replace(study, device="cpu")  # it reads what it finds, a number at a time
    parts = make_parts(study)
    dataset = parts.dataset.split(study.data.train)
    batch = dataset.batch(_choose(dataset, num_rows))
    key = random.fold_in(random.fold_in(parts.initial.key, "train"), 0)
    findings = list(_judge_weights(study))
    stages: dict[str, StageFacts] = {}
    burnt: dict[str, dict[str, Burnt]] = {}
    pipeline = parts.objective.pipeline
    try:
        sample = pipeline.sample(key, batch)
        patched, without, loss, gradients = _follow(study, parts, sample, batch)
    except (ValueError, RuntimeError, TypeError, KeyError) as error:
        findings.append(Finding("error", "train", _sentence(error)))
    else:
        stages = {path: _measure(path, patched, without, gradients, pipeline) for path in pipeline}
        burnt["train"] = _find_burnt(without, batch)
        views = _view(parts, sample, batch, patched, without, gradients)
        causes = [*_judge_patches(study, views, stages, burnt["train"])]
        findings += [*causes, *_judge_numbers(stages, loss, gradients)]
        ended = {path for path, b in burnt["train"].items() if b.everywhere}
        if not causes and not ended:
            findings += _judge_terms(study, patched, without)
        findings += _judge_pictures(views, stages, {f.where for f in causes} | ended)
        findings += _judge_step(study, parts, batch, gradients)
        findings += _ask_stages(parts, dataset, key, num_rows)
    for phase, split in (("validation", study.data.validation), ("test", study.data.test)):
        if split is not None:
            findings += _judge_victim(study, parts, parts.dataset.split(split), phase, num_rows, burnt)
    return Diagnosis(tuple(_merge([*_judge_burnt(burnt), *findings])), stages)


def _choose(dataset: TargetSet, num_rows: int) -> list[int]:
    """The first photographs, and where they lack a patch, the first one that has it."""
    chosen = dataset.image_ids[:num_rows].tolist()
    for patch in range(len(dataset.names)):
        having = dataset.image_ids[_placed(dataset.tables, patch)[dataset.image_ids]].tolist()
        if having and not set(having) & set(chosen):
            chosen.append(having[0])
    return chosen


def _placed(values: Mapping[str, Any], patch: int) -> Tensor:
    """Which rows have a placement of a patch, [b]."""
    return (values["quad_valid"] & (values["quad_patch"] == patch)).any(-1)


def _merge(findings: Iterable[Finding]) -> list[Finding]:
    """Errors first, and what is said of several places once."""
    places: dict[tuple[str, str], dict[str, None]] = {}
    for level, where, what in findings:
        places.setdefault((level, what), {})[where] = None
    merged = [Finding(level, ", ".join(where), what) for (level, what), where in places.items()]  # type: ignore[arg-type]
    return sorted(merged, key=lambda f: f.level)


Trace = Mapping[str, Mapping[str, Any]]


def _follow(
    study: Study, parts: Parts, sample: Sample, batch: Batch
) -> tuple[Trace, Trace, Loss, dict[str, Tensor]]:
    """What every node writes with the patch and without, the loss, and its gradient.

    Returns:
        The gradient by "path/name" of what a node wrote, and by "params/name".
    """
    pipeline = parts.objective.pipeline
    leaves = {n: p.detach().requires_grad_() for n, p in parts.initial.params.items()}
    trace = pipeline.trace(leaves, sample, batch)
    terms = {n: t for written in trace.values() for n, t in written.items() if n in pipeline.terms}
    weighted = [w * terms[n].mean() for n, w in study.objective.weights.items()]
    value = torch.stack(weighted).sum()
    places: dict[str, Tensor] = {f"params/{n}": leaf for n, leaf in leaves.items()}
    for path, written in trace.items():
        for name, t in _tensors(written).items():
            if t.requires_grad and t.is_floating_point():
                places[f"{path}/{name}"] = t
    gradients = {n: torch.zeros_like(t) for n, t in places.items()}
    if value.requires_grad:
        found = torch.autograd.grad(value, list(places.values()), allow_unused=True)
        gradients |= {n: g for n, g in zip(places, found, strict=True) if g is not None}
    patched = optree.tree_map(lambda t: t.detach(), trace)  # type: ignore[arg-type]
    with torch.no_grad():
        without = pipeline.trace(parts.initial.params, control(sample), batch)
    return patched, without, Loss(value.detach(), terms), gradients  # type: ignore[return-value]


def _tensors(tree: Any) -> dict[str, Tensor]:
    paths, leaves, _ = optree.tree_flatten_with_path(tree)
    return {"/".join(map(str, p)): t for p, t in zip(paths, leaves, strict=True)}


def _measure(
    path: str, patched: Trace, without: Trace, gradients: Mapping[str, Tensor], pipeline: Pipeline
) -> StageFacts:
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


class Views(NamedTuple):
    """What there is to see of every patch.

    Attributes:
        pipeline: Of the training phase.
        dataset: The training photographs.
        values: What the batch and all nodes up to the first implant hold, and that node's inputs.
        batch: What was looked at.
        implants: Paths of the nodes that place patches.
        pictures: Paths of the nodes that write the image, in order.
        shown: By patch and path of a picture, the pixels [b, h, w] that differ with this patch and without.
        every: The same for all patches together.
        gradients: As `_follow` returns them.
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
        """Norm of the gradient in what a node writes, in the pixels where a patch shows."""
        whole = self.gradients.get(f"{path}/image")
        if whole is None:
            return 0.0
        return float((whole.double() * self.shown[name][path][:, None]).norm())


def _view(
    parts: Parts,
    sample: Sample,
    batch: Batch,
    patched: Trace,
    without: Trace,
    gradients: Mapping[str, Tensor],
) -> Views:
    """Leave out one patch after the other, and see which pixels change."""
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
                    parts.initial.params, _leave_out(pipeline, sample, batch, index), batch
                )
        shown[name] = {p: _differ(patched[p]["image"], lacking[p]["image"]) for p in pictures}
    every = {p: _differ(patched[p]["image"], without[p]["image"]) for p in pictures}
    return Views(pipeline, parts.dataset, values, batch, implants, pictures, shown, every, gradients)


def _leave_out(pipeline: Pipeline, sample: Sample, batch: Batch, patch: int) -> Sample:
    """The same sample at opacity 0 where a placement shows this patch."""
    changed = {}
    for path, fields in sample.items():
        changed[path] = dict(fields)
        if "opacity" in fields:
            counted = batch.get(pipeline[path].reads.get("quad_patch", ""))
            kept = counted != patch if counted is not None else 0.0
            changed[path]["opacity"] = fields["opacity"] * kept
    return changed


def _differ(one: Tensor, other: Tensor) -> Tensor:
    """The pixels [b, h, w] in which a camera could tell two pictures apart; NaN is a difference."""
    return ~((one - other).abs() <= VISIBLE).all(1)


def _count(shown: Tensor) -> Tensor:
    return shown.flatten(1).sum(1)


def _count_placed(views: Views, name: str) -> Tensor:
    """How many pixels [b] of a patch the implants bring into the picture."""
    return torch.stack([_count(views.shown[name][p]) for p in views.implants]).amax(0)


def _judge_weights(study: Study) -> Iterator[Finding]:
    for name, weight in study.objective.weights.items():
        if weight < 0:
            what = f"{name} = {weight:g}: training makes a term of negative weight larger; is that meant?"
            yield Finding("warning", "objective.weights", what)


def _judge_patches(
    study: Study, views: Views, stages: Mapping[str, StageFacts], burnt: Mapping[str, "Burnt"]
) -> Iterator[Finding]:
    """What stops each patch: the first cause of each, patches with the same one together."""
    if blind := _find_blind(study, views):
        yield blind
        return
    causes: dict[tuple[str, str], list[str]] = {}
    for index, name in enumerate(views.dataset.names):
        cause = _find_cause(index, name, views, stages)
        if cause is not None and not (cause[0] in burnt and burnt[cause[0]].everywhere):
            causes.setdefault(cause, []).append(f"patch {name!r}")
    for (path, what), names in causes.items():
        label = ", ".join(names)
        yield Finding("error", path, f"{label}: {what}") if path else Finding("error", label, what)


def _find_blind(study: Study, views: Views) -> Finding | None:
    """A node that looks at a picture without the patch, so that no weighted term depends on one with it."""
    blind, pipeline = [], views.pipeline
    reached: set[str] = set()
    for path, n in pipeline.items():
        reads = set(n.reads.values())
        if path in views.implants or reads & (reached | {ALL}):
            reached |= set(n.writes.values())
            continue
        reached -= set(n.writes.values())
        if "scene" in reads and "image" in reached:
            blind.append(path)
    weighted = [name for name, weight in study.objective.weights.items() if weight]
    if not blind or any(name in reached for name in weighted):
        return None
    what = (
        "it reads 'scene', the photograph without the patch, and so no weighted loss term depends on the "
        "patch; let it read 'image'"
    )
    return Finding("error", ", ".join(blind), what)


def _find_cause(
    index: int, name: str, views: Views, stages: Mapping[str, StageFacts]
) -> tuple[str, str] | None:
    """Why a patch cannot learn: the node (or "") and the reason; None if it can."""
    placed = _placed(views.batch, index)
    if not bool(placed.any()):
        what = (
            "no photograph of training has a placement of it; add rows to the placements, or leave it out of "
            "data.patches"
        )
        return "", what
    shown = views.shown[name]
    if views.implants:
        pixels = _count_placed(views, name)
        if int(pixels.sum()) < int(placed.sum()):
            return views.implants[0], _why_unseen(index, name, views, bool(pixels.any()))
    for before, path in pairwise(views.pictures):
        was, now = _count(shown[before]), _count(shown[path])
        rows = was > 0
        if bool(rows.any()) and bool((now[rows] <= LOST_FRAC * was[rows]).all()):
            what = (
                f"ends here: in none of {int(rows.sum())} photographs more than {100 * LOST_FRAC:g} % of its "
                "pixels can be told after it from a picture without it; weaken this stage"
            )
            return path, what
    for before, path in reversed([*pairwise(views.pictures)]):
        if views.gradient(name, path) > 0 and views.gradient(name, before) == 0:
            written = f"{views.gradient(name, path):.3g} in what it writes"
            return path, f"the gradient ends here: {written}, none in what it reads"
    gradient = views.gradients.get(f"params/{name}")
    if gradient is None or bool((gradient != 0).any()):
        return None
    return "", f"no gradient reaches it; {_where_lost(name, views, stages)}"


def _why_unseen(index: int, name: str, views: Views, somewhere: bool) -> str:
    n = views.pipeline[views.implants[0]]
    inputs = n.inputs(views.values)
    what = "changes less than one pixel per photograph" if somewhere else "changes no pixel of any photograph"
    mask = inputs.get("masks", {}).get(name)
    if mask is not None and not bool((mask > VISIBLE).any()):
        written = n.reads.get("masks", "masks")
        maker = next((p for p, m in views.pipeline.items() if written in m.writes.values()), "the data")
        return f"{what}: its mask is 0 or nearly 0 everywhere; correct it in {maker!r}"
    if "quads" in inputs:
        corners = inputs["quads"][inputs["quad_valid"] & (inputs["quad_patch"] == index)]
        x0, y0, x1, y1 = quad_bounds(corners).unbind(-1)
        height, width = inputs["scene"].shape[-2:]
        if bool(((x1 <= 0) | (y1 <= 0) | (x0 >= width) | (y0 >= height)).all()):
            return f"{what}: its corners lie outside every picture; correct them in the placements"
        inputs["quad_valid"] = inputs["quad_valid"] & (inputs["quad_patch"] == index)
        check = n.stage.definition.check
        if check is not None and check(n.stage.config, inputs):
            return f"{what}: it is too small; enlarge it by this stage's settings, or by its corners"
    return f"{what}: look at its corners in the placements, its mask, and what later placements hide"


def _where_lost(name: str, views: Views, stages: Mapping[str, StageFacts]) -> str:
    """The last node, from the loss backwards, that still has a gradient of this patch."""

    def reaches(path: str) -> bool:
        if path in views.pictures:
            return views.gradient(name, path) > 0
        own = views.gradients.get(f"{path}/patch/{name}")
        return bool((own != 0).any()) if own is not None else stages[path].gradient > 0

    alive = [p for p in stages if not views.pipeline[p].terms and reaches(p)]
    if not alive:
        return "not even what the losses read has one: their weights, or their inputs, do not see the patch"
    stage = views.pipeline[alive[0]].stage
    last = views.pictures[-1:]
    if any(stages[p].gradient > 0 and views.gradient(name, p) == 0 for p in last):
        return f"what {alive[0]!r} ({stage!r}) says depends on others, but not on it; move or enlarge it"
    return (
        f"it is still there in what {alive[0]!r} ({stage!r}) writes, and lost inside that stage: look at its "
        "settings, or at its input"
    )


def _judge_numbers(
    stages: dict[str, StageFacts], loss: Loss, gradients: Mapping[str, Tensor]
) -> Iterator[Finding]:
    for name, term in loss.terms.items():
        if not bool(torch.isfinite(term).all()):
            row = int((~torch.isfinite(term)).nonzero()[0])
            yield Finding(
                "error", name, f"the loss term is {float(term[row])} in row {row} of the test batch"
            )
    for name, gradient in gradients.items():
        if name.startswith("params/") and not bool(torch.isfinite(gradient).all()):
            count = int((~torch.isfinite(gradient)).sum())
            first = next((p for p in reversed(stages) if _is_bad(p, gradients)), "the parameterization")
            what = f"{count} of {gradient.numel()} gradients are not finite, from {first!r} on backwards"
            yield Finding("error", f"patch {name.removeprefix('params/')!r}", what)


def _is_bad(path: str, gradients: Mapping[str, Tensor]) -> bool:
    return any(n.startswith(f"{path}/") and not bool(torch.isfinite(g).all()) for n, g in gradients.items())


def _judge_pictures(views: Views, stages: Mapping[str, StageFacts], explained: set[str]) -> Iterator[Finding]:
    """What weakens a patch, but at the places already explained."""
    for index, name in enumerate(views.dataset.names if views.implants else ()):
        placed = _placed(views.batch, index)
        unseen = placed & (_count_placed(views, name) == 0)
        if bool(unseen.any()) and views.implants[0] not in explained:
            files = [views.dataset.paths[i].name for i in views.batch["image_id"][unseen].tolist()]
            counted = f"{len(files)} of {int(placed.sum())} photographs that have it"
            what = f"patch {name!r}: changes no pixel in {counted}: {_shorten(files)}"
            yield Finding("warning", views.implants[0], what)
    for path in views.implants:
        if 0 < stages[path].covered < COVERED_FRAC:
            share = f"{100 * stages[path].covered:.2f} %"
            yield Finding(
                "warning", path, f"the patch covers {share} of the picture (median); make it larger"
            )
    for before, path in pairwise(views.pictures):
        if path in explained:
            continue
        was, now = _count(views.every[before]), _count(views.every[path])
        kept = float((now / was)[was > 0].median()) if bool((was > 0).any()) else 1.0
        clipped = stages[path].clipped
        if kept < KEPT_FRAC:
            what = (
                f"{100 * (1 - kept):.0f} % of the pixels that the patch had changed are the same after it as "
                "without a patch; weaken it"
            )
            yield Finding("warning", path, what)
        elif clipped > max(CLIPPED_FRAC, stages[before].clipped + 0.1):
            what = (
                f"{100 * clipped:.0f} % of the patch's values are 0 or 1 after it "
                f"({100 * stages[before].clipped:.0f} % before), where no gradient passes; weaken it"
            )
            yield Finding("warning", path, what)


class Burnt(NamedTuple):
    """The share of a picture, without a patch, that is black or white before a stage and after it.

    Attributes:
        was: Before, mean of the rows.
        now: After.
        everywhere: Whether it is nearly all in every row.
    """

    was: float
    now: float
    everywhere: bool


def _find_burnt(without: Trace, batch: Batch) -> dict[str, Burnt]:
    """The stages that leave little of a picture but black and white, by path."""
    found: dict[str, Burnt] = {}
    was = _burnt_frac(batch["scene"])
    for path, written in without.items():
        picture = written.get("image", written.get("scene"))
        if picture is not None:
            now = _burnt_frac(picture)
            if float(now.mean()) > max(BURNT_FRAC, float(was.mean()) + 0.2):
                everywhere = bool((now > ALL_BURNT_FRAC).all())
                found[path] = Burnt(float(was.mean()), float(now.mean()), everywhere)
            was = now
    return found


def _burnt_frac(picture: Tensor) -> Tensor:
    return ((picture <= VISIBLE) | (picture >= 1 - VISIBLE)).float().flatten(1).mean(1)


def _judge_burnt(burnt: Mapping[str, Mapping[str, Burnt]]) -> Iterator[Finding]:
    """One finding for each stage, whatever the number of phases."""
    for path in dict.fromkeys(p for stages in burnt.values() for p in stages):
        phases = {phase: stages[path] for phase, stages in burnt.items() if path in stages}
        worst = max(phases.values(), key=lambda b: b.now)
        what = (
            f"{100 * worst.now:.0f} % of the picture is black or white after it "
            f"({100 * worst.was:.0f} % before), in {', '.join(phases)}; weaken it"
        )
        yield Finding("error" if any(b.everywhere for b in phases.values()) else "warning", path, what)


def _judge_terms(study: Study, patched: Trace, without: Trace) -> Iterator[Finding]:
    moved = {
        name: bool((term != without[path][name]).any())
        for path, written in patched.items()
        for name, term in written.items()
        if name in study.objective.weights
    }
    weighted = [n for n, w in study.objective.weights.items() if w]
    if not any(moved[n] for n in weighted):
        what = (
            f"{', '.join(weighted)}: the same with the patch and without it, in every row; give weight to a "
            "loss of what the victim says, or find out why the patch does not reach it"
        )
        yield Finding("error", "objective.weights", what)


def _judge_step(
    study: Study, parts: Parts, batch: Batch, gradients: Mapping[str, Tensor]
) -> Iterator[Finding]:
    """Take one step, and see whether the parameters that have a gradient moved."""
    pushed = [name for name in parts.initial.params if bool((gradients[f"params/{name}"] != 0).any())]
    if not pushed:
        return
    step = make_step(parts.objective, parts.optimizer, transform=study.objective.transform)
    after, _ = step(parts.initial, batch)
    for name in pushed:
        if bool((after.params[name] == parts.initial.params[name]).all()):
            what = (
                f"the first step does not move the patch {name!r} (learning rate "
                f"{study.optimizer.learning_rate:g}); raise it"
            )
            yield Finding("error", "optimizer", what)


def _ask_stages(parts: Parts, dataset: TargetSet, key: Tensor, num_rows: int) -> Iterator[Finding]:
    """Each stage's own checks, on what it reads for every photograph."""
    pipeline = parts.objective.pipeline
    asked = [path for path, n in pipeline.items() if n.stage.definition.check is not None]
    if not asked:
        return
    pipeline = pipeline.upto(asked[-1])
    found: dict[tuple[str, str], list[str]] = {}
    for part in blocks(len(dataset), num_rows):
        batch = dataset.batch(dataset.image_ids[part])
        with torch.no_grad():
            trace = pipeline.trace(parts.initial.params, pipeline.sample(key, batch), batch)
        values: Values = dict(batch)
        for path, n in pipeline.items():
            d = n.stage.definition
            if d.check is not None:
                for rule, places in d.check(n.stage.config, n.inputs(values)).items():
                    found.setdefault((path, rule), []).extend(places)
            values.update(trace[path])
    for (path, rule), places in found.items():
        named = [re.sub(r"^image (\d+)", lambda m: dataset.paths[int(m[1])].name, p) for p in places]
        yield Finding("warning", path, f"{rule} ({len(places)} times): {_shorten(named)}")


def _shorten(places: list[str]) -> str:
    more = f"; and {len(places) - MAX_SHOWN} more" if len(places) > MAX_SHOWN else ""
    return f"{'; '.join(places[:MAX_SHOWN])}{more}"


def _judge_victim(
    study: Study,
    parts: Parts,
    dataset: TargetSet,
    phase: str,
    num_rows: int,
    burnt: dict[str, dict[str, Burnt]],
) -> Iterator[Finding]:
    """The evaluated phase, on a few photographs without a patch; adds what it burns to `burnt`."""
    pipeline = study.pipeline.at(phase)
    batch = dataset.batch(dataset.image_ids[:num_rows])
    try:
        with torch.no_grad():
            sample = pipeline.sample(evaluation_key(study, phase), batch)
            trace = pipeline.trace(parts.initial.params, control(sample), batch)
    except (ValueError, RuntimeError, TypeError, KeyError) as error:
        yield Finding("error", phase, _sentence(error))
        return
    burnt[phase] = _find_burnt(trace, batch)
    metric = study.evaluate.metric
    right = next((written[metric] for written in trace.values() if metric in written), None)
    if right is None:
        return
    share = float(right.float().mean())
    what = f"without a patch the victim is right in {int(right.sum())} of {len(right)} photographs"
    if share == 0:
        way = f"mend {next(iter(burnt[phase]))!r} first" if burnt[phase] else "train it, or check the labels"
        yield Finding("error", phase, f"{what}: there is nothing to attack; {way}")
        return
    # what the victim can still read is not burnt everywhere
    burnt[phase] = {path: b._replace(everywhere=False) for path, b in burnt[phase].items()}
    if share < FOUND_FRAC:
        yield Finding("warning", phase, f"{what}: little is left to measure")


def _sentence(error: Exception) -> str:
    return "; ".join([str(error), *getattr(error, "__notes__", ())])

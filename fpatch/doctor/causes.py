"""Why a patch cannot learn: for each patch by itself, the first cause, without what follows from it."""

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Literal, NamedTuple

from fpatch.doctor.observations import (
    VISIBLE,
    Saturation,
    StageFacts,
    Views,
    count_pixels,
    count_placed,
    is_placed,
)
from fpatch.graph.stage import ALL
from fpatch.ops.geometry import quad_bounds
from fpatch.study.study import Study

LOST_FRAC = 0.01
"""A stage after which no row shows more than this share of a patch's pixels is the end of that patch."""


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


def judge_patches(
    study: Study, views: Views, stages: Mapping[str, StageFacts], saturated: Mapping[str, Saturation]
) -> Iterator[Finding]:
    """What stops each patch: the first cause of each, patches with the same one together."""
    if blind := _find_blind(study, views):
        yield blind
        return
    causes: dict[tuple[str, str], list[str]] = {}
    for index, name in enumerate(views.dataset.names):
        cause = _find_cause(index, name, views, stages)
        if cause is not None and not (cause[0] in saturated and saturated[cause[0]].everywhere):
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
    placed = is_placed(views.batch, index)
    if not bool(placed.any()):
        what = (
            "no photograph of training has a placement of it; add rows to the placements, or leave it out of "
            "data.patches"
        )
        return "", what
    shown = views.shown[name]
    if views.implants:
        pixels = count_placed(views, name)
        if int(pixels.sum()) < int(placed.sum()):
            return views.implants[0], _why_unseen(index, name, views, bool(pixels.any()))
    for before, path in pairwise(views.pictures):
        was, now = count_pixels(shown[before]), count_pixels(shown[path])
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

"""Causes that keep a patch from learning: the first one of each patch, without its consequences."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

from fpatch.doctor.findings import Finding
from fpatch.doctor.observations import (
    VISIBLE,
    Saturation,
    Views,
    count_pixels,
    count_placed,
    is_placed,
)
from fpatch.graph.stage import ALL
from fpatch.ops.geometry import quad_bounds
from fpatch.optim.severed import Severed
from fpatch.study.study import Study

LOST_FRAC = 0.01
"""A patch ends at a stage after which no row shows more than this share of its pixels."""


def judge_patches(
    study: Study,
    views: Views,
    saturated: Mapping[str, Saturation],
    severed: Sequence[Severed] = (),
) -> Iterator[Finding]:
    """Yield the first cause that stops each patch; patches with the same cause share a finding."""
    if blind := _find_blind(study, views):
        yield blind
        return
    detached = [s for s in severed if views.pipeline[s.where].stage.definition.role == "victim"]
    if detached:
        yield from (Finding("error", s.where, s.what) for s in detached)
        return
    causes: dict[tuple[str, str], list[str]] = {}
    for index, name in enumerate(views.dataset.names):
        cause = _find_cause(index, name, views)
        if cause is not None and not (cause[0] in saturated and saturated[cause[0]].everywhere):
            causes.setdefault(cause, []).append(f"patch {name!r}")
    if not causes:
        yield from (Finding("error", s.where, s.what) for s in severed)
    for (path, what), names in causes.items():
        label = ", ".join(names)
        yield Finding("error", path, f"{label}: {what}") if path else Finding("error", label, what)


def _find_blind(study: Study, views: Views) -> Finding | None:
    """Find nodes that read an image without the patch, if no weighted term depends on one with it."""
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
        "it reads 'scene', the image without the patch, and so no weighted loss term depends on the "
        "patch; let it read 'image'"
    )
    return Finding("error", ", ".join(blind), what)


def _find_cause(index: int, name: str, views: Views) -> tuple[str, str] | None:
    """Find why a patch cannot learn: the node (or "") and the reason; None if it can."""
    placed = is_placed(views.batch, index)
    if not bool(placed.any()):
        way = "add rows to the placements, or omit it from data.patches"
        return "", f"no training image has a placement of it; {way}"
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
                f"ends here: in none of {int(rows.sum())} images do more than {100 * LOST_FRAC:g} % of its "
                "pixels still differ from the image without it; weaken this stage"
            )
            return path, what
    for before, path in reversed([*pairwise(views.pictures)]):
        if views.gradient(name, path) > 0 and views.gradient(name, before) == 0:
            written = f"{views.gradient(name, path):.3g} in its outputs"
            return path, f"the gradient ends here: {written}, and none in its inputs"
    gradient = views.gradients.get(f"params/{name}")
    if gradient is None or bool((gradient != 0).any()):
        return None
    if (path := _find_detaching(views)) is not None:
        return (
            path,
            "the gradient ends here: its outputs do not depend on its inputs by autograd; do not detach",
        )
    return "", f"no gradient reaches it; {_where_lost(name, views)}"


def _find_detaching(views: Views) -> str | None:
    """Find the first node that reads values with a graph and writes only values without one."""
    tracked: set[str] = set()
    for path, n in views.pipeline.items():
        d, written = n.stage.definition, set(n.writes.values())
        own = {name for name in written if any(k.startswith(f"{path}/{name}") for k in views.gradients)}
        if d.traits.gradient and d.role != "metric" and not own and tracked & set(n.reads.values()):
            return path
        tracked = (tracked - written) | own
    return None


def _why_unseen(index: int, name: str, views: Views, somewhere: bool) -> str:
    n = views.pipeline[views.implants[0]]
    inputs = n.inputs(views.values)
    what = "changes less than one pixel per image" if somewhere else "changes no pixel of any image"
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
            return f"{what}: its corners lie outside every image; correct them in the placements"
        inputs["quad_valid"] = inputs["quad_valid"] & (inputs["quad_patch"] == index)
        check = n.stage.definition.check
        if check is not None and check(n.stage.config, inputs):
            return f"{what}: it is too small; enlarge it by the settings of this stage, or by its corners"
    return f"{what}: check its corners in the placements, its mask, and later placements that hide it"


def _where_lost(name: str, views: Views) -> str:
    """Name the last node, from the loss backwards, that still has a gradient of this patch."""

    def pulled(path: str) -> bool:
        own = (g for n, g in views.gradients.items() if n.startswith(f"{path}/"))
        return any(bool((g != 0).any()) for g in own)

    def reaches(path: str) -> bool:
        if path in views.pictures:
            return views.gradient(name, path) > 0
        own = views.gradients.get(f"{path}/patch/{name}")
        return bool((own != 0).any()) if own is not None else pulled(path)

    alive = [p for p in views.pipeline if not views.pipeline[p].terms and reaches(p)]
    if not alive:
        return "not even the inputs of the losses have one: check the weights and the inputs of the losses"
    stage = views.pipeline[alive[0]].stage
    last = views.pictures[-1:]
    if any(pulled(p) and views.gradient(name, p) == 0 for p in last):
        return f"the output of {alive[0]!r} ({stage!r}) depends on others, but not on it; move or enlarge it"
    return (
        f"it exists in the output of {alive[0]!r} ({stage!r}), and is lost inside that stage: check its "
        "settings and its input"
    )

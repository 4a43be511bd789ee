"""The scale of a victim's input: with which change of its images is a victim right far more often?"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fpatch.core.types import Params
from fpatch.doctor.clean import Asked, read_answers, values_before

GAINED_FRAC = 0.25
"""A change explains wrong answers if it makes at least this further share of the images right."""

RIGHT_FRAC = 0.5
"""And if it makes at least this share of them right."""

MIN_GAINED = 2
"""And if it makes at least this number of further images right."""

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and deviation of ImageNet, by which most models normalize."""

Change = Callable[[Tensor], Tensor]


class Case(NamedTuple):
    """One victim, with the rows that it is asked again.

    Attributes:
        asked: The phase and its first rows.
        victim: The path of the victim.
        metric: The study's metric.
        params: The patch parameters; the samples show none of them.
        names: The names of the classes in the data.
    """

    asked: Asked
    victim: str
    metric: str
    params: Params
    names: Sequence[str]


def _normalize(image: Tensor) -> Tensor:
    mean, std = (image.new_tensor(v)[:, None, None] for v in (MEAN, STD))
    return (image - mean) / std


def _unnormalize(image: Tensor) -> Tensor:
    mean, std = (image.new_tensor(v)[:, None, None] for v in (MEAN, STD))
    return image * std + mean


CHANGES: dict[str, tuple[Change, str]] = {
    "multiplied by 255": (
        lambda x: x * 255.0,
        "images arrive in 0..1, and it seems to divide them by 255 again",
    ),
    "divided by 255": (
        lambda x: x / 255.0,
        "images arrive in 0..1, and it seems to multiply them by 255",
    ),
    "normalized by the mean and deviation of ImageNet": (
        _normalize,
        "images arrive in 0..1, and it seems to expect normalized ones",
    ),
    "freed of the normalization of ImageNet": (
        _unnormalize,
        "it seems to normalize images, and to expect them in 0..1",
    ),
    "in the order BGR": (lambda x: x.flip(1), "images are RGB, and it seems to expect blue first"),
    "stretched to -1..1": (
        lambda x: 2.0 * x - 1.0,
        "images arrive in 0..1, and it seems to expect -1..1",
    ),
    "shrunk from -1..1 to 0..1": (
        lambda x: (x + 1.0) / 2.0,
        "it seems to stretch images to -1..1, and to expect them in 0..1",
    ),
}
"""Changes of a victim's input, each with the fault that it undoes."""


def find_scale(case: Case) -> str | None:
    """Find the change of a victim's input with which it is right far more often, and say the fault.

    The first rows are asked again. A change counts only if the answers then depend on the image: a victim of
    two classes may answer the right one for a black image too.
    """
    n = case.asked.pipeline[case.victim]
    if "image" not in n.reads or n.stage.definition.name == "infer.ensemble":
        return None
    right = reread(case, lambda x: x)[2]
    now, rows = int(right.sum()), len(right)
    needed = max(now + MIN_GAINED, now + GAINED_FRAC * rows, RIGHT_FRAC * rows)
    found = {how: _count_right(case, change) for how, (change, _) in CHANGES.items()}
    how = max(found, key=lambda h: found[h])
    if found[how] < needed:
        return None
    return (
        f"without a patch it is right in {now} of {rows} images, but in {found[how]} if its input is {how}: "
        f"{CHANGES[how][1]}; correct that in the model, or in a module around it"
    )


def _count_right(case: Case, change: Change) -> int:
    """Count the right answers for changed images; 0 if images of one color are all answered so too."""
    truth, _, right = reread(case, change)
    if len(truth[right].unique()) > 1 or "detections" in case.asked.pipeline[case.victim].writes:
        return int(right.sum())
    black = reread(case, lambda x: change(torch.zeros_like(x)))[1]
    white = reread(case, lambda x: change(torch.ones_like(x)))[1]
    return int(right.sum()) if len(torch.cat([black, white]).unique()) > 1 else 0


def is_blind(case: Case, said: Tensor) -> bool:
    """Return whether a victim answers the same for all images, and for those of one color.

    Args:
        case: The victim.
        said: Its answers for all images.
    """
    if bool((said != said[0]).any()):
        return False
    levels = (0.0, 0.5, 1.0)
    flat = [reread(case, lambda x, level=level: torch.full_like(x, level))[1] for level in levels]
    return bool((torch.cat(flat) == said[0]).all())


def reread(case: Case, change: Change) -> tuple[Tensor, Tensor, Tensor]:
    """Return the truth, the answers and the hits of a victim for changed images of the first rows."""
    asked, victim = case.asked, case.victim
    values = values_before(asked, victim)
    name = asked.pipeline[victim].reads["image"]
    values[name] = change(values[name])
    rest = asked.pipeline.since(victim)
    with torch.no_grad():
        trace = rest.trace(case.params, asked.sample, values)
    return read_answers(case.metric, rest, trace, values)[victim]

"""How good is each victim without a patch, and if it is not: why?"""

from collections.abc import Iterator, Sequence

import torch

from fpatch.core.types import Params
from fpatch.doctor.clean import NOTHING, Answers, Asked, name_of
from fpatch.doctor.findings import Finding
from fpatch.doctor.labels import find_order
from fpatch.doctor.scales import Case, find_scale, is_blind
from fpatch.evaluation.columns import split_group

FOUND_FRAC = 0.5
"""A victim that is right in a smaller share of rows without a patch gives a warning."""

GOOD_FRAC = 0.9
"""For a victim that is right in a larger share of rows, no other scale of its input is tried."""


def judge_clean_answers(
    asked: Sequence[Asked], metric: str, params: Params, names: Sequence[str]
) -> Iterator[Finding]:
    """Judge how good each victim is without a patch, over all splits, and find the cause of wrong answers.

    Args:
        asked: The phases, each with its first rows.
        metric: The study's metric.
        params: The patch parameters, which the samples do not show.
        names: The names of the classes in the data.
    """
    victims = [answers.victim for answers in asked[0].answers]
    for victim in victims:
        own = [answers for a in asked for answers in a.answers if answers.victim == victim]
        right = torch.cat([answers.right for answers in own])
        share = float(right.float().mean()) if len(right) else 1.0
        cause = None
        if share < 1.0 and not any(a.saturated for a in asked):
            largest = max(asked, key=lambda a: len(a.batch["image_id"]))
            cause = _find_cause(Case(largest, victim, metric, params, names), own, share)
        if cause is not None:
            yield Finding("error" if share < FOUND_FRAC else "warning", victim, cause)
        main = len(victims) == 1 or split_group(metric)[0] == split_group(victim)[0]
        for a in asked:
            if a.split != "train":
                first = next(iter(a.saturated), None if cause is None else victim)
                yield from _judge_split(next(x for x in own if x.split == a.split), main, first)


def _judge_split(answers: Answers, main: bool, first: str | None) -> Iterator[Finding]:
    """Judge the share of right answers on an evaluated split.

    Args:
        answers: The answers of a victim.
        main: True for the victim of the study's metric.
        first: The node to correct first, if one explains the answers.
    """
    right, rows = int(answers.right.sum()), len(answers.right)
    where = answers.split if main else f"{answers.split}, {answers.victim}"
    what = f"without a patch the victim is right in {right} of {rows} images"
    if rows and not right:
        way = "train it, or check the labels" if first is None else f"correct {first!r} first"
        yield Finding("error" if main else "warning", where, f"{what}: there is nothing to attack; {way}")
    elif right < FOUND_FRAC * rows:
        yield Finding("warning", where, f"{what}: little is left to measure")


def _find_cause(case: Case, own: Sequence[Answers], share: float) -> str | None:
    """Find why a victim is wrong: its labels have another order, its input another scale, or it is blind."""
    truth, said = (torch.cat([getattr(answers, name) for answers in own]) for name in ("truth", "said"))
    blind = is_blind(case, said)
    order = None if blind else find_order(truth, said, case.names)
    scale = find_scale(case) if share < GOOD_FRAC else None
    if order is not None and scale is not None and len(truth.unique()) > 1:
        return f"{order}; or else: {scale}"
    if order is not None or scale is not None:
        return order or scale
    if not blind:
        return None
    answer = "nothing" if int(said[0]) == NOTHING else repr(name_of(int(said[0]), case.names))
    return (
        f"it answers {answer} for each of {len(said)} objects, and for a black, a gray and a white image "
        "too; load its weights, or check which images it was trained on"
    )

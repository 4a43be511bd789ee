"""Learning rates: schedules, functions of the step alone, and rates, which may also follow the loss.

A rate keeps its state in tensors, so it vmaps and compiles. torchopt has polynomial and exponential
schedules, and none of those here but the exponential, which shares the form of the others.
"""

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any, NamedTuple

import torch
from torch import Tensor

Schedule = Callable[[Tensor], Tensor]
"""The learning rate as a function of the number of updates made, both tensors."""


def constant(learning_rate: float) -> Schedule:
    """The same learning rate at every step."""
    return lambda step: torch.full_like(step, learning_rate, dtype=torch.float32)


def cosine(learning_rate: float, num_steps: int, final_frac: float = 0.0) -> Schedule:
    """Decay along half a cosine to `final_frac` of the start.

    References:
        Loshchilov and Hutter (2017), SGDR, equation 5, without restarts.
    """

    def schedule(step: Tensor) -> Tensor:
        progress = (step.float() / num_steps).clamp(0.0, 1.0)
        fall = 0.5 * (1.0 + torch.cos(torch.pi * progress))
        return learning_rate * (final_frac + (1.0 - final_frac) * fall)

    return schedule


def one_cycle(start: float, peak: float, end: float, num_steps: int, rise_frac: float = 0.3) -> Schedule:
    """Rise along half a cosine from `start` to `peak`, then fall along another to `end`.

    The peak comes `rise_frac * num_steps - 1` updates after the first, as in torch's OneCycleLR. A run too
    short for a rise begins in the fall.

    References:
        Smith and Topin (2019), Super-convergence, section 3; with half cosines for its straight lines.
    """
    top, last = rise_frac * num_steps - 1, num_steps - 1

    def between(a: float, b: float, progress: Tensor) -> Tensor:
        return b + (a - b) / 2.0 * (1.0 + torch.cos(torch.pi * progress.clamp(0.0, 1.0)))

    def schedule(step: Tensor) -> Tensor:
        at = step.float()
        falling = between(peak, end, (at - top) / (last - top))
        return falling if top <= 0 else torch.where(at <= top, between(start, peak, at / top), falling)

    return schedule


def exponential(learning_rate: float, num_steps: int, final_frac: float = 1e-3) -> Schedule:
    """Decay by one factor at every step, to `final_frac` of the start after `num_steps`."""
    slope = math.log(final_frac) / num_steps
    return lambda step: learning_rate * (slope * step.float()).exp()


def step_decay(
    learning_rate: float, every: int, factor: float, steps_per_unit: Fraction | int = 1
) -> Schedule:
    """Decay by `factor` after every `every` units of `steps_per_unit` steps."""
    unit = Fraction(steps_per_unit)

    def schedule(step: Tensor) -> Tensor:
        num_falls = step * unit.denominator // (every * unit.numerator)
        return learning_rate * torch.full_like(step, factor, dtype=torch.float32) ** num_falls

    return schedule


def multi_step(
    learning_rate: float, at: tuple[int, ...], factor: float, steps_per_unit: Fraction | int = 1
) -> Schedule:
    """Decay by `factor` after each number of units in `at`; a unit is `steps_per_unit` steps."""
    unit = Fraction(steps_per_unit)

    def schedule(step: Tensor) -> Tensor:
        num_falls = sum(step * unit.denominator >= number * unit.numerator for number in at)
        return learning_rate * torch.full_like(step, factor, dtype=torch.float32) ** num_falls

    return schedule


def warmup(schedule: Schedule, num_steps: int) -> Schedule:
    """Multiply the first `num_steps` rates by 1/(n+1), 2/(n+1), ..., n/(n+1)."""
    return lambda step: schedule(step) * ((step.float() + 1.0) / (num_steps + 1)).clamp(max=1.0)


class Rate(NamedTuple):
    """A learning rate with a state, which is part of the optimizer's state.

    Attributes:
        init: `() -> state`.
        now: `state -> rate` of the next update.
        after: `(state, loss of the update or None) -> state`.
    """

    init: Callable[[], Any]
    now: Callable[[Any], Tensor]
    after: Callable[[Any, Tensor | None], Any]


class ScheduleState(NamedTuple):
    """The number of updates made."""

    step: Tensor


def scheduled(schedule: Schedule) -> Rate:
    """The rate of a schedule, which depends on the step alone."""
    return Rate(
        lambda: ScheduleState(torch.zeros((), dtype=torch.int64)),
        lambda state: schedule(state.step),
        lambda state, value: ScheduleState(state.step + 1),
    )


class PlateauState(NamedTuple):
    """The state of `plateau`; a reading is the mean loss of `every` steps.

    Attributes:
        step: Updates made.
        scale: The product of all factors so far.
        best: The best reading.
        num_bad: Readings since the best one or the last fall.
        total: The sum of losses since the last reading; NaN if none of them was a number.
    """

    step: Tensor
    scale: Tensor
    best: Tensor
    num_bad: Tensor
    total: Tensor


def plateau(
    schedule: Schedule,
    factor: float = 0.1,
    patience: int = 10,
    threshold: float = 1e-4,
    every: int = 1,
    final_frac: float = 0.0,
) -> Rate:
    """A schedule that also falls by `factor` when the loss stops falling, like torch's ReduceLROnPlateau.

    A loss of NaN, of a batch without a counted row, tells nothing: the mean of the others stands for it. A
    reading of such losses alone is ignored.

    Args:
        schedule: The schedule to multiply.
        factor: The factor of each fall.
        patience: Readings without a new best that are tolerated before a fall.
        threshold: The fraction of the best reading by which a new best must be lower.
        every: Steps of a reading, which is their mean loss.
        final_frac: The smallest product of all factors.
    """

    def init() -> PlateauState:
        count, sum_ = torch.zeros((), dtype=torch.int64), torch.zeros(())
        return PlateauState(
            count, torch.ones(()), torch.full((), torch.finfo(torch.float32).max), count, sum_
        )

    def after(state: PlateauState, value: Tensor | None) -> PlateauState:
        if value is None:
            raise ValueError("plateau: update must be given the loss of the step; call it with value=loss")
        total = _add_loss(state.total, value.to(state.total), state.step % every)
        due = (state.step + 1) % every == 0
        reading = total / every
        better = due & (reading < state.best - threshold * state.best.abs())
        num_bad = torch.where(better, 0, state.num_bad + (due & ~reading.isnan()))
        falls = num_bad > patience
        return PlateauState(
            step=state.step + 1,
            scale=torch.where(falls, (state.scale * factor).clamp(min=final_frac), state.scale),
            best=torch.where(better, reading, state.best),
            num_bad=torch.where(falls, 0, num_bad),
            total=torch.where(due, 0.0, total),
        )

    return Rate(init, lambda state: state.scale * schedule(state.step), after)


def _add_loss(total: Tensor, loss: Tensor, num_before: Tensor) -> Tensor:
    """Add a loss to the sum of `num_before` losses; NaN in either counts as the mean of the others."""
    filled = torch.where(total.isnan(), loss * (num_before + 1), total + loss)
    return torch.where(loss.isnan(), total + total / num_before, filled)

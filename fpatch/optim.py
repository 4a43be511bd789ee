"""Optimizers as torchopt transformations: pairs of pure functions, closed under composition.

Each is a direction, scale-free maths on a tree of gradients, and a rate that it is followed at; the state
goes in and comes out, and the parameters are never written in place. They vmap and compile, which torchopt's
own Adam and schedules do not.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from fractions import Fraction
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import optree
import torch
import torchopt
from torch import Tensor
from torchopt.base import EmptyState, GradientTransformation

from fpatch.checks import check_choice, check_number

Schedule = Callable[[Tensor], Tensor]
"""From the number of updates made so far, a tensor, to the learning rate."""

_map = optree.tree_map


# -- schedules ---------------------------------------------------------------------------------------------


def constant(learning_rate: float) -> Schedule:
    """The same learning rate at every step."""
    return lambda step: torch.full_like(step, learning_rate, dtype=torch.float32)


def cosine(learning_rate: float, num_steps: int, final_frac: float = 0.0) -> Schedule:
    """Fall along half a cosine to `final_frac` of the start.

    References:
        Loshchilov and Hutter (2017), SGDR, equation 5, without restarts.
    """

    def schedule(step: Tensor) -> Tensor:
        progress = (step.float() / num_steps).clamp(0.0, 1.0)
        fall = 0.5 * (1.0 + torch.cos(torch.pi * progress))
        return learning_rate * (final_frac + (1.0 - final_frac) * fall)

    return schedule


def exponential(learning_rate: float, num_steps: int, final_frac: float = 1e-3) -> Schedule:
    """Fall by the same factor at every step, to `final_frac` of the start after `num_steps`."""
    slope = math.log(final_frac) / num_steps
    return lambda step: learning_rate * (slope * step.float()).exp()


def stairs(learning_rate: float, every: int, factor: float, steps_per_unit: Fraction | int = 1) -> Schedule:
    """Fall by `factor` whenever `every` steps, or units of `steps_per_unit` steps, are over."""
    unit = Fraction(steps_per_unit)

    def schedule(step: Tensor) -> Tensor:
        num_falls = step * unit.denominator // (every * unit.numerator)
        return learning_rate * torch.full_like(step, factor, dtype=torch.float32) ** num_falls

    return schedule


def milestones(
    learning_rate: float, at: tuple[int, ...], factor: float, steps_per_unit: Fraction | int = 1
) -> Schedule:
    """Fall by `factor` after each of these numbers of steps, or of units of `steps_per_unit` steps."""
    unit = Fraction(steps_per_unit)

    def schedule(step: Tensor) -> Tensor:
        num_falls = sum(step * unit.denominator >= number * unit.numerator for number in at)
        return learning_rate * torch.full_like(step, factor, dtype=torch.float32) ** num_falls

    return schedule


def warmup(schedule: Schedule, num_steps: int) -> Schedule:
    """Multiply the first `num_steps` rates by 1/(n+1), 2/(n+1), ..., n/(n+1)."""
    return lambda step: schedule(step) * ((step.float() + 1.0) / (num_steps + 1)).clamp(max=1.0)


class Rate(NamedTuple):
    """A learning rate with a state of its own, which lives in the optimizer's.

    Attributes:
        init: () -> state.
        now: state -> the rate of the next update.
        after: (state, loss of the update or None) -> state.
    """

    init: Callable[[], Any]
    now: Callable[[Any], Tensor]
    after: Callable[[Any, Tensor | None], Any]


class ScheduleState(NamedTuple):
    """Number of updates made."""

    step: Tensor


def scheduled(schedule: Schedule) -> Rate:
    """A rate that depends on nothing but the step."""
    return Rate(
        lambda: ScheduleState(torch.zeros((), dtype=torch.int64)),
        lambda state: schedule(state.step),
        lambda state, value: ScheduleState(state.step + 1),
    )


class PlateauState(NamedTuple):
    """Updates made, the factor by now, the best reading, readings since then, and the sum of losses since."""

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
    """A schedule that also falls by `factor` when the loss has stopped falling, as torch's ReduceLROnPlateau.

    Args:
        schedule: What is multiplied.
        factor: Of each fall.
        patience: Readings without a new best that are borne; one more, and the rate falls.
        threshold: A new best is lower than the last by at least this fraction of it.
        every: A reading is the mean loss of so many steps.
        final_frac: The product of all factors stays at least this.
    """

    def init() -> PlateauState:
        count, sum_ = torch.zeros((), dtype=torch.int64), torch.zeros(())
        return PlateauState(
            count, torch.ones(()), torch.full((), torch.finfo(torch.float32).max), count, sum_
        )

    def after(state: PlateauState, value: Tensor | None) -> PlateauState:
        if value is None:
            raise ValueError("plateau: update must be given the loss of the step; call it with value=loss")
        total = state.total + value.to(state.total)
        due = (state.step + 1) % every == 0
        reading = total / every
        better = due & (reading < state.best - threshold * state.best.abs())
        num_bad = torch.where(better, 0, state.num_bad + due)
        falls = num_bad > patience
        return PlateauState(
            step=state.step + 1,
            scale=torch.where(falls, (state.scale * factor).clamp(min=final_frac), state.scale),
            best=torch.where(better, reading, state.best),
            num_bad=torch.where(falls, 0, num_bad),
            total=torch.where(due, 0.0, total),
        )

    return Rate(init, lambda state: state.scale * schedule(state.step), after)


# -- directions --------------------------------------------------------------------------------------------


class AdamState(NamedTuple):
    """Running means of the gradient and of its square, and the number of updates."""

    mean: Any
    square: Any
    step: Tensor


def scale_by_adam(beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8) -> GradientTransformation:
    """Adam's direction.

    References:
        Kingma and Ba (2015), Adam, algorithm 1.
    """

    def init(params: Any) -> AdamState:
        zeros = _map(torch.zeros_like, params)
        return AdamState(zeros, zeros, torch.zeros((), dtype=torch.int64))

    def update(updates: Any, state: AdamState, *, params: Any = None, inplace: bool = False) -> Any:
        step = state.step + 1
        mean = _map(lambda m, g: beta1 * m + (1 - beta1) * g, state.mean, updates)
        square = _map(lambda v, g: beta2 * v + (1 - beta2) * g * g, state.square, updates)
        correct1, correct2 = (
            1 - torch.full_like(step, b, dtype=torch.float64) ** step for b in (beta1, beta2)
        )
        direction = _map(
            lambda m, v: (m / correct1.to(m.dtype)) / ((v / correct2.to(v.dtype)).sqrt() + eps), mean, square
        )
        return direction, AdamState(mean, square, step)

    return GradientTransformation(init, update)


def sign() -> GradientTransformation:
    """The sign of every gradient; 0 where it is 0.

    References:
        Kurakin, Goodfellow and Bengio (2016), Adversarial examples in the physical world, section 2.2.
    """

    def update(updates: Any, state: Any, *, params: Any = None, inplace: bool = False) -> Any:
        return _map(torch.sign, updates), state

    return GradientTransformation(lambda params: EmptyState(), update)


class MomentumState(NamedTuple):
    """Accumulated gradient."""

    velocity: Any


def momentum(decay: float, normalize: bool = False) -> GradientTransformation:
    """Accumulate gradients: `v = decay * v + g`.

    Args:
        decay: Share of the past that stays.
        normalize: Divide each gradient by its L1 norm first (of each leaf), as MI-FGSM does; a zero gradient
            adds nothing.

    References:
        Dong et al. (2018), Boosting adversarial attacks with momentum, equation 6.
    """

    def init(params: Any) -> MomentumState:
        return MomentumState(_map(torch.zeros_like, params))

    def update(updates: Any, state: MomentumState, *, params: Any = None, inplace: bool = False) -> Any:
        if normalize:
            updates = _map(_normalized, updates)
        velocity = _map(lambda v, g: decay * v + g, state.velocity, updates)
        return velocity, MomentumState(velocity)

    return GradientTransformation(init, update)


def _normalized(gradient: Tensor) -> Tensor:
    norm = gradient.abs().sum()
    return gradient / torch.where(norm > 0, norm, 1.0)


class SquareState(NamedTuple):
    """Running mean of the square of the gradient."""

    square: Any


def scale_by_rms(decay: float = 0.99, eps: float = 1e-8) -> GradientTransformation:
    """Divide by the root of the running mean square, `v = decay * v + (1 - decay) * g^2`.

    References:
        Tieleman and Hinton (2012), Neural networks for machine learning, lecture 6.5.
    """

    def init(params: Any) -> SquareState:
        return SquareState(_map(torch.zeros_like, params))

    def update(updates: Any, state: SquareState, *, params: Any = None, inplace: bool = False) -> Any:
        square = _map(lambda v, g: decay * v + (1 - decay) * g * g, state.square, updates)
        return _map(lambda g, v: g / (v.sqrt() + eps), updates, square), SquareState(square)

    return GradientTransformation(init, update)


def decay_weights(weight_decay: float) -> GradientTransformation:
    """Add `weight_decay` times the parameters.

    References:
        Loshchilov and Hutter (2019), Decoupled weight decay regularization, algorithm 2, line 12.
    """

    def update(updates: Any, state: Any, *, params: Any = None, inplace: bool = False) -> Any:
        if params is None:
            raise ValueError("decay_weights: update must be given the parameters; call it with params=params")
        return _map(lambda u, p: u + weight_decay * p, updates, params), state

    return GradientTransformation(lambda params: EmptyState(), update)


# -- optimizers --------------------------------------------------------------------------------------------


class Transformation(GradientTransformation):
    """A torchopt transformation that may ask for more than gradients.

    Its `update` also takes `value`, the loss of the step. `look_ahead`, unless it is None, says from the
    parameters and the state at which parameters the gradient is to be taken.
    """

    look_ahead: Callable[[Any, Any], Any] | None

    def __new__(cls, init: Any, update: Any, look_ahead: Any = None) -> "Transformation":
        """From the three functions."""
        self = super().__new__(cls, init, update)
        self.look_ahead = look_ahead
        return self


def descend(direction: GradientTransformation, rate: Rate, look_ahead_frac: float = 0.0) -> Transformation:
    """Follow a direction, downwards.

    Args:
        direction: From gradients to directions; with `look_ahead_frac`, `momentum` comes first in it.
        rate: The learning rate.
        look_ahead_frac: Share of an update by the momentum alone, unsigned, that the gradient is taken ahead.
    """

    def init(params: Any) -> Any:
        return direction.init(params), rate.init()

    def update(
        updates: Any, state: Any, *, params: Any = None, inplace: bool = False, value: Tensor | None = None
    ) -> Any:
        direction_state, rate_state = state
        now = rate.now(rate_state)
        updates, direction_state = direction.update(updates, direction_state, params=params, inplace=False)
        return _map(lambda u: -now.to(u) * u, updates), (direction_state, rate.after(rate_state, value))

    def look_ahead(params: Any, state: Any) -> Any:
        (momentum_state, *_), rate_state = state
        reach = look_ahead_frac * rate.now(rate_state)
        return _map(lambda p, v: p - reach.to(p) * v, params, momentum_state.velocity)

    return Transformation(init, update, look_ahead if look_ahead_frac else None)


_APPLIES = {
    "betas": ("adam", "adamw"),
    "eps": ("adam", "adamw", "rmsprop"),
    "weight_decay": ("adamw",),
    "momentum": ("sgd", "mifgsm", "nifgsm"),
    "square_decay": ("rmsprop",),
    "final_frac": ("cosine", "exponential", "plateau"),
    "fall_factor": ("step", "multi_step", "plateau"),
    "fall_every": ("step", "plateau"),
    "milestones": ("multi_step",),
    "unit": ("step", "multi_step"),
    "patience": ("plateau",),
    "threshold": ("plateau",),
}
"""Which settings are of some optimizers, or of some schedules, only."""


@dataclass(frozen=True)
class Optimizer:
    """How the patch parameters move.

    What does not apply to the optimizer or to the schedule must be left out.

    Attributes:
        name: "adam"; "adamw", with `weight_decay`; "sgd", with `momentum`; "rmsprop"; "bim", the sign of the
            gradient; "mifgsm", the sign of the accumulated normalized gradient, with `momentum` as its decay;
            "nifgsm", the same with the gradient taken where the momentum leads.
        learning_rate: Of the first step; for "bim", "mifgsm" and "nifgsm" the step in pixel values.
        schedule: "cosine" and "exponential" fall to `final_frac` over the run; "step" falls by `fall_factor`
            every `fall_every`, "multi_step" at the `milestones`, "plateau" when the loss has stopped falling;
            "constant" does not.
        momentum: See `name`.
        betas: Decays of Adam's two means.
        eps: Added to the root that "adam", "adamw" and "rmsprop" divide by.
        weight_decay: Of "adamw", decoupled from the gradient; pulls pixels towards black.
        square_decay: Decay of the mean square in "rmsprop".
        warmup_steps: Over so many steps the rate rises evenly to that of the schedule, which runs meanwhile.
        final_frac: Last rate as a fraction of the first; None: 0 for "cosine", 0.001 for "exponential"; for
            "plateau" the fraction that it stops at, None: 0.
        fall_factor: What each fall multiplies by.
        fall_every: Steps or epochs between falls of "step"; for "plateau" the steps over which the loss is
            averaged before it is compared, None: 1.
        milestones: Numbers of steps or epochs after which "multi_step" falls.
        unit: What those two are counted in; in an epoch every photograph is shown once.
        patience: Comparisons without a new best that "plateau" bears before it falls.
        threshold: Fraction of the best loss by which a new best must be lower.

    References:
        Kingma and Ba (2015), algorithm 1 (adam); Loshchilov and Hutter (2019), algorithm 2 (adamw); Tieleman
        and Hinton (2012), lecture 6.5 (rmsprop); Kurakin, Goodfellow and Bengio (2016), section 2.2 (bim);
        Dong et al. (2018), equations 6 and 7 (mifgsm); Lin et al. (2020), equations 6 to 8 (nifgsm).
    """

    name: Literal["adam", "adamw", "sgd", "rmsprop", "bim", "mifgsm", "nifgsm"] = "adam"
    learning_rate: float = 0.05
    schedule: Literal["cosine", "constant", "exponential", "step", "multi_step", "plateau"] = "cosine"
    momentum: float = 0.9
    betas: tuple[float, float] = field(default=(0.9, 0.999))
    eps: float = 1e-8
    weight_decay: float = 0.01
    square_decay: float = 0.99
    warmup_steps: int = 0
    final_frac: float | None = None
    fall_factor: float = 0.1
    fall_every: int | None = None
    milestones: tuple[int, ...] = ()
    unit: Literal["step", "epoch"] = "step"
    patience: int = 10
    threshold: float = 1e-4

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(Optimizer).items():
            if get_origin(kind) is Literal:
                check_choice(f"optimizer.{name}", getattr(self, name), get_args(kind))
        check_number("optimizer.learning_rate", self.learning_rate, 0.0)
        check_number("optimizer.momentum", self.momentum, 0.0, 1.0)
        for beta in self.betas:
            check_number("optimizer.betas", beta, 0.0, 0.999999)
        check_number("optimizer.eps", self.eps, 1e-30)
        check_number("optimizer.weight_decay", self.weight_decay, 0.0)
        check_number("optimizer.square_decay", self.square_decay, 0.0, 0.999999)
        check_number("optimizer.warmup_steps", self.warmup_steps, 0)
        if self.final_frac is not None:
            lowest = 1e-9 if self.schedule == "exponential" else 0.0
            check_number("optimizer.final_frac", self.final_frac, lowest, 1.0)
        check_number("optimizer.fall_factor", self.fall_factor, 0.0, 1.0)
        if self.fall_every is not None:
            check_number("optimizer.fall_every", self.fall_every, 1)
        for number in self.milestones:
            check_number("optimizer.milestones", number, 1)
        check_number("optimizer.patience", self.patience, 0)
        check_number("optimizer.threshold", self.threshold, 0.0, 1.0)
        self._check_applies()
        for schedule, needed in (("step", "fall_every"), ("multi_step", "milestones")):
            if self.schedule == schedule and not getattr(self, needed):
                raise ValueError(f"optimizer.{needed} is required by schedule {schedule!r}; add it")

    def _check_applies(self) -> None:
        for setting in fields(self):
            owners = _APPLIES.get(setting.name, (self.name,))
            if getattr(self, setting.name) != setting.default and not {self.name, self.schedule} & {*owners}:
                known = ", ".join(map(repr, owners))
                raise ValueError(
                    f"optimizer.{setting.name} = {getattr(self, setting.name)!r} applies to {known}, not to "
                    f"{self.name!r} with {self.schedule!r}; leave it out or choose one of these"
                )


def make_optimizer(
    config: Optimizer, num_steps: int, steps_per_epoch: Fraction | None = None
) -> Transformation:
    """The transformation that a config describes.

    Args:
        config: Its settings.
        num_steps: Updates of the run.
        steps_per_epoch: Photographs divided by the batch size; None where there are no epochs.

    Raises:
        ValueError: If the schedule counts epochs and there are none, or the warm-up is longer than the run.
    """
    if config.warmup_steps >= num_steps:
        raise ValueError(
            f"optimizer.warmup_steps must be less than the steps of the run, {num_steps}, "
            f"got {config.warmup_steps}"
        )
    momentum_ = momentum(config.momentum, normalize=config.name in ("mifgsm", "nifgsm"))
    links = {
        "adam": lambda: (scale_by_adam(*config.betas, config.eps),),
        "adamw": lambda: (scale_by_adam(*config.betas, config.eps), decay_weights(config.weight_decay)),
        "sgd": lambda: (momentum_,) if config.momentum else (),
        "rmsprop": lambda: (scale_by_rms(config.square_decay, config.eps),),
        "bim": lambda: (sign(),),
        "mifgsm": lambda: (momentum_, sign()),
        "nifgsm": lambda: (momentum_, sign()),
    }[config.name]()
    ahead = config.momentum if config.name == "nifgsm" else 0.0
    return descend(torchopt.chain(*links), _rate(config, num_steps, steps_per_epoch), ahead)


def _rate(config: Optimizer, num_steps: int, steps_per_epoch: Fraction | None) -> Rate:
    rate, factor, final = config.learning_rate, config.fall_factor, config.final_frac
    unit = steps_per_epoch if config.unit == "epoch" else 1
    if unit is None:
        raise ValueError(
            "optimizer.unit is 'epoch', but photographs drawn with replacement have no epochs, and none were "
            "given to make_optimizer(steps_per_epoch=...); count in steps"
        )
    schedule = {
        "cosine": lambda: cosine(rate, num_steps, final or 0.0),
        "constant": lambda: constant(rate),
        "exponential": lambda: exponential(rate, num_steps, 1e-3 if final is None else final),
        "step": lambda: stairs(rate, config.fall_every or 1, factor, unit),
        "multi_step": lambda: milestones(rate, config.milestones, factor, unit),
        "plateau": lambda: constant(rate),
    }[config.schedule]()
    if config.warmup_steps:
        schedule = warmup(schedule, config.warmup_steps)
    if config.schedule != "plateau":
        return scheduled(schedule)
    return plateau(schedule, factor, config.patience, config.threshold, config.fall_every or 1, final or 0.0)

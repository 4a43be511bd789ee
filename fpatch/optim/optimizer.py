"""Optimizers: the settings, and the direction and the learning rate that they name."""

from dataclasses import dataclass, field, fields
from fractions import Fraction
from typing import Literal, get_args, get_type_hints

import torchopt

from fpatch.core.checks import check_choice, check_number
from fpatch.optim.schedules import (
    Rate,
    constant,
    cosine,
    exponential,
    multi_step,
    plateau,
    scheduled,
    step_decay,
    warmup,
)
from fpatch.optim.transforms import (
    Transformation,
    decay_weights,
    momentum,
    scale_by_adam,
    scale_by_learning_rate,
    scale_by_rms,
    sign,
)

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
        for choice in ("name", "schedule", "unit"):
            options = get_args(get_type_hints(Optimizer)[choice])
            check_choice(f"optimizer.{choice}", getattr(self, choice), options)
        if len(self.betas) != 2:
            raise ValueError(f"optimizer.betas must be two numbers, got {self.betas!r}")
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
    return scale_by_learning_rate(torchopt.chain(*links), _rate(config, num_steps, steps_per_epoch), ahead)


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
        "step": lambda: step_decay(rate, config.fall_every or 1, factor, unit),
        "multi_step": lambda: multi_step(rate, config.milestones, factor, unit),
        "plateau": lambda: constant(rate),
    }[config.schedule]()
    if config.warmup_steps:
        schedule = warmup(schedule, config.warmup_steps)
    if config.schedule != "plateau":
        return scheduled(schedule)
    return plateau(schedule, factor, config.patience, config.threshold, config.fall_every or 1, final or 0.0)

"""Optimizers: their settings, and the transformation that these name."""

from dataclasses import dataclass, field, fields
from fractions import Fraction
from typing import Literal, get_args, get_type_hints

import torchopt

from fpatch.core.checks import check_choice, check_count, check_number
from fpatch.core.errors import Errors
from fpatch.core.settings import checked_settings
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
"""The optimizers or schedules to which a setting applies."""


@checked_settings
@dataclass(frozen=True)
class Optimizer:
    """The settings of an optimizer and its schedule.

    Settings that do not apply to the optimizer or the schedule must be left out.

    Attributes:
        name: "adam"; "adamw", with `weight_decay`; "sgd", with `momentum`; "rmsprop"; "bim", the sign of the
            gradient; "mifgsm", the sign of the accumulated normalized gradient, with `momentum` as its decay;
            "nifgsm", the same with the gradient at the parameters that the momentum leads to.
        learning_rate: The rate of the first step; for "bim", "mifgsm" and "nifgsm" in pixel values.
        schedule: "cosine" and "exponential" fall to `final_frac` over the run. "step" falls by `fall_factor`
            every `fall_every`, "multi_step" at the `milestones`, and "plateau" when the loss stops falling.
            "constant" does not fall.
        momentum: The decay of the momentum; see `name`.
        betas: The decays of Adam's two means.
        eps: The number added to the root by which "adam", "adamw" and "rmsprop" divide.
        weight_decay: The decay of "adamw", decoupled from the gradient; it pulls pixels towards black.
        square_decay: The decay of the mean square in "rmsprop".
        warmup_steps: The number of first steps over which the rate rises linearly to that of the schedule.
        final_frac: The last rate as a fraction of the first; None: 0 for "cosine", 0.001 for "exponential".
            For "plateau" the smallest fraction; None: 0.
        fall_factor: The factor of each fall.
        fall_every: Steps or epochs between falls of "step"; for "plateau" the steps over which the loss is
            averaged before a comparison; None: 1.
        milestones: Numbers of steps or epochs after which "multi_step" falls.
        unit: The unit of `fall_every` and `milestones`; an epoch shows every image once.
        patience: Comparisons without a new best that "plateau" tolerates before it falls.
        threshold: The fraction of the best loss by which a new best must be lower.

    Raises:
        ValueError: For a setting out of its range, or one that does not apply.

    References:
        Kingma and Ba (2015), algorithm 1 (adam); Loshchilov and Hutter (2019), algorithm 2 (adamw); Tieleman
        and Hinton (2012), lecture 6.5 (rmsprop); Kurakin, Goodfellow and Bengio (2016), section 2.2 (bim);
        Dong et al. (2018), equations 6 and 7 (mifgsm); Lin et al. (2020), equations 6 to 8 (nifgsm).

    Example:
        >>> import fpatch
        >>> fpatch.Optimizer("bim", learning_rate=0.01, schedule="constant").learning_rate
        0.01
        >>> try:
        ...     fpatch.Optimizer("bim", betas=(0.5, 0.9))
        ... except ValueError as error:
        ...     print(str(error).partition("; ")[0])
        optimizer.betas = (0.5, 0.9) applies to 'adam', 'adamw', not to 'bim' with 'cosine'
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
        errors = Errors()
        for choice in ("name", "schedule", "unit"):
            options = get_args(get_type_hints(Optimizer)[choice])
            errors.check(check_choice, f"optimizer.{choice}", getattr(self, choice), options)
        errors.raise_all()  # the other rules depend on the choices
        if len(self.betas) != 2:
            errors.add(f"optimizer.betas must be two numbers, got {self.betas!r}")
        errors.check(check_number, "optimizer.learning_rate", self.learning_rate, 1e-12, 1e6)
        errors.check(check_number, "optimizer.momentum", self.momentum, 0.0, 1.0)
        for beta in self.betas:
            errors.check(check_number, "optimizer.betas", beta, 0.0, 0.999999)
        errors.check(check_number, "optimizer.eps", self.eps, 1e-30)
        errors.check(check_number, "optimizer.weight_decay", self.weight_decay, 0.0)
        errors.check(check_number, "optimizer.square_decay", self.square_decay, 0.0, 0.999999)
        errors.check(check_count, "optimizer.warmup_steps", self.warmup_steps, 0)
        if self.final_frac is not None:
            lowest = 1e-9 if self.schedule == "exponential" else 0.0
            errors.check(check_number, "optimizer.final_frac", self.final_frac, lowest, 1.0)
        errors.check(check_number, "optimizer.fall_factor", self.fall_factor, 0.0, 1.0)
        if self.fall_every is not None:
            errors.check(check_count, "optimizer.fall_every", self.fall_every)
        for number in self.milestones:
            errors.check(check_count, "optimizer.milestones", number)
        errors.check(check_count, "optimizer.patience", self.patience, 0)
        errors.check(check_number, "optimizer.threshold", self.threshold, 0.0, 1.0)
        errors.check(self._check_applies)
        for schedule, needed in (("step", "fall_every"), ("multi_step", "milestones")):
            if self.schedule == schedule and not getattr(self, needed):
                errors.add(f"optimizer.{needed} is required by schedule {schedule!r}; add it")
        errors.raise_all()

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
    """Make the transformation of an optimizer's settings.

    Args:
        config: The settings.
        num_steps: Updates of the run.
        steps_per_epoch: Images divided by the batch size; None without epochs.

    Returns:
        A torchopt transformation, whose state is tensors.

    Raises:
        ValueError: If the schedule counts epochs without any, or the warm-up is longer than the run.

    Example:
        >>> import torch, fpatch
        >>> optimizer = fpatch.make_optimizer(fpatch.Optimizer("bim", 0.25, "constant"), num_steps=10)
        >>> params, grads = {"a": torch.zeros(2)}, {"a": torch.tensor([3.0, -8.0])}
        >>> optimizer.update(grads, optimizer.init(params), params=params)[0]
        {'a': tensor([-0.2500,  0.2500])}
    """
    if not isinstance(config, Optimizer):
        raise ValueError(
            f"make_optimizer takes settings, fpatch.Optimizer(...), got a {type(config).__name__}; its names "
            f"are {', '.join(get_args(get_type_hints(Optimizer)['name']))}"
        )
    check_count("make_optimizer(num_steps)", num_steps)
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
            "optimizer.unit is 'epoch', but images drawn with replacement have no epochs, and "
            "make_optimizer got no steps_per_epoch; count in steps"
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

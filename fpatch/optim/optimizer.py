"""Optimizers: their settings, and the transformation that these name."""

from dataclasses import dataclass, field, fields
from fractions import Fraction
from typing import Literal, get_args, get_type_hints

import torchopt
import torchopt.transform as theirs
from torchopt.base import GradientTransformation

from fpatch.core.checks import check_choice, check_count, check_number
from fpatch.core.errors import Errors
from fpatch.core.settings import checked_settings
from fpatch.optim.schedules import (
    Rate,
    constant,
    cosine,
    exponential,
    multi_step,
    one_cycle,
    plateau,
    scheduled,
    step_decay,
    warmup,
)
from fpatch.optim.transforms import (
    Transformation,
    clip_norm,
    counted_in_tensors,
    decay_weights,
    momentum,
    moving,
    scale_by_adam,
    scale_by_learning_rate,
    scale_by_rms,
    sign,
)

_APPLIES = {
    "betas": ("adam", "adamw", "adamax"),
    "eps": ("adam", "adamw", "adamax", "adagrad", "adadelta", "rmsprop"),
    "clip_norm": ("adam", "adamw", "adamax", "adagrad", "adadelta", "rmsprop", "sgd"),
    "rise_frac": ("one_cycle",),
    "start_frac": ("one_cycle",),
    "peak_momentum": ("one_cycle",),
    "weight_decay": ("adamw",),
    "momentum": ("sgd", "mifgsm", "nifgsm"),
    "square_decay": ("adadelta", "rmsprop"),
    "final_frac": ("cosine", "exponential", "one_cycle", "plateau"),
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
        name: "adam"; "adamw", with `weight_decay`; "adamax"; "adagrad"; "adadelta"; "rmsprop"; "sgd", with
            `momentum`; "bim", the sign of the gradient; "mifgsm", the sign of the accumulated normalized
            gradient, with `momentum` as its decay; "nifgsm", the same with the gradient at the parameters
            that the momentum leads to.
        learning_rate: The rate of the first step, with "one_cycle" the highest; for "bim", "mifgsm" and
            "nifgsm" in pixel values.
        schedule: "cosine" and "exponential" fall to `final_frac` over the run. "one_cycle" rises from
            `start_frac`, then falls to `final_frac`. "step" falls by `fall_factor` every `fall_every`,
            "multi_step" at the `milestones`, and "plateau" when the loss stops falling. "constant" does not
            fall.
        library: Whose "adam", "adamw" and "rmsprop" it is; the others do not differ. "fpatch" continues runs
            that began before torchopt's were used, and corrects Adam's bias in float64.
        clip_norm: The Euclidean norm over all parameters to which a longer gradient is scaled; None: none.
        momentum: The decay of the momentum; see `name`.
        betas: The decays of Adam's two means.
        eps: The number added to the root by which all but "sgd" and the signs divide.
        weight_decay: The decay of "adamw", decoupled from the gradient; it pulls pixels towards black.
        square_decay: The decay of the mean square in "rmsprop", and of both in "adadelta".
        warmup_steps: The number of first steps over which the rate rises linearly to that of the schedule.
        final_frac: The last rate as a fraction of `learning_rate`; None: 0 for "cosine", 0.001 for
            "exponential", 4e-6 for "one_cycle". For "plateau" the smallest fraction; None: 0.
        rise_frac: The share of the run in which "one_cycle" rises.
        start_frac: The first rate of "one_cycle" as a fraction of `learning_rate`.
        peak_momentum: The momentum of "sgd", or the first beta of "adam" and "adamw", at the peak of
            "one_cycle", to and from which it moves as the rate does; None: it stays.
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
        Kingma and Ba (2015), algorithms 1 (adam) and 2 (adamax); Loshchilov and Hutter (2019), algorithm 2
        (adamw); Duchi, Hazan and Singer (2011), section 1.1, diagonal (adagrad); Zeiler (2012), algorithm 1
        (adadelta); Tieleman and Hinton (2012), lecture 6.5 (rmsprop); Smith and Topin (2019), section 3
        (one_cycle); Kurakin, Goodfellow and Bengio (2016), section 2.2 (bim); Dong et al. (2018), equations 6
        and 7 (mifgsm); Lin et al. (2020), equations 6 to 8 (nifgsm).

    Example:
        >>> import fpatch
        >>> fpatch.Optimizer("bim", learning_rate=0.01, schedule="constant").learning_rate
        0.01
        >>> try:
        ...     fpatch.Optimizer("bim", betas=(0.5, 0.9))
        ... except ValueError as error:
        ...     print(str(error).partition("; ")[0])
        optimizer.betas = (0.5, 0.9) applies to 'adam', 'adamw', 'adamax', not to 'bim' with 'cosine'
    """

    name: Literal[
        "adam", "adamw", "adamax", "adagrad", "adadelta", "rmsprop", "sgd", "bim", "mifgsm", "nifgsm"
    ] = "adam"
    learning_rate: float = 0.05
    schedule: Literal["cosine", "one_cycle", "constant", "exponential", "step", "multi_step", "plateau"] = (
        "cosine"
    )
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
    library: Literal["torchopt", "fpatch"] = "torchopt"
    clip_norm: float | None = None
    rise_frac: float = 0.3
    start_frac: float = 0.04
    peak_momentum: float | None = None

    def __post_init__(self) -> None:
        errors = Errors()
        for choice in ("name", "schedule", "unit", "library"):
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
        if self.clip_norm is not None:
            errors.check(check_number, "optimizer.clip_norm", self.clip_norm, 1e-12)
        errors.check(check_number, "optimizer.rise_frac", self.rise_frac, 0.0, 0.99)
        errors.check(check_number, "optimizer.start_frac", self.start_frac, 0.0, 1.0)
        if self.peak_momentum is not None:
            errors.check(check_number, "optimizer.peak_momentum", self.peak_momentum, 0.0, 0.999999)
            if self.name not in ("adam", "adamw", "sgd"):
                errors.add(
                    f"optimizer.peak_momentum = {self.peak_momentum!r} applies to 'adam', 'adamw', 'sgd', "
                    f"not to {self.name!r}; leave it out or choose one of these"
                )
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
    links = _directions(config)
    if config.peak_momentum is not None:
        links[:1] = [_cycled(config, config.peak_momentum, num_steps)]
    if config.clip_norm is not None:
        links.insert(0, clip_norm(config.clip_norm))
    ahead = config.momentum if config.name == "nifgsm" else 0.0
    return scale_by_learning_rate(torchopt.chain(*links), _rate(config, num_steps, steps_per_epoch), ahead)


def _directions(config: Optimizer) -> list[GradientTransformation]:
    """The links of the direction of descent, in order."""
    betas, eps = config.betas, config.eps
    adam, rms, decay = scale_by_adam, scale_by_rms, decay_weights
    if config.library == "torchopt":
        adam, rms, decay = theirs.scale_by_adam, theirs.scale_by_rms, theirs.add_decayed_weights
    return {
        "adam": lambda: [adam(*betas, eps)],
        "adamw": lambda: [adam(*betas, eps), decay(config.weight_decay)],
        "adamax": lambda: [counted_in_tensors(theirs.scale_by_adamax(*betas, eps))],
        "adagrad": lambda: [theirs.scale_by_rss(eps=eps)],
        "adadelta": lambda: [theirs.scale_by_adadelta(config.square_decay, eps)],
        "rmsprop": lambda: [rms(config.square_decay, eps)],
        "sgd": lambda: [momentum(config.momentum)] if config.momentum else [],
        "bim": lambda: [sign()],
        "mifgsm": lambda: [momentum(config.momentum, normalize=True), sign()],
        "nifgsm": lambda: [momentum(config.momentum, normalize=True), sign()],
    }[config.name]()


def _cycled(config: Optimizer, peak: float, num_steps: int) -> GradientTransformation:
    """The first link of a direction, whose momentum moves against the rate."""
    if config.name == "sgd":
        start, make = config.momentum, momentum
    else:
        start, make = config.betas[0], lambda beta: scale_by_adam(beta, config.betas[1], config.eps)
    return moving(make, one_cycle(start, peak, start, num_steps, config.rise_frac))


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
        "one_cycle": lambda: one_cycle(
            rate * config.start_frac,
            rate,
            rate * (4e-6 if final is None else final),
            num_steps,
            config.rise_frac,
        ),
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

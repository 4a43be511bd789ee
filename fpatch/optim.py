"""Optimizers as torchopt transformations: pairs of pure functions, closed under composition.

Each is scale-free math on a tree of gradients; the state goes in and comes out, and the parameters are never
written in place. They vmap and compile, which torchopt's own Adam and schedules do not.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import optree
import torch
import torchopt
from torch import Tensor
from torchopt.base import EmptyState, GradientTransformation

from fpatch.checks import check_number

Schedule = Callable[[Tensor], Tensor]
"""From the number of updates made so far, a tensor, to the learning rate."""

_map = optree.tree_map


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


class ScheduleState(NamedTuple):
    """Number of updates made."""

    step: Tensor


def descend(schedule: Schedule) -> GradientTransformation:
    """Multiply by minus the learning rate of the step: the last link of every chain."""

    def init(params: Any) -> ScheduleState:
        return ScheduleState(torch.zeros((), dtype=torch.int64))

    def update(updates: Any, state: ScheduleState, *, params: Any = None, inplace: bool = False) -> Any:
        rate = schedule(state.step)
        return _map(lambda u: -rate.to(u) * u, updates), ScheduleState(state.step + 1)

    return GradientTransformation(init, update)


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
            lambda m, v: (m / correct1.to(m)) / ((v / correct2.to(v)).sqrt() + eps), mean, square
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
            updates = _map(lambda g: g / g.abs().sum().clamp(min=1e-12), updates)
        velocity = _map(lambda v, g: decay * v + g, state.velocity, updates)
        return velocity, MomentumState(velocity)

    return GradientTransformation(init, update)


@dataclass(frozen=True)
class Optimizer:
    """How the patch parameters move.

    Attributes:
        name: "adam"; "sgd", with `momentum`; "bim", the sign of the gradient; "mifgsm", the sign of the
            accumulated normalized gradient, with `momentum` as its decay.
        learning_rate: Of the first step; for "bim" and "mifgsm" the step in pixel values.
        schedule: "cosine" falls to 0 over the run, "constant" does not.
        momentum: See `name`.
        betas: Decays of Adam's two means.
    """

    name: Literal["adam", "sgd", "bim", "mifgsm"] = "adam"
    learning_rate: float = 0.05
    schedule: Literal["cosine", "constant"] = "cosine"
    momentum: float = 0.9
    betas: tuple[float, float] = field(default=(0.9, 0.999))

    def __post_init__(self) -> None:
        check_number("optimizer.learning_rate", self.learning_rate, 0.0)
        check_number("optimizer.momentum", self.momentum, 0.0, 1.0)
        for beta in self.betas:
            check_number("optimizer.betas", beta, 0.0, 0.999999)


def make_optimizer(config: Optimizer, num_steps: int) -> GradientTransformation:
    """The transformation that a config describes, for a run of `num_steps` updates."""
    rate = config.learning_rate
    schedule = cosine(rate, num_steps) if config.schedule == "cosine" else constant(rate)
    links = {
        "adam": lambda: (scale_by_adam(*config.betas),),
        "sgd": lambda: (momentum(config.momentum),) if config.momentum else (),
        "bim": lambda: (sign(),),
        "mifgsm": lambda: (momentum(config.momentum, normalize=True), sign()),
    }[config.name]()
    return torchopt.chain(*links, descend(schedule))

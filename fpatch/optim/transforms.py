"""Directions of descent and the learning rate: torchopt transformations, closed under composition.

A direction is pure maths on a tree of gradients: its state goes in and comes out, and nothing is written in
place. All of them vmap and compile. torchopt supplies Adam, AdamW, Adamax, Adagrad, Adadelta and RMSprop;
those here are what it lacks, or cannot supply:

- `momentum`: torchopt's `trace` keeps outside of its state whether it was called before, so the first update
  of a resumed run would lose the decay.
- `clip_norm`: torchopt's reads the norm as a Python number, which neither vmaps nor compiles.
- `scale_by_adam`: torchopt's betas are fixed, and a one-cycle moves the first one. It also continues runs
  that began with it, as do `scale_by_rms` and `decay_weights`.
- `counted_in_tensors`: torchopt's Adamax counts in a Python number, which no checkpoint of tensors holds.

torchopt's RAdam branches on such a number, so it has no name here.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import optree
import torch
from torch import Tensor
from torchopt.base import EmptyState, GradientTransformation

from fpatch.optim.gradient import global_norm
from fpatch.optim.schedules import Rate, Schedule

_map = optree.tree_map


class AdamState(NamedTuple):
    """Running means of the gradient and of its square, and the number of updates."""

    mean: Any
    square: Any
    step: Tensor


def scale_by_adam(
    beta1: float | Tensor = 0.9, beta2: float = 0.999, eps: float = 1e-8
) -> GradientTransformation:
    """Adam: the running mean of the gradient over the root of that of its square.

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
        correct1, correct2 = (1 - _as_double(b, step) ** step for b in (beta1, beta2))
        direction = _map(
            lambda m, v: (m / correct1.to(m.dtype)) / ((v / correct2.to(v.dtype)).sqrt() + eps), mean, square
        )
        return direction, AdamState(mean, square, step)

    return GradientTransformation(init, update)


def _as_double(value: float | Tensor, like: Tensor) -> Tensor:
    return value.double() if isinstance(value, Tensor) else torch.full_like(like, value, dtype=torch.float64)


def sign() -> GradientTransformation:
    """The sign of every gradient; 0 where it is 0.

    References:
        Kurakin, Goodfellow and Bengio (2016), Adversarial examples in the physical world, section 2.2.
    """

    def update(updates: Any, state: Any, *, params: Any = None, inplace: bool = False) -> Any:
        return _map(torch.sign, updates), state

    return GradientTransformation(lambda params: EmptyState(), update)


class MomentumState(NamedTuple):
    """The accumulated gradient."""

    velocity: Any


def momentum(decay: float | Tensor, normalize: bool = False) -> GradientTransformation:
    """Accumulate gradients: `v = decay * v + g`.

    Args:
        decay: The share of the velocity that stays.
        normalize: Divide the gradient of each leaf by its L1 norm first, as MI-FGSM does. A zero gradient
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
    """The running mean of the square of the gradient."""

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


def clip_norm(max_norm: float) -> GradientTransformation:
    """Scale a gradient down to a Euclidean norm over all parameters, if it is longer.

    References:
        Pascanu, Mikolov and Bengio (2013), On the difficulty of training recurrent neural networks,
        algorithm 1.
    """

    def update(updates: Any, state: Any, *, params: Any = None, inplace: bool = False) -> Any:
        scale = (max_norm / (global_norm(updates) + 1e-6)).clamp(max=1.0)  # as torch.nn.utils clips
        return _map(lambda g: g * scale.to(g.dtype), updates), state

    return GradientTransformation(lambda params: EmptyState(), update)


class MovingState(NamedTuple):
    """The number of updates, and the state of the transformation."""

    step: Tensor
    state: Any


def moving(make: Callable[[Tensor], GradientTransformation], value: Schedule) -> GradientTransformation:
    """A transformation one setting of which follows a schedule.

    Args:
        make: `setting -> transformation`; the form of its state does not depend on the setting.
        value: The setting as a function of the step.
    """

    def init(params: Any) -> MovingState:
        step = torch.zeros((), dtype=torch.int64)
        return MovingState(step, make(value(step)).init(params))

    def update(updates: Any, state: MovingState, *, params: Any = None, inplace: bool = False) -> Any:
        now = make(value(state.step))
        updates, after = now.update(updates, state.state, params=params, inplace=False)
        return updates, MovingState(state.step + 1, after)

    return GradientTransformation(init, update)


def counted_in_tensors(direction: GradientTransformation) -> GradientTransformation:
    """The same transformation, whose state holds tensors in place of Python numbers."""

    def init(params: Any) -> Any:
        return _map(lambda x: torch.tensor(x) if isinstance(x, int) else x, direction.init(params))

    return GradientTransformation(init, direction.update)


class Transformation(GradientTransformation):
    """A torchopt transformation that may use the loss, or a gradient at other parameters.

    Its `update` also takes `value`, the loss of the step. `look_ahead(params, state)`, unless it is None,
    returns the parameters at which the gradient is taken.
    """

    update: Callable[..., Any]
    look_ahead: Callable[[Any, Any], Any] | None

    def __new__(cls, init: Any, update: Any, look_ahead: Any = None) -> "Transformation":
        """Make it from the three functions."""
        self = super().__new__(cls, init, update)
        self.look_ahead = look_ahead
        return self


def scale_by_learning_rate(
    direction: GradientTransformation, rate: Rate, look_ahead_frac: float = 0.0
) -> Transformation:
    """Step down along a direction by the learning rate.

    Args:
        direction: The direction of a gradient. With `look_ahead_frac`, its first link is `momentum`.
        rate: The learning rate.
        look_ahead_frac: The distance ahead at which the gradient is taken, as a fraction of an update by the
            momentum alone.
    """

    def init(params: Any) -> Any:
        return direction.init(params), rate.init()

    def update(
        updates: Any, state: Any, *, params: Any = None, inplace: bool = False, value: Tensor | None = None
    ) -> Any:
        direction_state, rate_state = state
        now, types = rate.now(rate_state), _map(lambda g: g.dtype, updates)
        updates, direction_state = direction.update(updates, direction_state, params=params, inplace=False)
        # torchopt widens numbers without an axis; updates keep the types of the gradients
        steps = _map(lambda u, dtype: -now.to(u.device, dtype) * u.to(dtype), updates, types)
        return steps, (direction_state, rate.after(rate_state, value))

    def look_ahead(params: Any, state: Any) -> Any:
        (momentum_state, *_), rate_state = state
        reach = look_ahead_frac * rate.now(rate_state)
        return _map(lambda p, v: p - reach.to(p) * v, params, momentum_state.velocity)

    return Transformation(init, update, look_ahead if look_ahead_frac else None)

"""Values that are no optimizer of this library and states of another training: named, with the way out."""

from collections.abc import Mapping
from typing import Any

import optree
import torch
from torch import Tensor
from torchopt.base import GradientTransformation

from fpatch import random
from fpatch.core.checks import check_count
from fpatch.graph.pipeline import Pipeline
from fpatch.optim.optimizer import Optimizer

_UNSAID = (KeyError, IndexError, TypeError, AttributeError, ValueError, RuntimeError)
_NAMES = {"Adam": "adam", "AdamW": "adamw", "SGD": "sgd", "RMSprop": "rmsprop"}


def check_optimizer(optimizer: Any) -> None:
    """Check that an optimizer is a transformation of gradients, as `make_optimizer` and torchopt make.

    Raises:
        ValueError: Naming what was given, and the call that makes one.

    Example:
        >>> import torch
        >>> from fpatch.optim.mistakes import check_optimizer
        >>> check_optimizer(torch.optim.SGD([torch.zeros(1)], lr=0.1))
        Traceback (most recent call last):
        ValueError: optimizer must be a transformation of gradients, got a SGD; give fpatch.make_optimizer(...
    """
    if isinstance(optimizer, GradientTransformation):
        return
    kind = optimizer if isinstance(optimizer, type) else type(optimizer)
    way = "fpatch.make_optimizer(fpatch.Optimizer(), num_steps=...)"
    if isinstance(optimizer, Optimizer):
        way = "fpatch.make_optimizer(settings, num_steps=...) of these settings"
    elif kind.__name__ in _NAMES:
        rate = getattr(optimizer, "defaults", {}).get("lr", 0.05)
        settings = f"{_NAMES[kind.__name__]!r}, learning_rate={rate}, schedule='constant'"
        way = f"fpatch.make_optimizer(fpatch.Optimizer({settings}), num_steps=...)"
    raise ValueError(
        f"optimizer must be a transformation of gradients, got {_article(optimizer, kind)}; give {way}"
    )


def check_objective(objective: Any) -> None:
    """Check that an argument is an objective.

    Raises:
        ValueError: If it is not; the message says what was given, and how to make one.
    """
    if not hasattr(objective, "pipeline"):
        got = _article(objective, type(objective))
        way_out = "make it by fpatch.Objective(pipeline, {term: weight})"
        raise ValueError(f"objective must be an Objective, got {got}; {way_out}")


def check_fit(state: Any, step: Any, loader: Any, num_steps: Any) -> None:
    """Check the arguments of `fit`.

    Raises:
        ValueError: Naming the argument, what was given, and the call that makes one.

    Example:
        >>> from fpatch.optim.mistakes import check_fit
        >>> check_fit({}, None, None, 10)
        Traceback (most recent call last):
        ValueError: fit(state) must be a state of the training, got a dict; fpatch.make_state makes one; ...
    """
    order = "the order is (state, step, loader, num_steps)"
    if not hasattr(state, "step") or not hasattr(state, "params"):
        what = f"fit(state) must be a state of the training, got {_article(state, type(state))}"
        raise ValueError(f"{what}; fpatch.make_state makes one; {order}")
    if not callable(step):
        what = f"fit(step) must be a function (state, batch), got {_article(step, type(step))}"
        raise ValueError(f"{what}; fpatch.make_step makes one; {order}")
    if not hasattr(loader, "batches"):
        what = f"fit(loader) must be a Loader, got {_article(loader, type(loader))}"
        raise ValueError(f"{what}; fpatch.data.Loader(dataset, key, batch_size) makes one; {order}")
    check_count("fit(num_steps)", num_steps, 0)


def _article(value: Any, kind: type) -> str:
    return f"the class {kind.__name__}" if isinstance(value, type) else f"a {kind.__name__}"


def explain_state(error: Exception, state: Any, pipeline: Pipeline, optimizer: Any, batch: Any) -> str | None:
    """Explain why a step failed by its state and batch; None if they have the right form.

    An error of memory, of a file or of a system is never explained by them.
    """
    if not isinstance(error, _UNSAID) or isinstance(error, torch.OutOfMemoryError):
        return None
    if not hasattr(state, "opt_state"):
        got = type(state).__name__
        return f"step takes (state, batch), and got a {got} as the state; fpatch.make_state makes one"
    if not isinstance(batch, Mapping):
        got = type(batch).__name__
        return f"step takes (state, batch), and got a {got} as the batch; give a mapping of tensors"
    made = pipeline.init(random.fold_in(state.key, "init"))
    held = {**state.fixed, **state.params} if isinstance(state.params, Mapping) else state.params
    if _shapes(made) != _shapes(held):
        return (
            f"state.params must hold the parameters {_shapes(made)}, got {_shapes(held)}; take those "
            "of fpatch.make_state, or of a checkpoint of this pipeline"
        )
    expected = optimizer.init(dict(state.params))
    if _form(expected) != _form(state.opt_state):
        return (
            "state.opt_state is not that of this optimizer and these parameters; take "
            "optimizer.init(params), or the state of a checkpoint of this optimizer"
        )
    return None


def _shapes(params: Any) -> Any:
    if not isinstance(params, Mapping):
        return f"a {type(params).__name__}"
    return {name: list(getattr(value, "shape", ())) for name, value in sorted(params.items())}


def _form(tree: Any) -> Any:
    leaves, spec = optree.tree_flatten(tree)
    return spec, [tuple(leaf.shape) if isinstance(leaf, Tensor) else type(leaf) for leaf in leaves]

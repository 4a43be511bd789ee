"""A criterion of torch.nn by its name, unreduced."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fpatch.core.checks import nearest, shown
from fpatch.core.tree import constant, widen
from fpatch.core.types import Params, Sample, Values
from fpatch.graph.mistakes import describe
from fpatch.graph.stage import define, deterministic

_TRAINED = "it has trained weights, which a loss cannot hold"
_REFUSED = {
    "AdaptiveLogSoftmaxWithLoss": f"{_TRAINED}, and returns the mean of the batch; use NLLLoss",
    "CTCLoss": "its rows are the second axis of log_probs",
    "LinearCrossEntropyLoss": f"{_TRAINED}; use CrossEntropyLoss on the logits",
}
"""Criteria that cannot be stages, and the reasons."""

_REDUCTION = ("reduction", "reduce", "size_average")
"""The settings that reduce rows, in torch's present and former names."""

_WEIGHTS = ("weight", "pos_weight")
"""The settings that are tensors."""

_ARGUMENT = {
    "CrossEntropyLoss": "target",
    "NLLLoss": "target",
    "MultiMarginLoss": "target",
    "MultiLabelMarginLoss": "target",
    "CosineEmbeddingLoss": "target",
    "GaussianNLLLoss": "var",
}
"""The argument whose shape and type differ from those of the first one; torch checks it."""

_NOT_MAPPED = (
    *("KLDivLoss", "MarginRankingLoss", "MultiLabelMarginLoss", "MultiMarginLoss", "SoftMarginLoss"),
    "TripletMarginLoss",
)
"""Criteria with an operator that `torch.func.vmap` does not map."""


@dataclass(frozen=True)
class Criterion:
    """Settings of `losses.criterion`: the criterion and its arguments.

    The stage reads the arguments of the criterion's call, such as `input` and `target`; the node's `reads`
    maps them to values. It writes `criterion` [b]. A criterion that gives a number per element is averaged
    over all axes but the rows.

    The objective averages the rows. That is torch's `reduction="mean"`, with two exceptions. Torch divides by
    the sum of the weights of the targets, and leaves out targets equal to `ignore_index`. Here each row, and
    each element of a row, counts once; an ignored one is 0. For `KLDivLoss`, the mean over the classes is the
    divergence divided by their number.

    Tensors that are compared have one shape: none is broadcast. A target of whole numbers or booleans becomes
    floating point where the criterion compares it with its input.

    Attributes:
        name: A class of `torch.nn`, such as "CrossEntropyLoss".
        arguments: Its keyword arguments, without `reduction`. Lists stand for tensors: the `weight` of each
            class, and the `pos_weight` of `BCEWithLogitsLoss`.

    Example:
        >>> import torch
        >>> from fpatch import losses
        >>> stage = losses.criterion("CrossEntropyLoss", {"weight": [1.0, 3.0]})
        >>> values = {"input": torch.zeros(2, 2), "target": torch.tensor([0, 1])}
        >>> stage.apply({}, {}, values)["criterion"]
        tensor([0.6931, 2.0794])
        >>> depth = {"input": torch.zeros(2, 3), "target": torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 3.0]])}
        >>> losses.criterion("L1Loss").apply({}, {}, depth)["criterion"]
        tensor([2., 1.])

    Raises:
        ValueError: If torch has no such criterion; if it has no number per row; for an unknown argument, a
            reduction, or a value that the criterion refuses.

    References:
        https://docs.pytorch.org/docs/stable/nn.html#loss-functions.
    """

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        given = {name: _frozen(value) for name, value in self.arguments.items()}
        module = _make(self.name, given)
        object.__setattr__(self, "arguments", given)
        object.__setattr__(self, "_made", (module, tuple(inspect.signature(module.forward).parameters)))

    @property
    def module(self) -> nn.Module:
        """The criterion; `arguments` holds its weights."""
        return self._made[0]  # type: ignore[attr-defined]

    @property
    def inputs(self) -> tuple[str, ...]:
        """The arguments of its call."""
        return self._made[1]  # type: ignore[attr-defined]


def apply(config: Criterion, patch_params: Params, sample: Sample, values: Values) -> Values:
    read = _read(config, values)
    first, where = next(iter(read.values())), f"criterion({config.name!r})"
    weights = {
        n: constant(config.arguments[n], like=first) for n in _WEIGHTS if config.arguments.get(n) is not None
    }
    for name, weight in weights.items():
        if weight.ndim >= first.ndim:
            raise ValueError(
                f"{where}: {name} must have fewer axes than {config.inputs[0]!r}, {describe(first)}, got "
                f"{weight.ndim}; an axis of rows would weight rows by their place in the batch"
            )
    try:
        losses = torch.func.functional_call(config.module, weights, tuple(read.values()))
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, IndexError, TypeError, AssertionError) as error:
        got = ", ".join(f"{name} {describe(value)}" for name, value in read.items())
        raise ValueError(f"{where} refuses {got}: {error}") from error
    if losses.shape[:1] != first.shape[:1]:
        got = ", ".join(f"{name} {describe(value)}" for name, value in read.items())
        raise ValueError(f"{where} has no number per row for {got}; give each value an axis of rows first")
    return {"criterion": losses.flatten(1).mean(1) if losses.ndim > 1 else losses}


def _read(config: Criterion, values: Values) -> dict[str, Tensor]:
    """Return the arguments of a call: of one shape and type, where the criterion compares them."""
    where, (lead, *others) = f"criterion({config.name!r})", config.inputs
    for name in config.inputs:
        if not isinstance(values[name], Tensor) or not values[name].ndim:
            raise ValueError(f"{where}: {name!r} must be a tensor [b, ...], got {describe(values[name])}")
    first = widen(values[lead])
    read = {lead: first}
    for name in others:
        value = widen(values[name])
        if name != _ARGUMENT.get(config.name):
            if value.shape != first.shape:
                raise ValueError(
                    f"{where}: {name!r} must have the shape of {lead!r}, {list(first.shape)}, got "
                    f"{list(value.shape)}; a broadcast would compare other rows"
                )
            value = value if value.is_floating_point() else value.to(first.dtype)
        read[name] = value
    return read


def declare(config: Criterion) -> dict[str, Any]:
    """Read the arguments of the criterion."""
    able = {"vmap": config.name not in _NOT_MAPPED, "compile": config.name != "GaussianNLLLoss"}
    return {"reads": config.inputs} | able


def _make(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    """Make the unreduced criterion."""
    known = {
        n: kind
        for n, kind in vars(nn).items()
        if n.endswith("Loss") and isinstance(kind, type) and issubclass(kind, nn.Module)
    }
    where = f"criterion({name!r})"
    if name in _REFUSED:
        raise ValueError(f"{where} is refused: {_REFUSED[name]}")
    if name not in known:
        raise ValueError(f"criterion(name): torch.nn has no criterion {shown(name)}; {nearest(name, known)}")
    settings = inspect.signature(known[name]).parameters
    if "reduction" not in settings:
        raise ValueError(f"{where} is refused: it cannot be made unreduced")
    for argument, value in arguments.items():
        if argument in _REDUCTION:
            raise ValueError(
                f"{where}: {argument} = {shown(value)} reduces rows; leave the mean to the objective"
            )
        if argument not in settings:
            options = [n for n in settings if n not in _REDUCTION]
            raise ValueError(f"{where}: there is no argument {argument!r}; {nearest(argument, options)}")
        if not _is_plain(value):
            raise ValueError(
                f"{where}: {argument} must be a number, a bool, a string or a list, got {shown(value)}"
            )
    plain = {n: value for n, value in arguments.items() if n not in _WEIGHTS}
    try:
        weights = {n: torch.tensor(arguments[n]) for n in _WEIGHTS if arguments.get(n) is not None}
        module = known[name](**plain, **weights, reduction="none")
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise ValueError(f"{where}: {error}") from error
    if any(True for _ in module.parameters()):
        raise ValueError(f"{where} is refused: {_TRAINED}")
    return module


def _frozen(value: Any) -> Any:
    """Convert lists and tensors to tuples of numbers."""
    value = value.tolist() if isinstance(value, Tensor) else value
    return tuple(map(_frozen, value)) if isinstance(value, (list, tuple)) else value


def _is_plain(value: Any) -> bool:
    """Return whether a config file can hold a value."""
    if isinstance(value, tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))


criterion = define(
    "criterion",
    Criterion,
    deterministic,
    apply,
    reads=("input", "target"),
    writes=("criterion",),
    role="loss",
    declare=declare,
)

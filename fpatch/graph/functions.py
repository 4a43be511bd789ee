"""Plain functions as stages: their sample is their key."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypedDict

from jaxtyping import Int64
from torch import Tensor

from fpatch.core.types import Batch, Params, Sample, Values
from fpatch.graph.mistakes import describe, swapped
from fpatch.graph.stage import ALL, Definition, Stage, Traits, deterministic


class KeySample(TypedDict):
    """The sample of a plain function: its row keys."""

    key: Int64[Tensor, "b 2"]


@dataclass(frozen=True)
class Function:
    """The config of a plain function used as a node: the function and the names that it writes."""

    function: Callable[..., Any]
    names: tuple[str, ...]


def _sample_key(config: Function, keys: Tensor, batch: Batch) -> KeySample:
    return {"key": keys}


def _apply_stage_function(config: Function, patch_params: Params, sample: Sample, values: Values) -> Any:
    answer = config.function(patch_params, sample["key"], values)
    if not isinstance(answer, (tuple, list)) or len(answer) != 2 or not isinstance(answer[0], Mapping):
        got = describe(answer)
        raise ValueError(f"{_name(config.function)} must return (out, sample), out a mapping, got {got}")
    out = answer[0]
    return _named(
        config, {n: v for n, v in out.items() if n in config.names or n not in values or v is not values[n]}
    )


def _apply_loss_function(config: Function, patch_params: Params, sample: Sample, values: Values) -> Any:
    try:
        terms = config.function(values, patch_params)
    except KeyError as error:
        if not error.args or error.args[0] not in values:
            raise
        raise ValueError(
            f"{_name(config.function)} looks up {error.args[0]!r}, a value, in the patch parameters; a loss "
            "is called as (values, patch_params): swap its arguments"
        ) from error
    if not isinstance(terms, Mapping):
        raise ValueError(
            f"{_name(config.function)} must return {{term: [b]}}, got {describe(terms)}; return "
            f"{{{config.names[0]!r}: ...}}, one number per row"
        )
    return _named(config, terms)


def _named(config: Function, written: Mapping[str, Any]) -> Mapping[str, Any]:
    """Check that a function wrote the names of its node."""
    if set(written) != set(config.names):
        raise ValueError(
            f"{_name(config.function)} must write {list(config.names)}, but wrote {sorted(written)}; name "
            f"them: node({_name(config.function)}, writes={sorted(written)})"
        )
    return written


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__qualname__", type(function).__name__)


def _arguments(function: Callable[..., Any]) -> tuple[str, ...]:
    """The names of the arguments that a call by position must give."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError as error:
        raise ValueError(f"{function!r} has no signature; wrap it in a function") from error
    if named := [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty]:
        raise ValueError(
            f"{_name(function)}: a plain function is called by position; give {named[0]!r} a default"
        )
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return tuple(p.name for p in parameters if p.kind in positional and p.default is p.empty)


def from_function(
    function: Callable[..., Any], reads: tuple[str, ...] | None, writes: tuple[str, ...]
) -> Stage:
    """Make a stage from a plain function; its number of arguments tells a stage from a loss.

    Args:
        function: `(patch_params, key, batch) -> (out, sample)`, a stage whose sample is its row keys; or
            `(values, patch_params) -> {term: [b]}`, a loss.
        reads: The names that it receives; None for all values.
        writes: The names that it writes.

    Raises:
        ValueError: If the function takes another number of arguments, or has them in another order.

    Example:
        >>> import torch
        >>> from fpatch.graph.functions import from_function
        >>> def dark(values, patch_params):
        ...     return {"dark": values["image"].mean((1, 2, 3))}
        >>> stage = from_function(dark, ("image",), ("dark",))
        >>> stage.definition.role, stage.apply({}, {}, {"image": torch.ones(2, 3, 4, 4)})["dark"]
        ('loss', tensor([1., 1.]))
    """
    taken, name = _arguments(function), _name(function)
    if len(taken) not in (2, 3) or swapped(taken):
        raise ValueError(
            f"{name}: a plain function takes (patch_params, key, batch), or (values, patch_params) as a "
            f"loss; this one takes ({', '.join(taken)})"
        )
    is_loss = len(taken) == 2
    definition: Definition[...] = Definition(
        name=f"{function.__module__}:{name}",
        module=function.__module__,
        config=Function,
        sample=deterministic if is_loss else _sample_key,
        apply=_apply_loss_function if is_loss else _apply_stage_function,
        reads=reads or (ALL,),
        writes=writes,
        fields=() if is_loss else ("key",),
        role="loss" if is_loss else "stage",
        traits=Traits(vmap=False),
    )
    return Stage(definition, Function(function, writes))

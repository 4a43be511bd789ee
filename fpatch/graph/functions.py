"""Plain functions as stages: their sample is their key."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypedDict

from jaxtyping import Int64
from torch import Tensor

from fpatch.core.types import Batch, Params, Sample, Values
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
    out, _ = config.function(patch_params, sample["key"], values)
    return {n: v for n, v in out.items() if n in config.names or n not in values or v is not values[n]}


def _apply_loss_function(config: Function, patch_params: Params, sample: Sample, values: Values) -> Any:
    return config.function(values, patch_params)


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
        ValueError: If the function takes another number of arguments.

    Example:
        >>> import torch
        >>> from fpatch.graph.functions import from_function
        >>> def dark(values, patch_params):
        ...     return {"dark": values["image"].mean((1, 2, 3))}
        >>> stage = from_function(dark, ("image",), ("dark",))
        >>> stage.definition.role, stage.apply({}, {}, {"image": torch.ones(2, 3, 4, 4)})["dark"]
        ('loss', tensor([1., 1.]))
    """
    count = len(inspect.signature(function).parameters)
    name = getattr(function, "__qualname__", type(function).__name__)
    if count not in (2, 3):
        raise ValueError(
            f"{name}: a plain function takes (patch_params, key, batch), or (values, patch_params) as a "
            f"loss; this one takes {count} arguments"
        )
    is_loss = count == 2
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

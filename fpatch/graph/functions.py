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
    """The config of a plain function used as a node, and what it writes."""

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
    """A stage from a plain function, told apart by its number of arguments.

    Args:
        function: `(patch_params, key, batch) -> (out, sample)`, whose sample is its row keys and which
            replays by them; or a loss, `(values, patch_params) -> {term: [b]}`.
        reads: What it is given; None for all values so far.
        writes: What it writes.

    Raises:
        ValueError: If it takes another number of arguments.
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

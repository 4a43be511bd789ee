"""Plain functions as stages: `(patch_params, key, batch) -> (out, sample)`, as stages are called.

What such a function draws is known once it has run. Its sample therefore begins with its row keys, and
`Pipeline.complete` adds the rest. A function that also takes `sample=None` is handed what it drew, so that it
replays and is overridden like any stage. Any other replays by its keys.
"""

import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypedDict

import torch
from jaxtyping import Int64
from torch import Tensor

from fpatch.core.types import Batch, Params, Sample, Values
from fpatch.graph.declarations import ALL, Traits, check_drawn
from fpatch.graph.mistakes import check_mapping, describe, swapped
from fpatch.graph.stage import Definition, Stage, deterministic

KEY = "key"
"""The field of the row keys in the sample of a plain function."""

_RTOL, _ATOL = 1e-3, 1e-5
"""Draws that differ by less are those of another processor."""


class KeySample(TypedDict):
    """The sample of a plain function before it runs: its row keys."""

    key: Int64[Tensor, "b 2"]


@dataclass(frozen=True)
class Function:
    """The config of a plain function used as a node.

    Attributes:
        function: The function.
        names: The names that it writes.
    """

    function: Callable[..., Any]
    names: tuple[str, ...]

    @property
    def takes_sample(self) -> bool:
        """Whether it can be handed what it drew, as `sample`."""
        return "sample" in inspect.signature(self.function).parameters


def _sample_key(config: Function, keys: Tensor, batch: Batch) -> KeySample:
    return {"key": keys}


def _apply_stage_function(config: Function, patch_params: Params, sample: Sample, values: Values) -> Any:
    """Call a function; return what it writes, and its keys with what it drew."""
    name, keys = _name(config.function), sample[KEY]
    given = {field: value for field, value in sample.items() if field != KEY}
    more = {"sample": given} if given and config.takes_sample else {}
    answer = config.function(patch_params, keys, values, **more)
    if not isinstance(answer, (tuple, list)) or len(answer) != 2 or not isinstance(answer[0], Mapping):
        got = describe(answer)
        raise ValueError(f"{name} must return (out, sample), out a mapping, got {got}")
    out, drawn = answer
    drawn = {} if drawn is None else drawn
    check_mapping(f"{name}: the sample", drawn, "return (out, {field: [b, ...]})")
    for field, value in drawn.items():
        check_drawn(name, value if isinstance(value, Mapping) else {field: value}, len(keys))
    if KEY in drawn:
        raise ValueError(f"{name} draws {KEY!r}, which is the name of its keys; rename the field")
    if given:
        _check_kept(config, given, drawn)
    written = {n: v for n, v in out.items() if n in config.names or n not in values or v is not values[n]}
    return _named(config, written), {KEY: keys, **drawn}


def _check_kept(config: Function, given: Mapping[str, Any], drawn: Mapping[str, Any]) -> None:
    """Check that a function drew what its sample says."""
    name, said, found = _name(config.function), spread("", given), spread("", drawn)
    if {path: set(fields) for path, fields in said.items()} != {p: set(f) for p, f in found.items()}:
        raise ValueError(f"{name} drew {sorted(drawn)}, but its sample holds {sorted(given)}")
    for path, fields in said.items():
        for field, value in fields.items():
            own = found[path][field].to(value.device)
            if value.shape != own.shape or not torch.allclose(
                value.double(), own.double(), _RTOL, _ATOL, equal_nan=True
            ):
                why = (
                    "return the sample that was given"
                    if config.takes_sample
                    else "it draws by its key, so that an override changes nothing: give it a fourth "
                    "argument, sample=None. Without an override, its draws depend on the patch: draw from "
                    "the key alone"
                )
                raise ValueError(f"{name} drew another {field!r} than its sample holds; {why}")


def spread(path: str, drawn: Mapping[str, Any]) -> dict[str, dict[str, Tensor]]:
    """Return what a node drew as entries of a sample; a table of its own, `name`, becomes `path/name`.

    Example:
        >>> import torch
        >>> from fpatch.graph.functions import spread
        >>> spread("camera", {"key": torch.ones(1), "dim": {"stops": torch.zeros(1)}})
        {'camera': {'key': tensor([1.])}, 'camera/dim': {'stops': tensor([0.])}}
    """
    own = {field: value for field, value in drawn.items() if not isinstance(value, Mapping)}
    tables = {name: dict(value) for name, value in drawn.items() if isinstance(value, Mapping)}
    return {path: own} | {f"{path}/{name}": table for name, table in tables.items()}


def gather(path: str, sample: Sample) -> dict[str, Any]:
    """Return what a node drew from the entries of a sample: the inverse of `spread`.

    Example:
        >>> import torch
        >>> from fpatch.graph.functions import gather
        >>> gather("camera", {"camera": {"key": torch.ones(1)}, "camera/dim": {"stops": torch.zeros(1)}})
        {'key': tensor([1.]), 'dim': {'stops': tensor([0.])}}
    """
    inside = {name.removeprefix(f"{path}/"): s for name, s in sample.items() if name.startswith(f"{path}/")}
    return {**sample.get(path, {}), **inside}  # type: ignore[dict-item]


def replayed(nodes: Mapping[str, Any], sample: Sample) -> dict[str, Mapping[str, Tensor]]:
    """Return a sample without what functions draw that take no sample; they draw it again by their keys."""
    late = {path: n.stage for path, n in nodes.items() if n.stage.definition.traits.late}
    by_key = [path for path, stage in late.items() if not stage.config.takes_sample]
    kept = {p: fields for p, fields in sample.items() if not any(p.startswith(f"{n}/") for n in by_key)}
    return {p: {KEY: fields[KEY]} if p in by_key else fields for p, fields in kept.items()}  # type: ignore


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


def find_function(identity: str) -> Callable[..., Any] | None:
    """Find the plain function with an id "module:name" in a module that is imported.

    Args:
        identity: The id. The function must be defined at the top of that module.

    Example:
        >>> from fpatch.graph.functions import find_function
        >>> find_function("fpatch.graph.functions:find_function") is find_function
        True
        >>> find_function("fpatch.graph.functions:inspect") is None
        True
    """
    module, _, name = identity.partition(":")
    found = getattr(sys.modules.get(module), name, None)
    return found if inspect.isfunction(found) and _identity(found) == identity else None


def is_importable(config: Any) -> bool:
    """Return whether a config is that of a plain function that a config file can name."""
    if not isinstance(config, Function) or getattr(config.function, "__module__", None) == "__main__":
        return False
    return find_function(_identity(config.function)) is config.function


def _identity(function: Callable[..., Any]) -> str:
    return f"{function.__module__}:{_name(function)}"


def from_function(
    function: Callable[..., Any], reads: tuple[str, ...] | None, writes: tuple[str, ...]
) -> Stage:
    """Make a stage from a plain function; its number of arguments tells a stage from a loss.

    Args:
        function: `(patch_params, key, batch) -> (out, sample)`, a stage that draws from its row keys [b, 2];
            its sample is `{field: [b, ...]}`, and it may take `sample=None`, which it then returns. Or
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
        name=_identity(function),
        module=function.__module__,
        config=Function,
        sample=deterministic if is_loss else _sample_key,
        apply=_apply_loss_function if is_loss else _apply_stage_function,
        reads=reads or (ALL,),
        writes=writes,
        fields=() if is_loss else (KEY,),
        role="loss" if is_loss else "stage",
        traits=Traits(vmap=False, late=not is_loss),
    )
    return Stage(definition, Function(function, writes))

"""The declarations of a stage: its traits, role and summary, and the checks of them."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast, get_args, get_type_hints

import torch
from torch import Tensor

from fpatch.core.checks import check_choice
from fpatch.core.names import check_name
from fpatch.core.types import Values
from fpatch.graph.mistakes import check_mapping

ALL = "*"
"""As the only name in `reads`: the stage receives all values."""

PHASE = "phase"
"""A name in `reads` that no node needs to write: the name of the phase that `Pipeline.at` chose, a string."""

RESERVED = ("stage", "phases", "reads", "writes", "stream")
"""Keys of a node in a config file; no setting may have such a name."""

Names = Sequence[str] | Mapping[str, str]
"""The names that a node gives to values: in the declared order, or by the stage's own names."""

SAMPLE_DTYPES = (torch.float32, torch.int64, torch.bool)
"""The types that a sample may hold; a table keeps them without loss."""

Role = Literal["stage", "victim", "loss", "metric", "drawing"]


class Summary(NamedTuple):
    """Four pure functions by which a metric gathers rows into numbers that are no mean of rows.

    A state is a dict of tensors, or of lists of tensors, so that it can be saved, sent and merged. The
    numbers of one batch are `compute(config, update(config, init(config), values))`.

    Attributes:
        init: `config -> state`, of no rows.
        update: `(config, state, values) -> state`, with the rows [n, ...] of the values read; the old state
            is unchanged.
        merge: `(config, a, b) -> state`, of the rows of `a` followed by those of `b`.
        compute: `(config, state) -> {name: float}`; NaN where a number is undefined.

    Example:
        >>> import torch
        >>> from fpatch.graph.stage import Summary
        >>> rows = Summary(
        ...     init=lambda config: {"n": torch.tensor(0)},
        ...     update=lambda config, state, values: {"n": state["n"] + len(values["found"])},
        ...     merge=lambda config, a, b: {"n": a["n"] + b["n"]},
        ...     compute=lambda config, state: {"rows": float(state["n"])},
        ... )
        >>> state = rows.update(None, rows.init(None), {"found": torch.ones(3)})
        >>> rows.compute(None, rows.merge(None, state, state))
        {'rows': 6.0}
    """

    init: Callable[[Any], dict[str, Any]]
    update: Callable[[Any, Mapping[str, Any], Values], dict[str, Any]]
    merge: Callable[[Any, Mapping[str, Any], Mapping[str, Any]], dict[str, Any]]
    compute: Callable[[Any, Mapping[str, Any]], dict[str, float]]


class Weights(NamedTuple):
    """Four pure functions of a stage whose network is trained.

    Its weights and buffers are entries of the parameters, `path/name`. The stage is handed its own, by their
    own names.

    Attributes:
        init: `(config, key) -> {name: parameter or buffer}`.
        trained: `config -> names of the parameters that get a gradient`.
        learn: `config -> config`, with layers as in training; it writes its next `buffers`.
        freeze: `(config, weights) -> config`, with these weights as constants.
    """

    init: Callable[[Any, Tensor], dict[str, Tensor]]
    trained: Callable[[Any], tuple[str, ...]]
    learn: Callable[[Any], Any]
    freeze: Callable[[Any, Mapping[str, Tensor]], Any]


@dataclass(frozen=True)
class Traits:
    """The flags of a stage: what wiring, compilation, populations and laws may assume of it.

    Attributes:
        geometric: It moves pixels, and therefore corners and boxes too.
        of_patch: A loss on the patch alone; it reads `patch`, and `image_id` only for the number of rows.
        vmap: `torch.func.vmap` maps it over rows.
        gradient: It passes a gradient from what it writes to what it reads.
        compile: `torch.compile` traces it whole.
        eager: Its values decide how much it computes, so that a compiled step runs it uncompiled.
        pixelwise: It makes each pixel of `image` from that pixel alone, and reads and writes nothing else. It
            also takes an image in its channels (`fpatch.ops.color.each_channel`).
        needs: The entries of values that it cannot do without, as "name/entry": "detections/final".
        gives: The entries that it adds, likewise. The others stay if it also reads the value, and are
            dropped if it does not. A stage that declares none may write any.
        late: It draws while it runs: `apply` returns what it writes and its sample.
        mixes_rows: A row of its output depends on the other rows of the batch, as batch statistics do.
        surrogate: The gradient that it passes where it has no useful derivative, such as "straight-through";
            empty: the derivative of what it computes. An adaptive attack trains through it.
    """

    geometric: bool = False
    of_patch: bool = False
    vmap: bool = True
    gradient: bool = True
    compile: bool = True
    eager: bool = False
    pixelwise: bool = False
    needs: tuple[str, ...] = ()
    gives: tuple[str, ...] = ()
    late: bool = False
    mixes_rows: bool = False
    surrogate: str = ""


def check_config(name: str, config: Any) -> None:
    """Check that the settings of a stage are a frozen dataclass without reserved names.

    Raises:
        ValueError: Naming the stage.
    """
    parameters = getattr(config, "__dataclass_params__", None)
    if parameters is None or not parameters.frozen or not isinstance(config, type):
        raise ValueError(
            f"define({name!r}): config must be a frozen dataclass, the class itself, got {config!r}; write "
            "@dataclass(frozen=True) above it"
        )
    taken = [f.name for f in dataclasses.fields(config) if f.name in RESERVED]
    if taken:
        raise ValueError(f"define({name!r}): the setting {taken[0]!r} is a reserved word; rename it")


def sampled_fields(name: str, sample: Callable[..., Any], reads: tuple[str, ...]) -> tuple[str, ...]:
    """The fields of the TypedDict that `sample` returns; `declare` adds those that are not required.

    Raises:
        ValueError: If it declares none, or an opacity without reading `patch`.
    """
    declared = get_type_hints(sample).get("return")
    if not (isinstance(declared, type) and issubclass(declared, dict) and hasattr(declared, "__total__")):
        raise ValueError(
            f"define({name!r}): sample must declare its fields; annotate its return type with a TypedDict "
            "(a stage that draws nothing uses fpatch.graph.stage.deterministic)"
        )
    if "opacity" in declared.__annotations__ and "patch" not in reads and ALL not in reads:
        raise ValueError(
            f"define({name!r}): the field `opacity` fades a patch, and every control sets it to 0; a stage "
            "that does not read `patch` must rename the field"
        )
    required = cast(Any, declared).__required_keys__
    return tuple(name for name in declared.__annotations__ if name in required)


def check_declared(
    name: str,
    role: Role,
    summary: Summary | None,
    reads: tuple[str, ...],
    writes: tuple[str, ...],
    optional: tuple[str, ...],
    pixelwise: bool,
) -> None:
    """Check that role, summary and names fit each other.

    Raises:
        ValueError: For a summary that is no metric, or a pixelwise stage with other names than `image`.
    """
    check_name(f"define({name!r})", name.rpartition(":")[2])
    check_choice(f"define({name!r}): role", role, get_args(Role))
    for side, names in (("reads", reads), ("writes", writes), ("optional", optional)):
        if isinstance(names, str) or not all(isinstance(n, str) for n in names):
            raise ValueError(f"define({name!r}): {side} must be a tuple of names, got {names!r}; add a comma")
    if summary is not None and (role != "metric" or ALL in reads):
        raise ValueError(
            f"define({name!r}): a summary belongs to a metric with named reads; give role='metric' and "
            "reads=(...)"
        )
    if pixelwise and (reads, writes, optional) != (("image",), ("image",), ()):
        raise ValueError(
            f"define({name!r}): a pixelwise stage reads and writes `image` and nothing else, got reads "
            f"{reads + optional} and writes {writes}; leave pixelwise out"
        )


def check_counted(name: str, role: Role, counted: str | None, reads: tuple[str, ...]) -> None:
    """Check that the value which tells the counted rows belongs to a loss that reads it.

    Raises:
        ValueError: If the stage is no loss, or does not read the value.
    """
    if counted is not None and (role != "loss" or counted not in reads):
        raise ValueError(
            f"define({name!r}): counted={counted!r} must be a name in the reads of a loss, got role {role!r} "
            f"and reads {reads}; leave it out, or add the name to reads"
        )


def check_drawn(name: str, drawn: Any, num_rows: int) -> dict[str, Tensor]:
    """Return a sample as a dict, after a check of its types and rows.

    Raises:
        ValueError: Naming the stage and the field.
    """
    check_mapping(f"{name}: what sample returns", drawn, "return {field: [b, ...]}")
    for field, value in drawn.items():
        if not isinstance(field, str) or not field or field.isdigit() or "/" in field:
            raise ValueError(
                f"{name}: {field!r} is no name of a sampled value, which is a column of tables; leave out "
                "'/', and begin with a letter"
            )
        has_rows = isinstance(value, Tensor) and value.shape[:1] == (num_rows,)
        if not has_rows or value.dtype not in SAMPLE_DTYPES:
            got = f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f"{name}: sample[{field!r}] must be a float32, int64 or bool tensor of {num_rows} rows, "
                f"got {got}"
            )
    return dict(drawn)

"""A loss on embeddings of pytorch-metric-learning by its name, as one number per row.

Such a loss compares each row with its neighbors. Its pairs, triplets or rows have an anchor: the row that is
compared.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fpatch.core.checks import nearest, shown
from fpatch.core.tree import widen
from fpatch.core.types import Params, Sample, Values
from fpatch.graph.mistakes import describe
from fpatch.graph.stage import define, deterministic

_TRAINED = "it has trained weights, which a loss cannot hold"
_OF_THE_BATCH = "it is one number of the whole batch, without a share of each row"
_WRAPPER = "it wraps another loss; name that one"
_ORDER = "it depends on the order of the rows in the batch"
_BASE = "it is a base class"
_REFUSED = {
    **dict.fromkeys(
        (
            *(
                "ArcFaceLoss",
                "CosFaceLoss",
                "LargeMarginSoftmaxLoss",
                "ManifoldLoss",
                "NormalizedSoftmaxLoss",
            ),
            *("P2SGradLoss", "ProxyAnchorLoss", "ProxyNCALoss", "SoftTripleLoss", "SphereFaceLoss"),
            "SubCenterArcFaceLoss",
        ),
        _TRAINED,
    ),
    **dict.fromkeys(("HistogramLoss", "PNPLoss", "ThresholdConsistentMarginLoss"), _OF_THE_BATCH),
    **dict.fromkeys(("InstanceLoss", "NPairsLoss", "SmoothAPLoss"), _ORDER),
    **dict.fromkeys(("BaseLossWrapper", "MultipleLosses", "SelfSupervisedLoss"), _WRAPPER),
    **dict.fromkeys(("BaseMetricLossFunction", "GenericPairLoss"), _BASE),
    "CrossBatchMemory": "it keeps a memory, which is a state",
    "DynamicSoftMarginLoss": "it keeps a histogram, which is a state",
    "VICRegLoss": "it takes two views and no classes",
}
"""Losses that cannot be stages, and the reasons."""

_OBJECTS = (
    *("collect_stats", "embedding_reg_weight", "embedding_regularizer", "mat_based_loss", "reducer"),
    *("weight_init_func", "weight_reg_weight", "weight_regularizer"),
)
"""Arguments that are objects of the library, or belong to them."""


@dataclass(frozen=True)
class MetricLearning:
    """Settings of `losses.metric_learning`: the loss and its arguments.

    The stage writes `metric_learning` [b]. The mean of these terms is the value that the library returns. The
    library, by the default reducer of the loss, divides a sum over pairs, triplets or rows by their number.
    For some losses that number counts only those above 0. The term of a row is b times its share: the sum of
    those whose anchor it is, divided by that number. A row that is no anchor has 0, and so has every row of a
    batch without pairs.

    A term depends on the other rows of the batch, but not on their order. A step with this loss takes its
    batch whole, without micro-batches, in one process.

    Attributes:
        name: A class of `pytorch_metric_learning.losses`, such as "TripletMarginLoss".
        arguments: Its keyword arguments. `distance` is the name of a class of
            `pytorch_metric_learning.distances`, or a mapping of its `name` and its arguments.

    Example:
        >>> import torch
        >>> from fpatch import losses
        >>> embeddings = torch.tensor([[0.0], [1.0], [3.0]])
        >>> values = {"embeddings": embeddings, "target": torch.tensor([0, 0, 1])}
        >>> distance = {"name": "LpDistance", "normalize_embeddings": False}
        >>> stage = losses.metric_learning("TripletMarginLoss", {"margin": 2.5, "distance": distance})
        >>> stage.apply({}, {}, values)["metric_learning"]
        tensor([0.7500, 2.2500, 0.0000])

    Raises:
        ValueError: If the library has no such loss; if it has no number per row, keeps a state or has
            trained weights; for an argument that is unknown, an object, or refused by the loss.
        ImportError: If the extra `embeddings` is not installed.

    References:
        Musgrave, Belongie and Lim (2020), PyTorch Metric Learning;
        https://kevinmusgrave.github.io/pytorch-metric-learning/reducers. Hermans, Beyer and Leibe (2017), In
        defense of the triplet loss for person re-identification (means of all triplets or of those above 0).
    """

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "arguments", dict(self.arguments))
        object.__setattr__(self, "_made", _make(self.name, self.arguments))


def apply(config: MetricLearning, patch_params: Params, sample: Sample, values: Values) -> Values:
    if torch.compiler.is_compiling():
        return torch.compiler.disable(_apply)(config, values)  # type: ignore[reportCallIssue]
    return _apply(config, values)


def _apply(config: MetricLearning, values: Values) -> Values:
    loss, reducer = config._made  # type: ignore[attr-defined]
    embeddings, target, where = widen(values["embeddings"]), values["target"], _where(config.name)
    are_tensors = isinstance(embeddings, Tensor) and isinstance(target, Tensor)
    if (
        not are_tensors
        or embeddings.ndim != 2
        or target.shape != embeddings.shape[:1]
        or target.is_floating_point()
    ):
        raise ValueError(
            f"{where} takes embeddings [b, d] and the class of each row as target int64 [b], got "
            f"{describe(embeddings)} and {describe(target)}; wire them by the node's reads"
        )
    terms = (0.0 * embeddings).sum(1)
    for part in loss(embeddings, target).values():
        found = part["losses"]
        if not isinstance(found, Tensor):  # 0: there is no pair
            continue
        if part["reduction_type"] == "already_reduced":
            raise ValueError(f"{where} is refused: {_OF_THE_BATCH}")
        indices = part["indices"]
        anchors = indices if part["reduction_type"] == "element" else indices[0]
        kept, count = _counted(reducer, found.flatten(), part.get("divisor"))  # some are [n, 1]
        share = kept * len(terms) / count.clamp(min=1)
        terms = terms.index_put((anchors,), share, accumulate=True)  # in one order on a GPU too
    return {"metric_learning": terms}


def _counted(reducer: str, losses: Tensor, divisor: Any) -> tuple[Tensor, Tensor]:
    """Return the losses that a reducer of the library counts, the others 0, and their number."""
    if reducer == "AvgNonZeroReducer":
        return torch.where(losses > 0, losses, 0.0), (losses > 0).sum()
    number = len(losses) if reducer == "MeanReducer" else divisor
    return losses, torch.as_tensor(number, device=losses.device)


def declare(config: MetricLearning) -> dict[str, Any]:
    """Declare that a row depends on its neighbors."""
    return {"mixes_rows": True}


def _make(name: str, arguments: Mapping[str, Any]) -> tuple[Any, str]:
    """Make the loss without its reducer, and return it with the name of its default reducer."""
    try:
        from pytorch_metric_learning import losses, reducers
    except ImportError as error:
        raise ImportError(
            "losses.metric_learning needs pytorch-metric-learning: pip install 'fpatch[embeddings]'"
        ) from error
    where = _where(name)
    if name in _REFUSED:
        raise ValueError(f"{where} is refused: {_REFUSED[name]}")
    base = losses.BaseMetricLossFunction
    known = {n: kind for n, kind in _classes(losses, base).items() if n not in _REFUSED}
    if name not in known:
        raise ValueError(
            f"metric_learning(name): the library has no loss {shown(name)}; {nearest(name, known)}"
        )
    given = _checked(where, known[name], arguments)
    if given.get("triplets_per_anchor", "all") != "all":
        raise ValueError(f"{where}: triplets_per_anchor must be 'all'; others are drawn without a key")
    try:
        made = known[name](**given, collect_stats=False)
        reducer = made.reducer
        made.set_reducer(reducers.DoNothingReducer())
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        raise ValueError(f"{where}: {error}") from error
    if any(True for _ in made.parameters()):
        raise ValueError(f"{where} is refused: {_TRAINED}")
    inside = (
        [*reducer.reducers.values(), reducer.default_reducer] if hasattr(reducer, "reducers") else [reducer]
    )
    kind = type(inside[0]).__name__
    if kind not in ("MeanReducer", "AvgNonZeroReducer", "DivisorReducer"):
        raise ValueError(f"{where} is refused: its reducer {kind} has no share of each row")
    return made, kind


def _checked(where: str, kind: type, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Check keyword arguments against the signatures of a class and its bases; make the distance."""
    made = dict(arguments)
    signatures = [inspect.signature(base.__init__).parameters.values() for base in kind.__mro__[:-1]]
    named = {p.name for group in signatures for p in group if p.kind is p.POSITIONAL_OR_KEYWORD} - {"self"}
    for argument, value in arguments.items():
        if argument in _OBJECTS:
            raise ValueError(f"{where}: {argument} is an object of the library; leave it out")
        if argument not in named:
            options = named - {*_OBJECTS}
            raise ValueError(f"{where}: there is no argument {argument!r}; {nearest(argument, options)}")
        if argument == "distance":
            made["distance"] = _make_distance(where, value)
        elif not (value is None or isinstance(value, (bool, int, float, str))):
            raise ValueError(f"{where}: {argument} must be a number, a bool or a string, got {shown(value)}")
    return made


def _make_distance(where: str, given: Any) -> Any:
    """Make a distance of the library from its name, or from a mapping of its name and arguments."""
    from pytorch_metric_learning import distances

    base = distances.BaseDistance
    known = {
        n: c for n, c in _classes(distances, base).items() if n not in ("BaseDistance", "BatchedDistance")
    }
    arguments = dict(given) if isinstance(given, Mapping) else {"name": given}
    name = arguments.pop("name", None)
    if name not in known:
        raise ValueError(f"{where}: distance must be a name, got {shown(name)}; {nearest(str(name), known)}")
    return known[name](**_checked(f"{where}: {name}", known[name], arguments))


def _classes(module: Any, base: type) -> dict[str, type]:
    return {n: c for n, c in vars(module).items() if isinstance(c, type) and issubclass(c, base)}


def _where(name: str) -> str:
    return f"metric_learning({name!r})"


metric_learning = define(
    "metric_learning",
    MetricLearning,
    deterministic,
    apply,
    reads=("embeddings", "target"),
    writes=("metric_learning",),
    role="loss",
    declare=declare,
    vmap=False,
    compile=False,
)

"""Any metric of torchmetrics, or a collection of them, with an explicit state.

The given metric is a template: every update works on a copy. The state is a dict of the states of all metrics
inside, so that phases, conditions and shards each have their own.
"""

import inspect
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fpatch.core.checks import nearest
from fpatch.core.resource import Resource, define_loader, resolve
from fpatch.core.tree import widen
from fpatch.core.types import Params, Sample, Values
from fpatch.graph.stage import Summary, define, deterministic
from fpatch.metrics._matching import alone


@dataclass(frozen=True)
class Torchmetric:
    """Settings of `metrics.torchmetric`: the metric, and the arguments of its `update`.

    The stage writes no value per row. Its summary holds each number under the name of its metric's class.

    Attributes:
        metric: A `torchmetrics.Metric` or `MetricCollection`; or the `Resource` that makes one, in TOML
            {loader = "metrics.torchmetrics", arguments = {name = "MulticlassAccuracy", num_classes = 2}}.
        inputs: The arguments that the metric's `update` gets; the node's `reads` maps them to values.

    Example:
        >>> import torch
        >>> from fpatch import metrics
        >>> stage = metrics.torchmetric(metrics.torchmetrics(name="MeanSquaredError"))
        >>> values = {"preds": torch.tensor([1.0, 2.0]), "target": torch.tensor([1.0, 4.0])}
        >>> config, summary = stage.config, stage.definition.summary
        >>> summary.compute(config, summary.update(config, summary.init(config), values))
        {'MeanSquaredError': 2.0}

    Raises:
        ValueError: If `inputs` is empty, or `metric` is no metric of torchmetrics.
        ImportError: If the extra `metrics` is not installed.
    """

    metric: Resource | nn.Module
    inputs: tuple[str, ...] = ("preds", "target")

    def __post_init__(self) -> None:
        if not self.inputs:
            raise ValueError("torchmetric(inputs) must name at least one argument of the metric's update")
        if not isinstance(self.metric, Resource):
            _check_metric(self.metric)


def declare(config: Torchmetric) -> dict[str, Any]:
    """Read the arguments of the metric."""
    return {"reads": config.inputs}


def apply(config: Torchmetric, patch_params: Params, sample: Sample, values: Values) -> Values:
    """Write nothing per row."""
    return {}


def init(config: Torchmetric) -> dict[str, Any]:
    """Return the states of fresh metrics, by `metric/state`."""
    return _dump(_fresh(config))


def update(config: Torchmetric, state: Mapping[str, Any], values: Values) -> dict[str, Any]:
    metrics = _load(config, state)
    for name, metric in metrics.items():
        taken = inspect.signature(metric.update).parameters
        every = any(p.kind is p.VAR_KEYWORD for p in taken.values())
        given = {n: widen(values[n]) for n in config.inputs if every or n in taken}
        if not given:
            raise ValueError(
                f"torchmetric(inputs): {name}.update takes {', '.join(taken)}, but is given "
                f"{', '.join(config.inputs)}; name its arguments, and wire them by the node's reads"
            )
        metric.update(**given)
    return _dump(metrics)


def merge(config: Torchmetric, a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Any]:
    """Merge two states by the rule with which torchmetrics joins processes.

    Raises:
        ValueError: If a state is not joined by sum, maximum, minimum or concatenation: averages of unknown
            weight cannot be joined.
    """
    from torchmetrics.utilities import dim_zero_cat, dim_zero_max, dim_zero_min, dim_zero_sum

    joined = {
        dim_zero_sum: lambda x, y: x + y,
        dim_zero_max: torch.maximum,
        dim_zero_min: torch.minimum,
        dim_zero_cat: lambda x, y: torch.cat([torch.atleast_1d(x), torch.atleast_1d(y)]),
    }
    merged = {}
    for path, metric, name in _states(_fresh(config)):
        x, y, how = a[path], b[path], metric._reductions[name]
        if isinstance(x, list):
            merged[path] = [*x, *y]
        elif how in joined:
            merged[path] = joined[how](x, y)
        else:
            raise ValueError(
                f"torchmetric: the state {name!r} of {type(metric).__name__} cannot be merged; evaluate the "
                "shards as one data set"
            )
    return merged


def compute(config: Torchmetric, state: Mapping[str, Any]) -> dict[str, float]:
    """Return each number by its metric's name; a vector's index or a dict's key follows the name."""
    numbers: dict[str, float] = {}
    for name, metric in _load(config, state).items():
        with warnings.catch_warnings():  # the copy does not know that its state was updated
            warnings.filterwarnings("ignore", message="The ``compute`` method of metric")
            numbers |= dict(_flatten(name, metric.compute()))
    return numbers


def _flatten(name: str, value: Any) -> Iterator[tuple[str, float]]:
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from _flatten(f"{name}/{key}", part)
    elif isinstance(value, (list, tuple)) or (isinstance(value, Tensor) and value.ndim):
        for i, part in enumerate(value):
            yield from _flatten(f"{name}/{i}", part)
    else:
        yield name, float(value)


def _check_metric(metric: Any) -> Any:
    try:
        from torchmetrics import Metric, MetricCollection
    except ImportError as error:
        raise ImportError("metrics.torchmetric needs torchmetrics: pip install 'fpatch[metrics]'") from error
    if not isinstance(metric, (Metric, MetricCollection)):
        raise ValueError(
            "torchmetric(metric) must be a torchmetrics.Metric, a MetricCollection or a resource that makes "
            f"one, got {metric!r}; {'call the class' if isinstance(metric, type) else 'make one by name'}, "
            "as metrics.torchmetrics(name='MulticlassAccuracy', num_classes=2) does"
        )
    return metric


def _fresh(config: Torchmetric) -> dict[str, Any]:
    """Copy every metric alone: the metrics of a collection may share states.

    The copies join no processes: an evaluation runs in one, and a collective would wait for the others.
    """
    from torchmetrics import Metric, MetricCollection

    metric = _check_metric(resolve(config.metric)).clone()
    metric.reset()
    metrics = {type(metric).__name__: metric}
    if isinstance(metric, MetricCollection):
        metrics = {name: m.clone() for name, m in metric.items(copy_state=True)}
    for inside in (m for whole in metrics.values() for m in whole.modules()):
        if isinstance(inside, Metric):
            inside.distributed_available_fn = alone
    return metrics


def _states(metrics: Mapping[str, Any]) -> Iterator[tuple[str, Any, str]]:
    """Yield the path of every state, the metric that holds it (maybe nested), and its name there."""
    from torchmetrics import Metric

    for name, whole in metrics.items():
        for inside, metric in whole.named_modules(prefix=name):
            if isinstance(metric, Metric):
                yield from ((f"{inside}/{state}", metric, state) for state in metric.metric_state)


def _dump(metrics: Mapping[str, Any]) -> dict[str, Any]:
    return {path: _copy(getattr(metric, name)) for path, metric, name in _states(metrics)}


def _load(config: Torchmetric, state: Mapping[str, Any]) -> dict[str, Any]:
    metrics = _fresh(config)
    for path, metric, name in _states(metrics):
        setattr(metric, name, _copy(state[path]))
    return metrics


def _copy(value: Any) -> Any:
    return [v.detach().clone() for v in value] if isinstance(value, list) else value.detach().clone()


def _is_of_images(metric: type) -> bool:
    """Return whether a metric may measure images.

    Metrics of texts and sounds load networks by name, which may run code from the folder that is named.
    """
    return metric.__module__.split(".")[1] not in ("text", "audio", "multimodal")


def _load_metric(name: str, **arguments: Any) -> Any:
    """Make a metric of torchmetrics by the name of its class; in configs, the loader `metrics.torchmetrics`.

    Args:
        name: The class, such as "MulticlassAccuracy".
        **arguments: The arguments of the class.

    Raises:
        ValueError: If torchmetrics has no such metric of images; the error names the nearest one.

    Example:
        >>> from fpatch import metrics
        >>> metric = metrics.torchmetrics(name="MulticlassAccuracy", num_classes=2)
        >>> metric.value
        MulticlassAccuracy()
    """
    import torchmetrics

    modules = [torchmetrics, *(m for m in vars(torchmetrics).values() if inspect.ismodule(m))]
    known = {
        n: found
        for module in modules
        for n, found in vars(module).items()
        if inspect.isclass(found) and issubclass(found, torchmetrics.Metric) and _is_of_images(found)
    }
    if name not in known:
        raise ValueError(f"torchmetrics has no metric {name!r}; {nearest(name, known)}")
    return known[name](**arguments)


torchmetrics = define_loader("torchmetrics", _load_metric)

torchmetric = define(
    "torchmetric",
    Torchmetric,
    deterministic,
    apply,
    reads=("preds", "target"),
    writes=(),
    role="metric",
    summary=Summary(init, update, merge, compute),
    declare=declare,
    vmap=False,
)

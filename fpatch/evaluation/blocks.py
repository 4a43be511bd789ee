"""Measure rows in blocks of a fixed number, under every condition."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import optree
import torch
from torch import Tensor

from fpatch.core.tree import device_of, take_rows, to_device
from fpatch.core.types import Batch, Sample, Values
from fpatch.evaluation.columns import metric_names, split_group, tensor_digest
from fpatch.evaluation.conditions import NONE, PATCH, Patches, main_condition
from fpatch.evaluation.coverage import covered_shares
from fpatch.graph.mistakes import describe
from fpatch.graph.node import inside
from fpatch.graph.pipeline import Pipeline
from fpatch.graph.samples import control


def measure(
    pipeline: Pipeline,
    conditions: Mapping[str, Patches],
    sample: Sample,
    batch: Batch,
    block: int,
    keep: Sequence[str] = (),
) -> dict[str, Values]:
    """Measure at most one block of rows under every condition.

    The pipeline runs on the device of the patches, where its networks must be too; without patches, on that
    of its networks. Results are on the host.

    Args:
        pipeline: The pipeline of the evaluated phase.
        conditions: Patches by condition; "none" runs with every opacity 0.
        sample: The samples of the rows [n, ...].
        batch: The same rows, n <= block.
        block: Rows that run together; a short block repeats its last row.
        keep: Names of further values to return.

    Returns:
        Per condition `{metric: [n] or [n, m], "digest": [n strings], "finite": {group: [n]}, "seen": {path:
        {name: [n, ...]}}, "seen_finite": {path: [n]}, name kept: [n, ...]}`. "finite" is true where the image
        and all that the metrics of a group rest on is finite. "seen" holds the inputs of the metrics with a
        summary, and "seen_finite" whether they are finite. The condition "patch" also has "covered": the
        columns of `covered_shares`.

    Example:
        >>> import tempfile
        >>> from fpatch import random
        >>> from fpatch.demo.tiny import tiny_study
        >>> from fpatch.evaluation.blocks import measure
        >>> from fpatch.evaluation.conditions import make_patches
        >>> study = tiny_study(tempfile.mkdtemp())
        >>> test, scenes = study.pipeline.at("test"), study.data.open().split("test")
        >>> patches = make_patches(test, test.init(random.key(0)))
        >>> batch = scenes.batch(scenes.image_ids[:2])
        >>> sample = test.sample(random.key(1), batch)
        >>> results = measure(test, {"patch": patches, "none": patches}, sample, batch, block=4)
        >>> results["none"]["found"], results["patch"]["confidence"].shape
        (tensor([True, True]), torch.Size([2]))
    """
    n = len(batch["image_id"])
    assert n <= block, "measure runs one block"
    body = pipeline.without(*pipeline.parameterizations)
    metrics = metric_names(pipeline)
    filled, padded = to_device(_pad_rows((sample, batch), block), find_device(pipeline, conditions))
    results: dict[str, Values] = {}
    for name, patches in conditions.items():
        drawn = control(filled) if name == NONE else filled  # type: ignore[arg-type]
        with torch.no_grad():
            values, seen, finite = body.observe(
                _NoParams(),
                drawn,  # type: ignore[arg-type]
                {**padded, **patches},  # type: ignore[dict-item]
                want=(*metrics, "image", *keep),
            )
        _check_metrics(pipeline, {m: values[m] for m in metrics}, block)
        masks = {m: finite.names[m] for m in ("image", *metrics) if m in finite.names}
        found = take_rows((values, seen, masks, finite.summaries), slice(0, n))
        values, seen, masks, gathered = to_device(found, "cpu")
        digests = [tensor_digest(image) for image in values["image"]]
        if "image" not in keep:
            del values["image"]  # one condition's images at a time
        more = {"finite": _by_group(masks, metrics, n), "seen": seen, "seen_finite": gathered}
        results[name] = values | {"digest": digests} | more
    if PATCH in conditions:
        with torch.no_grad():
            shares = covered_shares(body, _NoParams(), filled, {**padded, **conditions[PATCH]})
        results[PATCH]["covered"] = to_device(take_rows(shares, slice(0, n)), "cpu")
    return results


def find_device(pipeline: Pipeline, conditions: Mapping[str, Patches]) -> torch.device:
    """Return the device of the patches; without patches, that of the pipeline's networks.

    Example:
        >>> import torch, fpatch
        >>> from fpatch.evaluation.blocks import find_device
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 5)).eval()
        >>> find_device(fpatch.pipeline({"victim": fpatch.infer.classifier(net)}), {"none": {}})
        device(type='cpu')
    """
    if optree.tree_leaves(conditions):  # type: ignore[arg-type]
        return device_of(conditions)
    layers = (layer for _, layer in pipeline.named_layers())
    return device_of(next((t for layer in layers for t in layer.state_dict().values()), None))


def complete(
    pipeline: Pipeline, conditions: Mapping[str, Patches], sample: Sample, batch: Batch, block: int
) -> Sample:
    """Add to a sample what plain functions draw while they run, in the image without a patch.

    Args:
        pipeline: The pipeline of the evaluated phase.
        conditions: Patches by condition.
        sample: The samples of the rows [n, ...].
        batch: The same rows, n <= block.
        block: Rows that run together; a short block repeats its last row.
    """
    late = [path for path, n in pipeline.items() if n.stage.definition.traits.late]
    if not late:
        return sample
    body = pipeline.without(*pipeline.parameterizations)
    filled, padded = to_device(_pad_rows((sample, batch), block), find_device(pipeline, conditions))
    shown = conditions[main_condition(conditions)]
    with torch.no_grad():
        whole = body.complete(_NoParams(), control(filled), {**padded, **shown})  # type: ignore[dict-item]
    own = {path: drawn for path, drawn in whole.items() if any(inside(path, n) for n in late)}
    return {**sample, **to_device(take_rows(own, slice(0, len(batch["image_id"]))), "cpu")}


def _check_metrics(pipeline: Pipeline, values: Values, rows: int) -> None:
    """Check that each metric holds one number per row, [b], or per object, [b, m]."""
    for name, value in values.items():
        is_number = isinstance(value, Tensor) and not value.is_complex()
        if is_number and value.ndim in (1, 2) and len(value) == rows:
            continue
        got = describe(value) if isinstance(value, Tensor | Mapping) else f"{describe(value)}, no tensor"
        writer = next(path for path, n in pipeline.items() if name in n.writes.values())
        raise ValueError(
            f"node {writer!r}: the metric {name!r} must hold one real number per row, [{rows}], or per "
            f"object, [{rows}, m], got {got}; leave means over rows to the evaluation"
        )


def _by_group(masks: Mapping[str, Tensor], metrics: Sequence[str], rows: int) -> dict[str, Tensor]:
    """Join the masks [b] of the metrics of each group with that of the image."""
    true = torch.ones(rows, dtype=torch.bool)
    groups = {split_group(metric)[0]: masks.get("image", true) for metric in metrics}
    for metric in metrics:
        group, _ = split_group(metric)
        groups[group] = groups[group] & masks.get(metric, true)
    return groups


class _NoParams(dict[str, Tensor]):
    """Patch parameters of an evaluation: reading one is an error, since controls have none."""

    def __missing__(self, name: str) -> Tensor:
        raise ValueError(
            f"evaluation: a node reads the parameters {name!r}, but an evaluation has patches only; read "
            '`patch` instead, or give the node phases = ["train"]'
        )


def _pad_rows(tree: Any, block: int) -> Any:
    """Pad every tensor [n, ...] to [block, ...] with copies of its last row."""
    return optree.tree_map(lambda x: torch.cat([x, x[-1:].expand(block - len(x), *x.shape[1:])]), tree)


def blocks(count: int, block: int) -> Iterator[slice]:
    """Cut `count` rows into slices of at most `block` rows."""
    return (slice(start, min(start + block, count)) for start in range(0, count, block))

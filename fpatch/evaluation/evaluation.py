"""Measure a patch against its controls on the same samples.

Rows run in blocks of a fixed number, one condition per block, because the last bits of a network's answers
depend on the size of the batch. Only `measure` runs blocks: `evaluate` gives it fresh samples, and `replay`
logged ones.

No image outlives its block: the tables and the states of metrics are all that grows with the rows.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import optree
import torch
from torch import Tensor

from fpatch import random
from fpatch.core.checks import check_kind, check_number
from fpatch.core.types import Batch, Params, Sample
from fpatch.data import Dataset, rows
from fpatch.data.target_set import check_dataset
from fpatch.evaluation.blocks import blocks, complete, find_device, measure
from fpatch.evaluation.columns import (
    goal_columns,
    metric_names,
    object_columns,
    result_columns,
    row_digests,
)
from fpatch.evaluation.conditions import NONE, PATCH, Patches, check_finite, make_conditions
from fpatch.evaluation.growing import Growing
from fpatch.evaluation.summaries import compute_states, init_states, update_states
from fpatch.graph.contracts import copy_readable
from fpatch.graph.drawable import check_placed
from fpatch.graph.keys import row_keys
from fpatch.graph.pipeline import Pipeline
from fpatch.graph.samples import to_columns


def evaluate(
    pipeline: Pipeline,
    patch_params: Params,
    dataset: Dataset,
    key: Tensor,
    *,
    num_draws: int = 1,
    block: int = 16,
    conditions: Mapping[str, Patches] | None = None,
    pictures: Mapping[str, Tensor] | None = None,
    edit: Callable[[Sample], Sample] | None = None,
    keep: Sequence[str] = (),
    progress: Callable[[int, int], None] | None = None,
) -> "Evaluation":
    """Run every image of a data set under every condition.

    Args:
        pipeline: The pipeline of the evaluated phase; its metric nodes measure.
        patch_params: The trained parameters.
        dataset: The images.
        key: The key of the samples; it must not depend on the step of training.
        num_draws: Samples per image.
        block: Rows that run together, part of the recorded execution.
        conditions: Patches by condition, "patch" among them; by default those of `make_conditions`. For a
            pipeline that makes no patch "none" is enough.
        pictures: Further controls for `make_conditions`, [3, h, w] by name.
        edit: A function of every sample, such as one that calls `override`, for a counterfactual.
        keep: Names of further values [n, ...] to keep for all rows, in memory, such as "detections".
        progress: Called with the rows done and their total.

    Returns:
        The tables of rows and of objects, the values kept, and the summaries of metrics.

    Raises:
        ValueError: If `block` or `num_draws` is under 1, the conditions lack "patch", a patch is not finite,
            no node writes a name in `keep`, or an edit chooses a placement that an image lacks.

    Example:
        >>> import tempfile
        >>> from fpatch import evaluate, random
        >>> from fpatch.demo.tiny import tiny_study
        >>> study = tiny_study(tempfile.mkdtemp())
        >>> test, scenes = study.pipeline.at("test"), study.data.open().split("test")
        >>> result = evaluate(test, test.init(random.key(0)), scenes, random.key(1), num_draws=2)
        >>> list(result.conditions), result.table["draw"].tolist()
        (['patch', 'none', 'noise', 'flat', 'shuffled'], [0, 0, 0, 0, 1, 1, 1, 1])
        >>> bool(result.table["found/none"].all())
        True
    """
    check_kind("evaluate(pipeline)", pipeline, Pipeline, "make it by fpatch.pipeline({...})")
    pipeline = pipeline.freeze(patch_params)
    check_dataset("evaluate(dataset)", dataset)
    check_number("evaluate.block", block, 1)
    made = (
        make_conditions(pipeline, patch_params, random.fold_in(key, "control"), pictures)
        if conditions is None
        else conditions
    )
    if PATCH not in made and (NONE not in made or pipeline.parameterizations):
        raise ValueError(
            f"evaluate(conditions) must hold {PATCH!r}, with which the others are compared, got {[*made]}; "
            "add it"
        )
    check_finite(made)
    image_id, draw = rows(dataset.image_ids, num_draws)
    table, objects = Growing(len(image_id)), Growing(len(image_id))
    metrics, kept = metric_names(pipeline), []
    states = {c: init_states(pipeline) for c in made}
    for part in blocks(len(image_id), block):
        batch = dataset.batch(image_id[part], draw[part], find_device(pipeline, made))
        keys = row_keys(key, batch)
        sample = pipeline.sample(keys, batch if part.start else copy_readable(batch))  # checked once on a GPU
        sample = complete(pipeline, made, sample, batch, block)
        if edit is not None:
            sample = edit(sample)
            check_placed(pipeline, sample, batch)
        results = measure(pipeline, made, sample, batch, block, keep)
        goals = goal_columns(pipeline, dataset.class_names, len(keys))
        table.add(describe_rows(dataset, batch, keys, sample) | result_columns(results, metrics) | goals)
        found = object_columns(results, batch, metrics)
        counted = len(found.get("image_id", ()))
        objects.add(found | goal_columns(pipeline, dataset.class_names, counted, objects=True))
        for c, values in results.items():
            states[c] = update_states(pipeline, states[c], values["seen"], values["seen_finite"])
        if keep:
            kept.append({c: {name: values[name] for name in keep} for c, values in results.items()})
        del batch, sample, results, found  # the next block needs their room
        if progress is not None:
            progress(part.stop, len(image_id))
    whole: Any = optree.tree_map(lambda *xs: torch.cat(xs), *kept) if keep else {}
    names = dataset.class_names
    summaries = {c: compute_states(pipeline, state, names) for c, state in states.items()}
    return Evaluation(table.columns(), made, whole, objects.columns(), states, summaries)


class Evaluation(NamedTuple):
    """The result of an evaluation.

    Attributes:
        table: Columns of equal length, one entry per row: `image_id`, `draw`, `path` (of the image, from the
            root of the data), `photograph` (digest), `key/0`, `key/1`, `sample` (digest),
            `sample/<node>/<field>`, `<metric>/<condition>`, `<metric>/delta` (patch minus none),
            `<metric>/delta/<control>`, `<group>label` (the true class), `<group>finite/<condition>` (whether
            all that the metrics of a group rest on is finite), `digest/<condition>`; `goal`, the name of the
            class, of a targeted metric; `covered_image_<patch>` and `covered_object_<patch>`, the shares of
            the image and of the object most covered that a patch covers.
        conditions: The patches shown.
        kept: `{condition: {name: [n, ...]}}`.
        objects: Columns of equal length, one entry per object, of metrics that write [n, m], such as
            `metrics.object_hit`; see `object_columns`. Empty without such a metric.
        states: `{condition: {path: state}}` of the metrics that gather rows; `merge_states` joins those of
            two shards.
        summaries: `{condition: {path/name: number}}` of those metrics.
    """

    table: dict[str, np.ndarray]
    conditions: Mapping[str, Patches]
    kept: dict[str, dict[str, Any]]
    objects: dict[str, np.ndarray] = {}  # noqa: RUF012 (the default of a NamedTuple, never written to)
    states: dict[str, dict[str, Any]] = {}  # noqa: RUF012
    summaries: dict[str, dict[str, float]] = {}  # noqa: RUF012


def describe_rows(dataset: Dataset, batch: Batch, keys: Tensor, sample: Sample) -> dict[str, np.ndarray]:
    """Return the columns of rows that hold what was drawn: identity, image, key and sample."""
    ids = batch["image_id"].tolist()
    drawn = to_columns(sample)
    names = getattr(dataset, "image_names", dataset.paths)
    return {
        "image_id": batch["image_id"].numpy(),
        "draw": batch["draw"].numpy(),
        "path": np.array([str(names[i]) for i in ids]),
        "photograph": np.array([dataset.digest(i) for i in ids]),
        "key/0": keys[:, 0].numpy(),
        "key/1": keys[:, 1].numpy(),
        **{f"sample/{path}": column for path, column in drawn.items()},
        "sample": row_digests(drawn),
    }

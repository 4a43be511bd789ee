"""The answers of each victim to images without a patch: how good it is, by split and class."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fpatch.core.types import Batch, Values
from fpatch.data import TargetSet
from fpatch.doctor.observations import Saturation, Trace, find_saturated
from fpatch.evaluation.blocks import blocks
from fpatch.evaluation.columns import split_group
from fpatch.graph.node import Node
from fpatch.graph.pipeline import Pipeline
from fpatch.graph.samples import control
from fpatch.metrics.detection_hit import choose_object
from fpatch.ops.detections import boxes_of, log_scores
from fpatch.ops.geometry import pairwise_iou
from fpatch.study.setup import Setup
from fpatch.study.splits import evaluation_key
from fpatch.study.study import Study

CLEAN_ROWS = 256
"""The most images of a split that a victim answers without a patch, unless more are asked for."""

CLEAN_SECONDS = 15.0
"""After this time no further images of a split are answered: a large victim answers fewer of them."""

NEAR_IOU = 0.5
"""A detection with this overlap answers an object, unless a metric sets another one."""

NOTHING = -1
"""The label of an answer without a class, and of an image without a known class."""


class Answers(NamedTuple):
    """The answers of one victim to the objects of one split, an image each or several.

    Attributes:
        victim: The path of the victim.
        split: The name of the split's phase: "train", "validation" or "test".
        images: The images examined.
        total: The images of the split.
        truth: The labels [n] of the objects, `NOTHING` if unknown.
        said: The labels [n] that the victim answers for them, `NOTHING` if none.
        right: Whether each answer is right [n], by the study's metric.
    """

    victim: str
    split: str
    images: int
    total: int
    truth: Tensor
    said: Tensor
    right: Tensor


class Count(NamedTuple):
    """The right answers and all, of one class."""

    right: int
    count: int


class CleanFacts(NamedTuple):
    """How good a victim is on the images of one split without a patch.

    Attributes:
        victim: The path of the victim.
        split: "train", "validation" or "test".
        images: The images examined.
        total: The images of the split.
        classes: The right answers and all by the name of the true class; "" if the class is unknown.
    """

    victim: str
    split: str
    images: int
    total: int
    classes: dict[str, Count]

    @property
    def all(self) -> Count:
        """The right answers and all, over all classes."""
        counts = self.classes.values()
        return Count(sum(c.right for c in counts), sum(c.count for c in counts))


class Asked(NamedTuple):
    """A phase run on the images of one split without a patch.

    Attributes:
        split: "train", "validation" or "test".
        answers: The answers, one entry for each victim.
        saturated: The stages that turn most of an image black or white.
        pipeline: The pipeline of the phase.
        batch: The first rows.
        sample: Their samples without a patch.
        trace: The values of each node in these rows.
    """

    split: str
    answers: list[Answers]
    saturated: dict[str, Saturation]
    pipeline: Pipeline
    batch: Batch
    sample: Any
    trace: Trace


def ask_split(study: Study, parts: Setup, split: str, num_rows: int) -> Asked:
    """Run images of a split without a patch, `num_rows` at a time, spread over its classes.

    The training images pass the stages of the test, as its phase has the metrics.
    """
    pipeline = study.placed.at("test" if split == "train" else split).freeze(parts.initial.all_params)
    dataset = parts.dataset.split(getattr(study.data, split))
    ids, begun = _spread(dataset)[: max(CLEAN_ROWS, num_rows)], time.monotonic()
    first, found, images = None, [], 0
    for part in blocks(len(ids), num_rows):
        batch = dataset.batch(ids[part])
        with torch.no_grad():
            sample = control(pipeline.sample(evaluation_key(study, split), batch))
            trace = pipeline.trace(parts.initial.all_params, sample, batch)
        found.append(read_answers(study.evaluate.metric, pipeline, trace, batch))
        first = first or (batch, sample, trace)
        images = part.stop
        if time.monotonic() - begun > CLEAN_SECONDS:
            break
    assert first is not None
    answers = []
    for victim in found[0]:
        truth, said, right = (torch.cat(column) for column in zip(*(f[victim] for f in found), strict=True))
        answers.append(Answers(victim, split, images, len(dataset), truth, said, right))
    return Asked(split, answers, find_saturated(first[2], first[0]), pipeline, *first)


def count_answers(answers: Answers, names: Sequence[str]) -> CleanFacts:
    """Count the right answers of each class."""
    truth, right = answers.truth.tolist(), answers.right.tolist()
    count, good = Counter(truth), Counter(t for t, r in zip(truth, right, strict=True) if r)
    classes = {name_of(label, names): Count(good[label], count[label]) for label in sorted(count)}
    return CleanFacts(answers.victim, answers.split, answers.images, answers.total, classes)


def name_of(label: int, names: Sequence[str]) -> str:
    """Return the name of a label: its number if it has no name, "" for `NOTHING`."""
    if label == NOTHING:
        return ""
    return names[label] if label < len(names) else str(label)


def values_before(asked: Asked, path: str) -> Values:
    """Return the values of the first rows that a node could read."""
    values: Values = dict(asked.batch)
    for earlier in list(asked.pipeline)[: list(asked.pipeline).index(path)]:
        values.update(asked.trace[earlier])
    return values


def victims_of(pipeline: Pipeline) -> dict[str, Node]:
    """Return the nodes of victims that answer logits or detections."""
    victims = {p: n for p, n in pipeline.items() if n.stage.definition.role == "victim"}
    return {p: n for p, n in victims.items() if {"logits", "detections"} & set(n.writes)}


def read_answers(
    metric: str, pipeline: Pipeline, trace: Trace, batch: Batch
) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """Return the true labels, the answered ones and whether they are right, by victim."""
    values: Values = dict(batch)
    for written in trace.values():
        values.update(written)
    found = {}
    for path, n in victims_of(pipeline).items():
        answer = n.writes.get("logits") or n.writes["detections"]
        name = split_group(answer)[0] + split_group(metric)[1]
        right = values.get(name, values.get(metric))
        right = right if isinstance(right, Tensor) and right.dtype == torch.bool else None
        if "logits" in n.writes:
            found[path] = _read_classes(values[answer], values, right)
        else:
            score, iou = _thresholds(pipeline, name, metric)
            found[path] = _read_objects(values[answer]["dense"], values, right, score, iou)
    return found


def _thresholds(pipeline: Pipeline, *names: str) -> tuple[float, float]:
    """Return the score and the overlap from which on the metric of these names counts a detection."""
    writers = [n for n in pipeline.values() if set(names) & set(n.writes.values())]
    config = writers[0].stage.config if writers else None
    return getattr(config, "score", 0.5), getattr(config, "iou", NEAR_IOU)


def _read_classes(logits: Tensor, values: Values, right: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    said = logits.argmax(-1)
    truth = values.get("target", torch.full_like(said, NOTHING))
    same = truth == said
    return truth, said, same if right is None or right.ndim != 1 else same | right


def _read_objects(
    dense: Mapping[str, Tensor], values: Values, right: Tensor | None, score: float, iou: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Read the answers to all objects, or to the object of each row if the metric is one of rows."""
    if "boxes" not in values:  # no objects are known: all that can be told is what the metric says
        unknown = torch.full((len(dense["logits"]),), NOTHING)
        return unknown, unknown, torch.zeros_like(unknown).bool() if right is None else right
    said = _answer_objects(dense, values["boxes"], score, iou)
    truth, valid = torch.where(values["box_valid"], values["labels"], NOTHING), values["box_valid"]
    if right is not None and right.ndim == 1:
        chosen = choose_object(values)
        said, truth, valid = (t.gather(1, chosen)[:, 0] for t in (said, truth, valid))
    same = truth == said
    good = same if right is None else same | right
    return truth[valid], said[valid], good[valid]


def _answer_objects(dense: Mapping[str, Tensor], boxes: Tensor, score: float, iou: float) -> Tensor:
    """Return the label [b, m] of the best dense box on each object, `NOTHING` if none reaches the score."""
    scores, labels = log_scores(dense).max(-1)
    near = pairwise_iou(boxes, boxes_of(dense, labels)) >= iou
    best, index = torch.where(near, scores[:, None], -torch.inf).max(-1)
    said = labels.gather(1, index)
    return torch.where(best.exp() >= score, said, NOTHING)


def _spread(dataset: TargetSet) -> Tensor:
    """Order the images so that any first part holds all classes, from all over the split."""
    ids = dataset.image_ids
    places = (torch.arange(len(ids), dtype=torch.float64) * 0.6180339887498949).frac().argsort()
    ids = ids[places]
    if "labels" not in dataset.tables:
        return ids
    labels = dataset.tables["labels"][ids, 0].tolist()
    seen: Counter[int] = Counter()
    turns = []
    for label in labels:
        turns.append(seen[label])
        seen[label] += 1
    return ids[torch.tensor(turns).argsort(stable=True)]

"""Recall and average precision of detections in COCO's JSON format, from any program."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from fpatch.core.checks import check_number, nearest
from fpatch.metrics._matching import answered_scores, coco_precision
from fpatch.ops.intervals import Rate, wilson

IOU_THRESHOLDS, RECALL_THRESHOLDS = np.linspace(0.5, 0.95, 10).tolist(), np.linspace(0.0, 1.0, 101).tolist()
"""Those of pycocotools, in double precision: 0.1 in single is above a recall of 1 in 10."""


class ClassScore(NamedTuple):
    """What is known of one class.

    Attributes:
        objects: Objects of it; crowds do not count.
        detections: Detections of it, whatever their score.
        recall: Share of the objects that a detection of at least the score answers, with an interval over
            photographs.
        precision: Average precision at the overlap; NaN without objects.
    """

    objects: int
    detections: int
    recall: Rate
    precision: float


class DetectionScore(NamedTuple):
    """What detections are worth.

    Attributes:
        recall: Over all objects.
        precision: AP at the overlap, mean over the classes that have objects.
        coco: The same, mean over the overlaps 0.5 to 0.95.
        classes: By name.
        images: Images of the ground truth.
        silent: Of those, images without a detection; their objects are not found.
    """

    recall: Rate
    precision: float
    coco: float
    classes: dict[str, ClassScore]
    images: int
    silent: int


def score_detections(
    truth: str | Path, detections: str | Path, iou: float = 0.5, score: float = 0.5
) -> DetectionScore:
    """Score the detections in one file against the ground truth in another.

    Args:
        truth: COCO ground truth: `images` with `id`, `categories` with `id` and `name`, `annotations` with
            `image_id`, `category_id`, `bbox` [x, y, width, height] in pixels and maybe `iscrowd`.
        detections: COCO results: a list of `image_id`, `category_id`, `bbox`, `score`.
        iou: The overlap that counts as a match, for recall and AP.
        score: The threshold on a detection's score, for recall.

    Raises:
        ValueError: With file, entry and value, for whatever is not as described; for detections of an image
            or a category that the ground truth does not have; for ids that are there twice.
        ImportError: Without the extra `metrics`.
    """
    check_number("score_detections(iou)", iou, 0.0, 1.0)
    if not math.isfinite(score):
        raise ValueError(f"score_detections(score) must be a finite number, got {score}")
    images, names, objects = _read_truth(Path(truth))
    found = _read_detections(Path(detections), images, names)
    answers = [_tensors(found[i], "score") for i in images]
    real = [_tensors(objects[i], "iscrowd") for i in images]
    answered = [answered_scores(a, t, iou) for a, t in zip(answers, real, strict=True)]
    counts = [len(scores) for scores in answered]
    best, photograph = torch.cat(answered).numpy(), np.repeat(np.arange(len(images)), counts)
    labels = torch.cat([t["labels"] for t in real]).numpy()
    counted = ~np.isnan(best)
    hit = best >= score
    at_iou = coco_precision(answers, real, [iou], RECALL_THRESHOLDS)
    detected = torch.cat([a["labels"] for a in answers]).numpy()

    def recall(of: np.ndarray) -> Rate:
        return wilson(hit[counted & of], photograph[counted & of])

    classes = {
        name: ClassScore(
            int((counted & (labels == label)).sum()),
            int((detected == label).sum()),
            recall(labels == label),
            at_iou["classes"].get(label, math.nan),
        )
        for label, name in enumerate(names.values())
    }
    return DetectionScore(
        recall(np.ones_like(counted)),
        at_iou["map"],
        coco_precision(answers, real, IOU_THRESHOLDS, RECALL_THRESHOLDS)["map"],
        classes,
        len(images),
        sum(not found[i] for i in images),
    )


Entries = dict[Any, list[dict[str, Any]]]
"""Annotations or detections by image."""


def _read_truth(path: Path) -> tuple[list[Any], dict[Any, str], Entries]:
    data = _read_json(path)
    if not isinstance(data, Mapping):
        raise ValueError(f"{path}: ground truth must be an object with images, annotations and categories")
    for section in ("images", "annotations", "categories"):
        if not isinstance(data.get(section), list):
            raise ValueError(f"{path}: the list {section!r} is required; {nearest(section, data)}")
    images = [_get(path, f"images[{i}]", e, "id") for i, e in enumerate(data["images"])]
    categories = [
        (_get(path, f"categories[{i}]", e, "id"), str(_get(path, f"categories[{i}]", e, "name")))
        for i, e in enumerate(data["categories"])
    ]
    _refuse_twice(path, "images", images)
    _refuse_twice(path, "categories", [i for i, _ in categories])
    _refuse_twice(path, "categories (by name)", [name for _, name in categories])
    if not images:
        raise ValueError(f"{path}: there are no images")
    names = dict(categories)
    return images, names, _by_image(path, "annotations", data["annotations"], images, names, "iscrowd", 0)


def _read_detections(path: Path, images: Sequence[Any], names: Mapping[Any, str]) -> Entries:
    data = _read_json(path)
    if not isinstance(data, list):
        raise ValueError(f"{path}: detections must be a list of image_id, category_id, bbox and score")
    return _by_image(path, "", data, images, names, "score", None)


def _by_image(
    path: Path,
    section: str,
    entries: Sequence[Any],
    images: Sequence[Any],
    names: Mapping[Any, str],
    extra: str,
    default: Any,
) -> Entries:
    """Checked entries, under their images; `extra` is the number that they have beside the box."""
    by_image: Entries = {i: [] for i in images}
    labels = {category: label for label, category in enumerate(names)}
    for i, entry in enumerate(entries):
        where = f"{section}[{i}]"
        image, category = (_get(path, where, entry, n) for n in ("image_id", "category_id"))
        if image not in by_image:
            raise ValueError(
                f"{path}: {where}.image_id is {image!r}, an image that the ground truth does not have; "
                "score it against the ground truth of its own images"
            )
        if category not in names:
            known = [f"{n} ({name})" for n, name in names.items()]
            raise ValueError(f"{path}: {where}.category_id is {category!r}; known: {', '.join(known)}")
        box, number = _get(path, where, entry, "bbox"), _get(path, where, entry, extra, default)
        numbers = [*box, number] if isinstance(box, list) and len(box) == 4 else []
        if not numbers or not all(_is_finite(n) for n in numbers) or min(box[2:]) < 0:
            raise ValueError(
                f"{path}: {where} must have a bbox [x, y, width, height] and a {extra}, finite numbers, got "
                f"{box!r} and {number!r}"
            )
        by_image[image].append({"bbox": box, "label": labels[category], extra: number})
    return by_image


def _tensors(entries: Iterable[Mapping[str, Any]], extra: str) -> dict[str, torch.Tensor]:
    """As torchmetrics takes them, boxes xyxy."""
    entries = list(entries)
    boxes = torch.tensor([e["bbox"] for e in entries], dtype=torch.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    kind, name = (torch.float64, "scores") if extra == "score" else (torch.int64, "iscrowd")
    numbers = torch.tensor([e[extra] for e in entries], dtype=kind)
    return {
        "boxes": boxes,
        "labels": torch.tensor([e["label"] for e in entries], dtype=torch.int64),
        name: numbers,
    }


def _read_json(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; check the path")
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON: {error}") from error


def _get(path: Path, where: str, entry: Any, name: str, default: Any = None) -> Any:
    if not isinstance(entry, Mapping):
        raise ValueError(f"{path}: {where} must be an object, got {entry!r}")
    value = entry.get(name, default)
    if value is None:
        raise ValueError(f"{path}: {where} lacks {name!r}; {nearest(name, entry)}")
    if name in ("id", "image_id", "category_id") and not isinstance(value, (int, str)):
        raise ValueError(f"{path}: {where}.{name} must be a whole number or a name, got {value!r}")
    return value


def _refuse_twice(path: Path, section: str, ids: Sequence[Any]) -> None:
    seen: set[Any] = set()
    for value in ids:
        if value in seen:
            raise ValueError(f"{path}: {section} has {value!r} twice; ids must differ")
        seen.add(value)


def _is_finite(value: Any) -> bool:
    if isinstance(value, int) and not isinstance(value, bool):
        return abs(value) < 2**63
    return isinstance(value, float) and math.isfinite(value)

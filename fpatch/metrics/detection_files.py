"""Recall and average precision of detections in COCO's JSON format, from any program."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from fpatch.core.checks import check_number, nearest, shown
from fpatch.core.inputs import parse_json, read_text
from fpatch.metrics._matching import answered_scores, coco_precision
from fpatch.ops.intervals import Rate, wilson

_IOU_THRESHOLDS, _RECALL_THRESHOLDS = np.linspace(0.5, 0.95, 10).tolist(), np.linspace(0.0, 1.0, 101).tolist()
"""The thresholds of pycocotools, in double precision: 0.1 in single is above a recall of 1 in 10."""


class ClassScore(NamedTuple):
    """The scores of one class.

    Attributes:
        objects: The number of its objects; crowds do not count.
        detections: The number of its detections, at any score.
        recall: The share of the objects that a detection of at least the score answers, with an interval
            over images.
        precision: The average precision at the overlap; NaN without objects.
    """

    objects: int
    detections: int
    recall: Rate
    precision: float


class DetectionScore(NamedTuple):
    """The scores of the detections in a file.

    Attributes:
        recall: The recall over all objects.
        precision: The AP at the overlap, averaged over the classes that have objects.
        coco: The AP averaged over the overlaps 0.5 to 0.95 too.
        classes: The scores of each class, by name.
        images: The number of images of the ground truth.
        silent: The number of these images without a detection; their objects are not found.
        left_out: The number of detections that the AP does not count. COCO counts the best 100 of an image
            and class.
    """

    recall: Rate
    precision: float
    coco: float
    classes: dict[str, ClassScore]
    images: int
    silent: int
    left_out: int = 0


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

    Returns:
        Recall and average precision, over all classes and by class.

    Raises:
        ValueError: If a file has another form, an id stands twice, or a detection names an image or a
            category that the ground truth does not have. The error names file, entry and value.
        ImportError: If the extra `metrics` is not installed.

    References:
        https://cocodataset.org/#format-data and https://cocodataset.org/#format-results.

    Example:
        >>> import json, tempfile
        >>> from pathlib import Path
        >>> from fpatch import metrics
        >>> box = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 8, 8]}
        >>> truth = {"images": [{"id": 1}], "categories": [{"id": 1, "name": "car"}], "annotations": [box]}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     a, b = Path(folder, "truth.json"), Path(folder, "detections.json")
        ...     _ = a.write_text(json.dumps(truth)), b.write_text(json.dumps([{**box, "score": 0.9}]))
        ...     scores = metrics.score_detections(a, b)
        >>> scores.recall.value, scores.precision, scores.classes["car"].objects
        (1.0, 1.0, 1)
    """
    check_number("score_detections(iou)", iou, 0.0, 1.0)
    check_number("score_detections(score)", score, 0.0, 1.0)
    images, names, objects = _read_truth(Path(truth))
    found = _read_detections(Path(detections), images, names)
    answers = [_tensors(found[i], "score") for i in images]
    real = [_tensors(objects[i], "iscrowd") for i in images]
    answered = [answered_scores(a, t, iou) for a, t in zip(answers, real, strict=True)]
    counts = [len(scores) for scores in answered]
    best, image = torch.cat(answered).numpy(), np.repeat(np.arange(len(images)), counts)
    labels = torch.cat([t["labels"] for t in real]).numpy()
    counted = ~np.isnan(best)
    hit = best >= score
    at_iou = coco_precision(answers, real, [iou], _RECALL_THRESHOLDS)
    detected = torch.cat([a["labels"] for a in answers]).numpy()

    def recall(of: np.ndarray) -> Rate:
        return wilson(hit[counted & of], image[counted & of])

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
        coco_precision(answers, real, _IOU_THRESHOLDS, _RECALL_THRESHOLDS)["map"],
        classes,
        len(images),
        sum(not found[i] for i in images),
        at_iou["left_out"],
    )


_Entries = dict[Any, list[dict[str, Any]]]
"""Annotations or detections, by the id of their image."""


def _read_truth(path: Path) -> tuple[list[Any], dict[Any, str], _Entries]:
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
        raise ValueError(f"{path}: there are no images; list one at least, with its id")
    names = dict(categories)
    images.sort(
        key=lambda i: (isinstance(i, str), i)
    )  # as pycocotools: of equal scores the first counts first
    return images, names, _by_image(path, "annotations", data["annotations"], images, names, "iscrowd", 0)


def _read_detections(path: Path, images: Sequence[Any], names: Mapping[Any, str]) -> _Entries:
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
) -> _Entries:
    """Check entries and sort them by image; `extra` names the number that stands beside the box."""
    by_image: _Entries = {i: [] for i in images}
    labels = {category: label for label, category in enumerate(names)}
    for i, entry in enumerate(entries):
        where = f"{section}[{i}]"
        image, category = (_get(path, where, entry, n) for n in ("image_id", "category_id"))
        if image not in by_image:
            raise ValueError(
                f"{path}: {where}.image_id is {shown(image)}, an image that the ground truth does not have; "
                "score it against the ground truth of its own images"
            )
        if category not in names:
            known = [f"{n} ({name})" for n, name in names.items()]
            more = f" and {len(known) - 40} more" if len(known) > 40 else ""
            raise ValueError(
                f"{path}: {where}.category_id is {shown(category)}, which the ground truth does not have; "
                f"known: {', '.join(known[:40])}{more}"
            )
        box, number = _get(path, where, entry, "bbox"), _get(path, where, entry, extra, default)
        numbers = [*box, number] if isinstance(box, list) and len(box) == 4 else []
        ends = [box[0] + box[2], box[1] + box[3]] if numbers and all(map(_is_finite, numbers)) else []
        if not ends or not all(map(math.isfinite, ends)) or min(box[2:]) < 0:
            raise ValueError(
                f"{path}: {where} must have a bbox [x, y, width, height] and a {extra}, finite numbers, got "
                f"{shown(box)} and {shown(number)}"
            )
        if extra == "iscrowd" and number not in (0, 1):
            raise ValueError(f"{path}: {where}.iscrowd must be 0 or 1, got {number!r}; leave it out for 0")
        if extra == "score" and not 0 <= number <= 1:
            raise ValueError(
                f"{path}: {where}.score must be within 0..1, got {number!r}; divide percentages by 100, and "
                "put logits through a sigmoid"
            )
        by_image[image].append({"bbox": box, "label": labels[category], extra: number})
    return by_image


def _tensors(entries: Iterable[Mapping[str, Any]], extra: str) -> dict[str, torch.Tensor]:
    """Return the tensors that torchmetrics takes, with boxes xyxy."""
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
    text = read_text(path)
    try:
        return parse_json(text)
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON: {error}; save it again") from error


def _get(path: Path, where: str, entry: Any, name: str, default: Any = None) -> Any:
    if not isinstance(entry, Mapping):
        raise ValueError(f"{path}: {where} must be an object, got {shown(entry)}")
    value = entry.get(name, default)
    if value is None:
        raise ValueError(f"{path}: {where} lacks {name!r}; {nearest(name, entry)}")
    if name in ("id", "image_id", "category_id") and (
        isinstance(value, bool) or not isinstance(value, int | str)
    ):
        raise ValueError(f"{path}: {where}.{name} must be a whole number or a name, got {shown(value)}")
    return value


def _refuse_twice(path: Path, section: str, ids: Sequence[Any]) -> None:
    seen: set[Any] = set()
    for value in ids:
        if value in seen:
            raise ValueError(f"{path}: {section} has {shown(value)} twice; ids must differ")
        seen.add(value)


def _is_finite(value: Any) -> bool:
    if isinstance(value, int) and not isinstance(value, bool):
        return abs(value) < 2**63
    return isinstance(value, float) and math.isfinite(value)

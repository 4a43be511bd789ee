"""Detectors of the YOLO families, distinguished by the format of their answer.

The image is fitted into the network's input as in training: by a letterbox, or stretched. The boxes are moved
back to pixels of the image, not clipped to it. The formats:

    v4   boxes [b, n, 1, 4] xyxy in 0..1 of the input, confidences [b, n, c], objectness times class
    v5   [b, n, 5 + c]  center, width, height in pixels, objectness, classes          v5, v7
    v8   [b, 4 + c, n]  center, width, height in pixels, classes         v8, v9, v11, v12, v5u
    v10  [b, m, 6]      xyxy in pixels, score, class, of the network's own selection  v10, v26

Probabilities become log-odds, exactly. `logits` are those of the classes, in v4 of the product; only v5 has
`objectness`. In v10 each of the m boxes has one class, and all others are `ABSENT`. Boxes that the network
did not select have no gradient. If the network also answers the head that it selected from (`one2one`, as
Ultralytics' networks do), that head is decoded instead. Then every box has every class and a gradient, and
the scores are the same.

Labels are the network's own class numbers, from 0. `infer.suppress` answers

- like Ultralytics' `predict` with score=0.25, iou=0.7, num_detections=300, multi_label=False,
  num_candidates=30000;
- like its `predict(nms=False)`, after v10, with score=0.25, iou=1.0, num_detections=300;
- like the demo of pytorch-YOLOv4 with score=0.4, iou=0.6, multi_label=False.

The letterbox is that of `predict(rect=False)`. By default, `predict` pads to the next multiples of 32 only;
here that is size=(height, width).

References:
    Ultralytics 8.4: `data.augment.LetterBox(auto=False)`, `utils.ops.scale_boxes`, `nn.modules.head.Detect`.
    Tianxiaomo/pytorch-YOLOv4: tool/yolo_layer.py. Li et al. (2020), Generalized Focal Loss, eq. 5 (boxes as
    distributions). Wang et al. (2024), YOLOv10, section 3.1 (the one-to-one head).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from fpatch.core.checks import check_number
from fpatch.core.resource import Resource, resolve
from fpatch.core.tree import constant, is_concrete, widen
from fpatch.core.types import Params, Sample, Values
from fpatch.graph.stage import define, deterministic
from fpatch.infer._boundary import check_model, check_victim, describe, run_victim, show_log_scores
from fpatch.ops.detections import ABSENT, log_odds

_GRAY = 114 / 255
"""The level of the padding of a letterbox."""

_EXPECTED = {
    "v4": "a pair of boxes [b, n, 1, 4] and confidences [b, n, c]",
    "v5": "[b, n, 5 + c]",
    "v8": "[b, 4 + c, n]",
    "v10": "[b, m, 6]",
}


@dataclass(frozen=True)
class Yolo:
    """Settings of `infer.yolo`: the victim, its format and the size of its input.

    The stage writes `detections`, whose entry `dense` holds `boxes` [b, n, 4], `logits` [b, n, c] and, in
    format v5, `objectness` [b, n].

    Attributes:
        model: A module in evaluation mode, images [b, 3, h, w] in 0..1, RGB, -> the answer of its format;
            further entries of a tuple are ignored. Or the `Resource` that makes one, such as
            `infer.ultralytics_model`, whose networks are licensed under the AGPL-3.0.
        format: "v4", "v5", "v8" or "v10".
        size: The network's input in pixels, a side or (height, width); None: images are not resized.
        num_classes: The number of classes c, which the answer is checked against. Required for v10 without a
            dense head, because that answer does not contain it.
        fit: "letterbox" keeps the ratio and pads with gray; "stretch" does not keep it, as in the demo of
            pytorch-YOLOv4.

    Example:
        >>> import torch
        >>> from fpatch import infer
        >>> class Tiny(torch.nn.Module):  # one box of one class, [b, 4 + 1, 1], in the middle of the input
        ...     def forward(self, images):
        ...         return images.mean((1, 2, 3))[:, None, None] * torch.tensor([[16.0], [16], [8], [8], [1]])
        >>> values = {"image": torch.full((2, 3, 32, 32), 1.0)}
        >>> stage = infer.yolo(Tiny().eval(), format="v8", num_classes=1)
        >>> stage.apply({}, {}, values)["detections"]["dense"]["boxes"][0]
        tensor([[12., 12., 20., 20.]])

    Raises:
        ValueError: If a setting is outside its range. When the stage runs: if the model is in training mode,
            or its answer does not fit the format.
    """

    model: Resource | nn.Module
    format: Literal["v4", "v5", "v8", "v10"]
    size: int | tuple[int, int] | None = None
    num_classes: int | None = None
    fit: Literal["letterbox", "stretch"] = "letterbox"

    def __post_init__(self) -> None:
        check_model("yolo", self.model)
        for field, given in (("format", _EXPECTED), ("fit", ("letterbox", "stretch"))):
            if getattr(self, field) not in given:
                raise ValueError(
                    f"yolo({field}) must be one of {', '.join(given)}, got {getattr(self, field)!r}"
                )
        if not isinstance(self.size, int) and len(self.size or (1, 1)) != 2:
            raise ValueError(f"yolo(size) must be a side or (height, width), got {self.size}")
        for side in (self.size,) if isinstance(self.size, int) else self.size or ():
            check_number("yolo(size)", side, 1)
        if self.num_classes is not None:
            check_number("yolo(num_classes)", self.num_classes, 1)


def apply(config: Yolo, patch_params: Params, sample: Sample, values: Values) -> Values:
    def ask(model: Callable[[Tensor], Any], images: Tensor) -> dict[str, Tensor]:
        fitted, offset, scale = fit_images(images, config)
        dense = _DECODERS[config.format](model(fitted), fitted.shape[-2:], config)
        return {**dense, "boxes": (dense["boxes"] - offset) / scale}

    model = check_victim("yolo", resolve(config.model))
    return {"detections": {"dense": run_victim(model, values["image"], ask)}}


def declare(config: Yolo) -> dict[str, Any]:
    """Forbid `torch.compile` for Ultralytics' networks, which read their stride from a tensor."""
    model = config.model
    if isinstance(model, Resource):
        traceable = model.loader != "infer.ultralytics_model"
    else:
        traceable = not type(model).__module__.startswith("ultralytics.")
    return {} if traceable else {"compile": False}


# -- into the network's input


def fit_images(
    images: Float[Tensor, "b c h w"], config: Yolo
) -> tuple[Float[Tensor, "b c height width"], Float[Tensor, "4"], Float[Tensor, "4"]]:
    """Fit images into the network's input; return them and the offset and scale of boxes xyxy in them."""
    h, w = images.shape[-2:]
    height, width = (config.size, config.size) if isinstance(config.size, int) else config.size or (h, w)
    if config.fit == "letterbox":
        ratio = min(height / h, width / w)
        rows, columns = max(round(h * ratio), 1), max(round(w * ratio), 1)
    else:
        rows, columns = height, width
    if (rows, columns) != (h, w):
        images = F.interpolate(images, (rows, columns), mode="bilinear", align_corners=False)
    top, left = round((height - rows) / 2 - 0.1), round((width - columns) / 2 - 0.1)
    edges = (left, width - columns - left, top, height - rows - top)
    if any(edges):
        images = F.pad(images, edges, value=_GRAY)
    return images, constant([left, top] * 2, images), constant([columns / w, rows / h] * 2, images)


# -- from the network's answer


def _decode_v4(answer: Any, size: Sequence[int], config: Yolo) -> dict[str, Tensor]:
    parts = answer[:2] if isinstance(answer, (list, tuple)) else ()
    if len(parts) < 2 or not all(isinstance(part, Tensor) for part in parts):
        raise _refusal(answer, config)
    boxes, confidences = parts
    if boxes.shape[2:] != (1, 4) or confidences.ndim != 3 or boxes.shape[:2] != confidences.shape[:2]:
        raise _refusal(answer, config)
    _check_classes(answer, confidences, confidences.shape[-1], config)
    boxes = widen(boxes)
    return {
        "boxes": boxes[:, :, 0] * constant([size[1], size[0]] * 2, boxes),
        "logits": log_odds(confidences),
    }


def _decode_v5(answer: Any, size: Sequence[int], config: Yolo) -> dict[str, Tensor]:
    found = _first_tensor(answer, config)
    num_boxes, num_classes = found.shape[1], found.shape[2] - 5
    _check_classes(answer, found[..., 4:], num_classes, config, num_boxes)
    return {
        "boxes": _to_corners(found[..., :4]),
        "objectness": log_odds(found[..., 4]),
        "logits": log_odds(found[..., 5:]),
    }


def _decode_v8(answer: Any, size: Sequence[int], config: Yolo) -> dict[str, Tensor]:
    found = _first_tensor(answer, config).transpose(1, 2)
    num_boxes, num_classes = found.shape[1], found.shape[2] - 4
    _check_classes(answer, found[..., 4:], num_classes, config, num_boxes)
    return {"boxes": _to_corners(found[..., :4]), "logits": log_odds(found[..., 4:])}


def _decode_v10(answer: Any, size: Sequence[int], config: Yolo) -> dict[str, Tensor]:
    found = _first_tensor(answer, config)
    if found.shape[-1] != 6:
        raise _refusal(answer, config)
    extra = answer[1] if isinstance(answer, (list, tuple)) and len(answer) > 1 else None
    if isinstance(extra, Mapping) and isinstance(extra.get("one2one"), Mapping):
        dense = decode_one_to_one(extra["one2one"], size)
        _check_classes(answer, found[..., 4], dense["logits"].shape[-1], config)
        return dense
    if config.num_classes is None:
        raise ValueError(
            "yolo(num_classes) is required: the answer [b, m, 6] of a v10 network does not contain the "
            "number of classes"
        )
    _check_classes(answer, found[..., 4], config.num_classes, config)
    label = widen(found[..., 5:].detach())
    if is_concrete(label) and not bool(((label >= 0) & (label < config.num_classes)).all()):
        raise ValueError(
            f"yolo(num_classes={config.num_classes}): the answer holds class {float(label.max()):g}; "
            f"classes count from 0"
        )
    own = label == torch.arange(config.num_classes, device=label.device)
    logits = log_odds(found[..., 4:5])
    own_only = torch.where(own, logits, torch.full_like(logits, ABSENT))
    return {"boxes": widen(found[..., :4]), "logits": own_only}


def decode_one_to_one(head: Mapping[str, Any], size: Sequence[int]) -> dict[str, Tensor]:
    """Decode the dense head that a v10 network selects its answer from.

    The box of a cell is given by the distances to its left, top, right and bottom edges, in strides. With
    r > 1, a distance is the mean of a distribution over 0, 1, ..., r - 1.

    Args:
        head: "boxes" [b, 4 r, n], "scores" [b, c, n] (logits), and "feats", the feature maps [b, _, h, w]
            with n cells in all.
        size: Height and width of the network's input, in pixels.
    """
    distances = widen(head["boxes"]).unflatten(1, (4, -1))
    bins = distances.shape[2]
    if bins > 1:
        steps = torch.arange(bins, dtype=distances.dtype, device=distances.device)
        distances = (distances.softmax(2) * steps[:, None]).sum(2, keepdim=True)
    left_top, right_bottom = distances[:, :, 0].transpose(1, 2).chunk(2, dim=-1)
    centers, strides = [], []
    for rows, columns in (features.shape[-2:] for features in head["feats"]):
        y, x = (torch.arange(n, device=distances.device) + 0.5 for n in (rows, columns))
        centers.append(torch.cartesian_prod(y, x).flip(-1))
        strides.append(torch.full((rows * columns, 1), size[0] / rows, device=distances.device))
    center, stride = torch.cat(centers), torch.cat(strides)  # float32 for every type of the head
    corners = torch.cat([center - left_top, center + right_bottom], dim=-1)
    return {"boxes": corners * stride, "logits": head["scores"].transpose(1, 2)}


_DECODERS = {"v4": _decode_v4, "v5": _decode_v5, "v8": _decode_v8, "v10": _decode_v10}


def _to_corners(boxes: Float[Tensor, "b n 4"]) -> Float[Tensor, "b n 4"]:
    """Convert center, width and height to xyxy."""
    boxes = widen(boxes)
    center, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([center - half, center + half], dim=-1)


def _first_tensor(answer: Any, config: Yolo) -> Tensor:
    """Return the first tensor of an answer, which may be a tuple."""
    found = answer[0] if isinstance(answer, (list, tuple)) and answer else answer
    if not isinstance(found, Tensor) or found.ndim != 3:
        raise _refusal(answer, config)
    return found


def _check_classes(
    answer: Any, probabilities: Tensor, num_classes: int, config: Yolo, num_boxes: int | None = None
) -> None:
    """Check the number of classes, and that scores are probabilities; else the answer has another format."""
    expected = config.num_classes
    if num_classes != expected if expected is not None else num_classes < 1:
        raise _refusal(answer, config)
    if expected is None and num_boxes is not None and num_classes > num_boxes:
        raise ValueError(
            f"yolo(format={config.format!r}): {describe(answer)} would be {num_boxes} boxes of {num_classes} "
            "classes, which looks like another format; give num_classes if it is not"
        )
    if is_concrete(probabilities) and not bool(((probabilities >= 0) & (probabilities <= 1)).all()):
        low, high = probabilities.detach().aminmax()
        raise ValueError(
            f"yolo(format={config.format!r}): scores must be probabilities, got {low:.6g} to {high:.6g} in "
            f"{describe(answer)}; this is another format, or a network whose last sigmoid is left out"
        )


def _refusal(answer: Any, config: Yolo) -> ValueError:
    """Return the error that names the expected and the found shapes."""
    classes = "" if config.num_classes is None else f" with c = {config.num_classes}"
    return ValueError(
        f"yolo(format={config.format!r}): the model must answer {_EXPECTED[config.format]}{classes}, "
        f"got {describe(answer)}"
    )


yolo = define(
    "yolo",
    Yolo,
    deterministic,
    apply,
    reads=("image",),
    writes=("detections",),
    role="victim",
    gives=("detections/dense",),
    show=show_log_scores,
    declare=declare,
)

"""Dense detections of torchvision's detectors, before suppression, by the library's own parts."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.ssd import SSD
from torchvision.ops import clip_boxes_to_image

from fpatch.core.tree import constant, widen
from fpatch.ops.detections import ABSENT, log_odds_of_log, softmax_log_odds

_SMALLEST_BOX_PX = 1e-2
"""Faster R-CNN drops smaller boxes (`RoIHeads.postprocess_detections`), in pixels of the resized image."""

_Answer = tuple[Tensor, Tensor]
"""Boxes in pixels of the resized image and log-odds."""


class Dense(nn.Module):
    """A module from images [b, 3, h, w] to the dense detections of one of the `FAMILIES`."""

    model: Any

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return `boxes` and `logits`."""
        model, family = self.model, next(family for family in FAMILIES if isinstance(self.model, family))
        resized, _ = model.transform(list(images))
        features = model.backbone(resized.tensors)
        if isinstance(features, Tensor):
            features = OrderedDict([("0", features)])
        boxes, logits = FAMILIES[family](model, resized, features)
        (height, width), (resized_height, resized_width) = images.shape[-2:], resized.image_sizes[0]
        size, resized_size = constant([[width, height], [resized_width, resized_height]], boxes)
        return {"boxes": boxes * (size / resized_size).repeat(2), "logits": logits}


def _faster_rcnn(model: FasterRCNN, images: ImageList, features: dict[str, Tensor]) -> _Answer:
    """Return every proposal, with a box and the log-odds of every class.

    The proposals are padded with boxes of size 0, which decode to boxes of size 0.
    """
    rpn: Any = model.rpn
    heads: Any = model.roi_heads
    found, _ = rpn(images, features)
    num = rpn.post_nms_top_n()
    padded = pad_sequence(found, batch_first=True)
    proposals = list(F.pad(padded, (0, 0, 0, num - padded.shape[1])).unbind())
    pooled = heads.box_head(heads.box_roi_pool(features, proposals, images.image_sizes))
    class_logits, codes = widen(heads.box_predictor(pooled))
    boxes = heads.box_coder.decode(codes, proposals).unflatten(0, (-1, num))
    boxes = clip_boxes_to_image(boxes, images.image_sizes[0])
    logits = _softmax_without_background(class_logits).unflatten(0, (-1, num))
    small = (boxes[..., 2:] - boxes[..., :2] < _SMALLEST_BOX_PX).any(-1)
    return boxes, logits.masked_fill(small, ABSENT)


def _retinanet(model: RetinaNet, images: ImageList, features: dict[str, Tensor]) -> _Answer:
    """Return every anchor, with a sigmoid per class."""
    answer = model.head(list(features.values()))
    return _decode(model, images, features, answer["bbox_regression"]), answer["cls_logits"]


def _fcos(model: FCOS, images: ImageList, features: dict[str, Tensor]) -> _Answer:
    """Return every place; its score is the geometric mean of the class and the centerness."""
    answer = model.head(list(features.values()))
    log_class, log_center = (F.logsigmoid(widen(answer[n])) for n in ("cls_logits", "bbox_ctrness"))
    log_scores = (log_class + log_center) / 2
    return _decode(model, images, features, answer["bbox_regression"]), log_odds_of_log(log_scores)


def _ssd(model: SSD, images: ImageList, features: dict[str, Tensor]) -> _Answer:
    """Return every default box, with a softmax over the classes."""
    answer = model.head(list(features.values()))
    boxes = _decode(model, images, features, answer["bbox_regression"])
    return boxes, _softmax_without_background(answer["cls_logits"])


def _decode(
    model: FCOS | RetinaNet | SSD, images: ImageList, features: dict[str, Tensor], codes: Tensor
) -> Tensor:
    """Decode the codes of every anchor to boxes [b, n, 4] in float32, clipped to the image."""
    anchors = torch.cat(model.anchor_generator(images, list(features.values())))
    coder: Any = model.box_coder
    decode_flat = coder.decode if isinstance(model, FCOS) else coder.decode_single
    boxes = decode_flat(widen(codes).flatten(0, 1), anchors).view_as(codes)
    return clip_boxes_to_image(boxes, images.image_sizes[0])


def _softmax_without_background(class_logits: Tensor) -> Tensor:
    """Return the log-odds [..., c]; class 0, the background, is `ABSENT`."""
    return F.pad(softmax_log_odds(class_logits)[..., 1:], (1, 0), value=ABSENT)


FAMILIES: dict[type[nn.Module], Callable[..., _Answer]] = {
    FasterRCNN: _faster_rcnn,
    RetinaNet: _retinanet,
    FCOS: _fcos,
    SSD: _ssd,
}

"""Detectors of Hugging Face transformers: DETR and its relatives, YOLOS.

The network's `config.model_type` names its family, which decides the normalization of the images and the
meaning of the logits. Other families are refused, and heads of another width.

    detr, table-transformer             softmax              normalized
    yolos                               softmax              normalized, sides in multiples of 16
    conditional_detr, deformable_detr   sigmoid per class    normalized
    rt_detr, rt_detr_v2, d_fine         sigmoid per class    as it is

The last class of a softmax, no object, is left out; the other logits are the log-odds of their probabilities.
Logits of a sigmoid stay as they are. There is one box per query and no objectness. Boxes are moved back to
pixels of the image, not clipped to it. Labels are those of the checkpoint (`config.id2label`); those of COCO
are 1..90 with gaps in detr and yolos.

Images of a batch have one size, so no padding and no `pixel_mask` is needed: without one, all pixels count.
Images are normalized by ImageNet's mean and standard deviation.

`infer.suppress` answers like `post_process_object_detection` with score=0.5, iou=1.0 and

- after a softmax multi_label=False and num_detections the number of queries;
- after a sigmoid num_detections=100, in rt_detr, rt_detr_v2 and d_fine the number of queries.

References:
    transformers 5: image_processing_detr.py, image_processing_yolos.py, image_processing_rt_detr.py,
    `image_transforms.get_size_with_aspect_ratio`. Carion et al. (2020), End-to-End Object Detection with
    Transformers. Fang et al. (2021), You Only Look at One Sequence.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from fpatch.core.checks import check_number
from fpatch.core.resource import Resource, resolve
from fpatch.core.tree import constant, widen
from fpatch.core.types import Params, Sample, Values
from fpatch.graph.stage import define, deterministic
from fpatch.infer._boundary import check_model, check_victim, run_victim, show_log_scores
from fpatch.ops.detections import softmax_log_odds

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""The mean and standard deviation of ImageNet."""


class _Family(NamedTuple):
    """The properties of a family of networks.

    Attributes:
        scores: Whether the logits belong to a softmax or to a sigmoid per class.
        normalize: Whether images are normalized by ImageNet's mean and standard deviation.
        multiple: The sides of the input are multiples of this, in pixels.
    """

    scores: Literal["softmax", "sigmoid"]
    normalize: bool = True
    multiple: int = 1


FAMILIES = {
    "detr": _Family("softmax"),
    "table-transformer": _Family("softmax"),
    "yolos": _Family("softmax", multiple=16),
    "conditional_detr": _Family("sigmoid"),
    "deformable_detr": _Family("sigmoid"),
    "rt_detr": _Family("sigmoid", normalize=False),
    "rt_detr_v2": _Family("sigmoid", normalize=False),
    "d_fine": _Family("sigmoid", normalize=False),
}

_SIZES = ({"shortest_edge", "longest_edge"}, {"height", "width"})


@dataclass(frozen=True)
class TransformersDetector:
    """Settings of `infer.transformers_detector`: the victim, and the size of its input.

    The stage writes `detections`, whose entry `dense` holds `boxes` [b, n, 4] and `logits` [b, n, c].

    Attributes:
        model: One of transformers' models for object detection in evaluation mode; or the `Resource` that
            makes one, such as `infer.transformers_model`.
        size: As in the checkpoint's preprocessor_config.json: `{"shortest_edge": 800, "longest_edge": 1333}`
            keeps the ratio, `{"height": 640, "width": 640}` does not. None: images are not resized.

    Example:
        >>> import torch
        >>> from types import SimpleNamespace
        >>> from fpatch import infer
        >>> class Tiny(torch.nn.Module):  # the interface of a network of transformers
        ...     config = SimpleNamespace(model_type="rt_detr", num_labels=3)
        ...     def forward(self, images):  # pred_boxes: center, width, height as fractions of the image
        ...         boxes = torch.full((len(images), 1, 4), 0.5)
        ...         return SimpleNamespace(logits=images.mean((2, 3))[:, None], pred_boxes=boxes)
        >>> stage = infer.transformers_detector(Tiny().eval())
        >>> stage.apply({}, {}, {"image": torch.ones(1, 3, 8, 16)})["detections"]["dense"]["boxes"]
        tensor([[[ 4.,  2., 12.,  6.]]])

    Raises:
        ValueError: If `size` has other names or a side below 1. When the stage runs: if the model is of
            another family or in training mode, or its head has another width.
    """

    model: Resource | nn.Module
    size: Mapping[str, int] | None = None

    def __post_init__(self) -> None:
        check_model("transformers_detector", self.model)
        if self.size is None:
            return
        if set(self.size) not in _SIZES:
            raise ValueError(
                "transformers_detector(size) must hold shortest_edge and longest_edge, or height and width, "
                f"got {dict(self.size)}"
            )
        for side, pixels in self.size.items():
            check_number(f"transformers_detector(size[{side!r}])", pixels, 1)


def apply(config: TransformersDetector, patch_params: Params, sample: Sample, values: Values) -> Values:
    model = check_victim("transformers_detector", resolve(config.model))
    family, num_labels = _family_of(model)

    def ask(model: Callable[[Tensor], Any], images: Tensor) -> dict[str, Tensor]:
        h, w = images.shape[-2:]
        answer = model(prepare(images, config.size, family))
        shape = widen(answer.pred_boxes)
        center, half = shape[..., :2], shape[..., 2:] / 2
        boxes = torch.cat([center - half, center + half], dim=-1) * constant([w, h, w, h], shape)
        return {"boxes": boxes, "logits": _read_logits(answer.logits, family, num_labels)}

    return {"detections": {"dense": run_victim(model, values["image"], ask)}}


def _family_of(model: nn.Module) -> tuple[_Family, int]:
    """Return the family of a network, by its own config, and the number of its labels."""
    own = getattr(model, "config", None)
    kind, num_labels = getattr(own, "model_type", None), getattr(own, "num_labels", None)
    if kind not in FAMILIES or not isinstance(num_labels, int):
        raise ValueError(
            f"transformers_detector: the model must be one of {', '.join(FAMILIES)} by its "
            f"config.model_type, got {type(model).__name__} ({kind!r}); wrap any other "
            "as infer.detector(model)"
        )
    return FAMILIES[kind], num_labels


def prepare(
    images: Float[Tensor, "b c h w"], size: Mapping[str, int] | None, family: _Family
) -> Float[Tensor, "b c height width"]:
    """Resize and normalize images as the family's image processor does."""
    if size is not None:
        height, width = target_size(images.shape[-2:], size, family.multiple)
        if (height, width) != tuple(images.shape[-2:]):
            images = F.interpolate(
                images, (height, width), mode="bilinear", align_corners=False, antialias=True
            )
    if not family.normalize:
        return images
    return (images - constant(MEAN, images)[:, None, None]) / constant(STD, images)[:, None, None]


def target_size(image_size: Sequence[int], size: Mapping[str, int], multiple: int) -> tuple[int, int]:
    """Return height and width after the resize, with the image processors' own rounding.

    The shorter side becomes `shortest_edge`, or less if the longer side would be above `longest_edge`.
    """
    if "height" in size:
        return size["height"], size["width"]
    short, long = min(image_size), max(image_size)
    limit = size["longest_edge"] * short / long
    too_long = long / short * size["shortest_edge"] > size["longest_edge"]
    to_short = round(limit) if too_long else size["shortest_edge"]
    to_long = int((limit if too_long else size["shortest_edge"]) * long / short)
    if to_short == short and (multiple == 1 or image_size[0] <= image_size[1]):
        to_short, to_long = short, long  # the processor of YOLOS rounds upright images anyway
    to_short, to_long = (side - side % multiple for side in (to_short, to_long))
    return (to_short, to_long) if image_size[0] <= image_size[1] else (to_long, to_short)


def _read_logits(logits: Float[Tensor, "b n _"], family: _Family, num_labels: int) -> Float[Tensor, "b n c"]:
    """Return the log-odds of the classes, without the class "no object"."""
    width = num_labels + (family.scores == "softmax")
    if logits.shape[-1] != width:
        raise ValueError(
            f"transformers_detector: a {family.scores} over {num_labels} labels has {width} logits per box, "
            f"got {logits.shape[-1]}; this head is not that of its config.model_type"
        )
    return softmax_log_odds(logits)[..., :-1] if family.scores == "softmax" else logits


transformers_detector = define(
    "transformers_detector",
    TransformersDetector,
    deterministic,
    apply,
    reads=("image",),
    writes=("detections",),
    role="victim",
    gives=("detections/dense",),
    show=show_log_scores,
)

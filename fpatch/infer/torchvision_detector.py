"""A detector of torchvision as the victim: its dense answer, before suppression and threshold.

Resizing, normalization, anchors and decoding are the library's own parts. Boxes are clipped to the image and
moved back to its pixels. Labels are the library's own numbers. In Faster R-CNN, SSD and SSDlite, label 0 is
the background, `ABSENT` here. RetinaNet and FCOS have no background: their column 0 is a class like any
other, which the weights for COCO do not use.

    Faster R-CNN   boxes [b, n, c, 4]: each class moves the proposal its own way; logits: the log-odds of the
                   softmax of `box_predictor`. n is `rpn.post_nms_top_n()`, padded if there are fewer
                   proposals. Gradients pass through the pooled features, but not through the place or the
                   choice of proposals. Boxes under 0.01 px, which the library drops, are `ABSENT`.
    RetinaNet      boxes [b, n, 4] of the anchors; logits: `cls_logits` as they are.
    FCOS           boxes [b, n, 4] of the places; logits: the log-odds of
                   `sqrt(sigmoid(cls_logits) * sigmoid(bbox_ctrness))`.
    SSD, SSDlite   boxes [b, n, 4] of the default boxes; logits: the log-odds of the softmax of `cls_logits`.

Faster R-CNN chooses its proposals image by image, inside the library. With the settings below,
`infer.suppress` answers as the library does by default; `num_candidates` must cover the boxes that pass the
score. The library also keeps only the best boxes before it suppresses: RetinaNet and FCOS 1000 of a feature
level, SSD 400 of a class, SSDlite 300. `suppress` does not.

                   score   iou    num_detections
    Faster R-CNN   0.05    0.5    100
    RetinaNet      0.05    0.5    300
    FCOS           0.2     0.6    100
    SSD            0.01    0.45   200
    SSDlite        0.001   0.55   300
"""

from dataclasses import dataclass

from torch import nn

from fpatch.core.resource import Resource, resolve
from fpatch.core.types import Params, Sample, Values
from fpatch.graph.stage import define, deterministic
from fpatch.infer._boundary import check_model, check_victim, run_victim, show_logits


@dataclass(frozen=True)
class TorchvisionDetector:
    """Settings of `infer.torchvision_detector`: the victim.

    The stage writes `detections`, whose entry `dense` holds `boxes` and `logits`.

    Attributes:
        model: A Faster R-CNN (Mask and Keypoint R-CNN too), RetinaNet, FCOS, SSD or SSDlite of torchvision in
            evaluation mode; or the `Resource` that makes one, as `infer.torchvision_model` does.

    Example:
        >>> from fpatch import infer
        >>> model = infer.torchvision_model(architecture="fcos_resnet50_fpn", download="COCO_V1")
        >>> stage = infer.torchvision_detector(model)  # the network is made at its first use
        >>> stage.config.model.loader, stage.config.model.arguments["architecture"]
        ('infer.torchvision_model', 'fcos_resnet50_fpn')

    Raises:
        ValueError: If the model is none of these or in training mode, when the stage runs.
    """

    model: Resource | nn.Module

    def __post_init__(self) -> None:
        check_model("torchvision_detector", self.model)


def apply(config: TorchvisionDetector, patch_params: Params, sample: Sample, values: Values) -> Values:
    from fpatch.infer._torchvision_dense import FAMILIES, Dense

    model = check_victim("torchvision_detector", resolve(config.model))
    if not isinstance(model, tuple(FAMILIES)):
        known = ", ".join(family.__name__ for family in FAMILIES)
        raise ValueError(
            f"torchvision_detector: the model must be one of torchvision's {known} (SSDlite is an SSD), got "
            f"{type(model).__name__}; wrap any other so that it answers with boxes and logits, and take "
            "infer.detector"
        )
    return {"detections": {"dense": run_victim(Dense(model).eval(), values["image"])}}


torchvision_detector = define(
    "torchvision_detector",
    TorchvisionDetector,
    deterministic,
    apply,
    reads=("image",),
    writes=("detections",),
    role="victim",
    gives=("detections/dense",),
    show=show_logits,
    compile=False,
)

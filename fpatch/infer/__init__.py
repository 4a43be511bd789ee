"""Victims as stages, and the detections or logits that they answer.

`_boundary.py` runs a victim and cuts its gradient: the image gets one, the weights do not.
"""

# study files call it `infer.lighter`
from fpatch.graph.precision import reduce_precision as lighter
from fpatch.infer.classifier import classifier
from fpatch.infer.detector import detector
from fpatch.infer.ensemble import ensemble
from fpatch.infer.parts import backbone, features_at, head, normalizer
from fpatch.infer.suppress import suppress
from fpatch.infer.torchvision_detector import torchvision_detector
from fpatch.infer.torchvision_model import torchvision_model
from fpatch.infer.transformers_detector import transformers_detector
from fpatch.infer.transformers_model import transformers_model
from fpatch.infer.ultralytics_model import ultralytics_model
from fpatch.infer.yolo import yolo

__all__ = [
    "backbone",
    "classifier",
    "detector",
    "ensemble",
    "features_at",
    "head",
    "lighter",
    "normalizer",
    "suppress",
    "torchvision_detector",
    "torchvision_model",
    "transformers_detector",
    "transformers_model",
    "ultralytics_model",
    "yolo",
]

"""Victims, and what is read from them."""

from fpatch.infer.classifier import classifier
from fpatch.infer.detector import detector
from fpatch.infer.suppress import suppress
from fpatch.infer.transformers_detector import transformers_detector
from fpatch.infer.transformers_model import transformers_model
from fpatch.infer.ultralytics_model import ultralytics_model
from fpatch.infer.yolo import yolo

__all__ = [
    "classifier",
    "detector",
    "suppress",
    "transformers_detector",
    "transformers_model",
    "ultralytics_model",
    "yolo",
]

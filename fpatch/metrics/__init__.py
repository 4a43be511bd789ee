"""Metric stages: numbers per row, or numbers gathered over all rows."""

from fpatch.metrics._by_name import by_name
from fpatch.metrics.average_precision import average_precision
from fpatch.metrics.class_hit import class_hit
from fpatch.metrics.detection_files import score_detections
from fpatch.metrics.detection_hit import detection_hit
from fpatch.metrics.mean_average_precision import mean_average_precision
from fpatch.metrics.object_hit import object_hit
from fpatch.metrics.torchmetric import torchmetric, torchmetrics
from fpatch.ops.intervals import Rate, bootstrap_mean, num_photographs, wilson

__all__ = [
    "Rate",
    "average_precision",
    "bootstrap_mean",
    "by_name",
    "class_hit",
    "detection_hit",
    "mean_average_precision",
    "num_photographs",
    "object_hit",
    "score_detections",
    "torchmetric",
    "torchmetrics",
    "wilson",
]

"""Metrics: stages that write rows, and rates with intervals over those rows."""

from fpatch.metrics.average_precision import average_precision
from fpatch.metrics.class_hit import class_hit
from fpatch.metrics.detection_hit import detection_hit
from fpatch.metrics.intervals import Rate, bootstrap_mean, wilson

__all__ = ["Rate", "average_precision", "bootstrap_mean", "class_hit", "detection_hit", "wilson"]

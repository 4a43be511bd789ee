"""Victims, and what is read from them."""

from fpatch.infer.classifier import classifier
from fpatch.infer.detector import detector
from fpatch.infer.ensemble import ensemble
from fpatch.infer.suppress import suppress

__all__ = ["classifier", "detector", "ensemble", "suppress"]

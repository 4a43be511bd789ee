"""Losses: stages that write one number per row and per term; the objective alone averages."""

from fpatch.losses.misclassify import misclassify
from fpatch.losses.non_printability import non_printability
from fpatch.losses.total_variation import total_variation
from fpatch.losses.vanish import vanish

__all__ = ["misclassify", "non_printability", "total_variation", "vanish"]

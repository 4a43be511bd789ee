"""Defenses as stages: filters of images before a victim, and victims that are certified.

JPEG and resizing are defenses, too: `compose.jpeg(quality=(20, 20))`, `compose.resample(scale=(0.5, 0.5))`.
"""

from fpatch.defend._certify import certify
from fpatch.defend.bit_depth import bit_depth
from fpatch.defend.double_masking import double_masking
from fpatch.defend.frequency_mask import frequency_mask
from fpatch.defend.gradient_smoothing import gradient_smoothing
from fpatch.defend.median import median

__all__ = ["bit_depth", "certify", "double_masking", "frequency_mask", "gradient_smoothing", "median"]

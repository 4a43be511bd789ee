"""Composers: camera, light and view, which act on whole images."""

from fpatch.compose.affine import affine
from fpatch.compose.blur import blur
from fpatch.compose.contrast import contrast
from fpatch.compose.exposure import exposure
from fpatch.compose.hue import hue
from fpatch.compose.read_noise import read_noise
from fpatch.compose.saturation import saturation

__all__ = ["affine", "blur", "contrast", "exposure", "hue", "read_noise", "saturation"]

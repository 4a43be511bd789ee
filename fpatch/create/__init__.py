"""Creators: parameterizations, which read the patch parameters, and stages that change a patch."""

from fpatch.create.mask import mask, mask_image
from fpatch.create.pixels import pixels
from fpatch.create.resize import resize
from fpatch.create.stack import stack

__all__ = ["mask", "mask_image", "pixels", "resize", "stack"]

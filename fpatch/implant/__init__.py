"""Implant stages: they bring patches into images, and leave them out at opacity 0."""

from fpatch.implant.fill_box import fill_box
from fpatch.implant.fixed_ratio import fixed_ratio
from fpatch.implant.rectangle import rectangle
from fpatch.implant.warp import warp

__all__ = ["fill_box", "fixed_ratio", "rectangle", "warp"]

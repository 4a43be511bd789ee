"""Implanters: they bring patches into photographs, and can leave them out again (opacity 0)."""

from fpatch.implant.rectangle import rectangle
from fpatch.implant.warp import warp

__all__ = ["rectangle", "warp"]

"""Figures: boxes, curves, heat maps, image pairs, animations, and drawings as stages."""

from fpatch.viz.animate import animate
from fpatch.viz.box_overlay import box_overlay
from fpatch.viz.boxes import plot_boxes
from fpatch.viz.class_bars import class_bars
from fpatch.viz.curves import plot_curves
from fpatch.viz.drawing import drawing
from fpatch.viz.heat_map import HeatMap, plot_heat_maps
from fpatch.viz.mask_overlay import mask_overlay
from fpatch.viz.plot import plot
from fpatch.viz.side_by_side import Panel, side_by_side
from fpatch.viz.unpacking import unpack

__all__ = [
    "HeatMap",
    "Panel",
    "animate",
    "box_overlay",
    "class_bars",
    "drawing",
    "mask_overlay",
    "plot",
    "plot_boxes",
    "plot_curves",
    "plot_heat_maps",
    "side_by_side",
    "unpack",
]

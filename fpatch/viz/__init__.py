"""Figures: boxes, curves, heat maps, image pairs and animations."""

from fpatch.viz.animate import animate
from fpatch.viz.boxes import plot_boxes
from fpatch.viz.curves import plot_curves
from fpatch.viz.heat_map import HeatMap, plot_heat_maps
from fpatch.viz.plot import plot
from fpatch.viz.side_by_side import Panel, side_by_side

__all__ = [
    "HeatMap",
    "Panel",
    "animate",
    "plot",
    "plot_boxes",
    "plot_curves",
    "plot_heat_maps",
    "side_by_side",
]

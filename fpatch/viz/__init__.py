"""Pictures: detections side by side, curves, patches."""

from fpatch.viz.curves import plot_curves
from fpatch.viz.side_by_side import Panel, side_by_side

__all__ = ["Panel", "plot_curves", "side_by_side"]

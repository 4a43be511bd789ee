"""Measure a patch against its controls: rows, rates, replay, grids and transfer."""

"""Measure a patch against its controls: rows, rates, replay, grids, transfer and defenses."""

"""Geometric stages: they move the pixels of the scene, and its quads and boxes with them."""

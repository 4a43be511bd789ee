"""Rendered scenes: a truck, its surroundings, a camera."""

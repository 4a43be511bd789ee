"""Stages that move pixels, and quads and boxes with them."""

"""Stages that change colors, pixel by pixel."""

"""Stages that change a patch: its size, its place, its spectrum, its mask."""

"""Stages, nodes and pipelines: wiring, keys, samples, and building from a config."""

from fpatch.graph.module import module

__all__ = ["module"]

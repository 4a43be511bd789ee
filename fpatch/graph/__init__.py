"""Stages, nodes and pipelines: wiring, keys, samples, and building from a config."""

from fpatch.graph.export import export_onnx
from fpatch.graph.module import module

__all__ = ["export_onnx", "module"]

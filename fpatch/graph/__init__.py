"""Stages, nodes and pipelines: wiring, keys, samples, and building from a config."""

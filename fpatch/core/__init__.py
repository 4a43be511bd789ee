"""Shared foundations: types, checks, trees, JSON settings, the registry, resources, files and progress."""

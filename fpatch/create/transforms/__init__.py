"""Transforms: stages that change the size, position, spectrum, colors or mask of a patch."""

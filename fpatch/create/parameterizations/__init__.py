"""Parameterizations: they read the patch parameters and write the first `patch`."""

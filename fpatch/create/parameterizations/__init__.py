"""Parameterizations: stages that turn patch parameters into the first `patch`."""

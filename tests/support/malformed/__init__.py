"""Malformed inputs of every command and kind of file; `python -m malformed --help` runs them alone."""

"""The command line: one file for each kind of command.

Each imports what it needs when it runs, so that `--help` answers at once.
"""

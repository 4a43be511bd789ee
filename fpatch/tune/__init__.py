"""Sweeps: the search space, the search, the trials and their folder."""

from fpatch.tune.folder.journal import Journal
from fpatch.tune.folder.mirror import fetch_sweep
from fpatch.tune.reading import export_trial, find_entry, read_plan
from fpatch.tune.search.generations import Population
from fpatch.tune.search.halving import Halving
from fpatch.tune.search.parsing import parse_space
from fpatch.tune.search.space import Choice, Interval, Space, SpaceError
from fpatch.tune.settings import Sweep
from fpatch.tune.sweep import load_plan, resume_sweep, run_plan, sweep

__all__ = [
    "Choice",
    "Halving",
    "Interval",
    "Journal",
    "Population",
    "Space",
    "SpaceError",
    "Sweep",
    "export_trial",
    "fetch_sweep",
    "find_entry",
    "load_plan",
    "parse_space",
    "read_plan",
    "resume_sweep",
    "run_plan",
    "sweep",
]

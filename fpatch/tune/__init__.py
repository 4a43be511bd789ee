"""Sweeps: a space of settings, how it is searched, and the trials that come of it."""

from fpatch.tune.halving import Halving
from fpatch.tune.journal import Journal
from fpatch.tune.mirror import fetch_sweep
from fpatch.tune.population import Population
from fpatch.tune.settings import Sweep
from fpatch.tune.space import Choice, Interval, Space, SpaceError, parse_space
from fpatch.tune.sweep import export_trial, find_entry, load_plan, read_plan, resume_sweep, run_plan, sweep

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

"""Trials: one, a pack of them, their processes, and Ray that runs them."""

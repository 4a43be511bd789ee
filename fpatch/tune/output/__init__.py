"""The table, the figures and the log of a sweep."""

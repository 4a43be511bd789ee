"""The search space and the proposers of a sweep."""

"""A study: all settings of a run in one value, and the objects made from them."""

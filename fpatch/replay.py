"""Moved to fpatch.rerun; this alias goes when the tests import the new name."""

import sys

sys.modules[__name__] = sys.modules["fpatch.rerun"]

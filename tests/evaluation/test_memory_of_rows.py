"""The memory of an evaluation does not grow with its rows, beyond their tables."""

import subprocess
import sys
from pathlib import Path

import growth_of_memory
import numpy as np
import pytest
from growth_of_memory import IMAGE

from fpatch.evaluation.growing import Growing


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="resident memory as Linux tells it")
def test_memory_is_flat():
    """Small arrays that outlive their block keep the room of images from being used again."""
    found = subprocess.run(
        [sys.executable, growth_of_memory.__file__], capture_output=True, text=True, check=True
    )
    for what, grown in zip(("evaluation", "replay"), map(float, found.stdout.split()), strict=True):
        assert grown < 0.3 * IMAGE, f"{what}: {grown:.0f} bytes per row, an image has {IMAGE}"


def test_columns_grow_as_they_are_joined():
    parts = [
        {"id": np.arange(3), "path": np.array(["a", "bb", "c"]), "hit": np.array([True, False, True])},
        {"id": np.arange(0), "path": np.array([], dtype=str), "hit": np.array([], dtype=bool)},
        {"id": np.arange(40), "path": np.array(["longer"] * 40), "hit": np.arange(40) % 2 == 0},
        {"id": np.array([7]), "path": np.array(["d"]), "hit": np.array([True])},
    ]
    for expected in (0, 10, 44, 1000):
        for given in (parts, parts[1:], parts[:1]):
            growing = Growing(expected)
            for part in given:
                growing.add(part)
            found = growing.columns()
            assert list(found) == ["id", "path", "hit"]
            for name, column in found.items():
                joined = np.concatenate([part[name] for part in given])
                assert column.dtype == joined.dtype
                assert column.tolist() == joined.tolist()
    assert Growing(5).columns() == {}

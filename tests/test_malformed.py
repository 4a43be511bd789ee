"""Malformed inputs of every command: one sentence, the documented exit code, no traceback and no hang."""

import re
import subprocess
import sys

import pytest
from study_fixture import environment


def run_part(*options: str) -> str:
    """Run the cases in a process without the checks of types, as a user would meet them."""
    command = [sys.executable, "-m", "malformed", *options]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-4000:]
    return done.stdout


def count(said: str) -> int:
    found = re.search(r"malformed inputs: (\d+), wrong answers: 0", said)
    assert found, said[-2000:]
    return int(found[1])


@pytest.mark.slow
def test_malformed_inputs():
    """The fast part: every case of a table, and one of seven edits of single values."""
    assert count(run_part()) > 600


@pytest.mark.slow
def test_all_malformed_inputs():
    assert count(run_part("--slow")) > 5000

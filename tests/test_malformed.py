"""Malformed inputs of every command: one sentence, the documented exit code, no traceback and no hang."""

import re
import subprocess
import sys

import pytest
from study_fixture import environment


def run_part(*options: str, seconds: int) -> str:
    """Run the cases in a process without the checks of types, as a user would meet them."""
    command = [sys.executable, "-m", "malformed", *options]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=seconds)
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-4000:]
    return done.stdout


def count(said: str) -> int:
    found = re.search(r"malformed inputs: (\d+), wrong answers: 0", said)
    assert found, said[-2000:]
    return int(found[1])


@pytest.mark.timeout(900)
def test_malformed_inputs():
    """The fast part: a share of every group."""
    assert count(run_part(seconds=880)) > 600


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_all_malformed_inputs():
    assert count(run_part("--slow", seconds=3500)) > 9000

"""Commands on runs that are measured in the portable execution start again in a process made for it."""

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fpatch.core.inputs import parse_json, read_text


def must_start_again(options: argparse.Namespace) -> bool:
    """Return whether a command asks for the portable execution, and this process was not started for it.

    `evaluate`, `grid` and `transfer` follow the setting `evaluate.portable` of the run; `replay` follows the
    execution that the table records.
    """
    if not _asks(options):
        return False
    from fpatch.runtime.portable import started_portable

    return not started_portable()


def run_again(words: Sequence[str], own_process: bool = False) -> int:
    """Run a command of fpatch in a process with the environment of the portable execution.

    Args:
        words: The command and its arguments, without the name of the program.
        own_process: Replace this process, which then gets the signals and ends with the code of the command.

    Returns:
        Its exit code.
    """
    from fpatch.runtime.portable import ENVIRONMENT

    command = [sys.executable, "-m", "fpatch", *words]
    if own_process:
        sys.stdout.flush()
        os.execve(sys.executable, command, {**os.environ, **ENVIRONMENT})
    with subprocess.Popen(command, env={**os.environ, **ENVIRONMENT}) as process:
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:  # the terminal sends it to both, and the command itself answers it
                continue


def _asks(options: argparse.Namespace) -> bool:
    folders = [Path(f) for f in getattr(options, "run_folders", [getattr(options, "run_folder", "")]) if f]
    if hasattr(options, "verify"):
        recorded = _read(folders[0] / f"tables/{options.table or 'test'}.json", "execution")
        return options.step is None and _is_portable(recorded)
    if not hasattr(options, "portable"):  # a training, above all, whose bits are those of this processor
        return False
    if (asked := options.overrides.get("evaluate.portable")) is not None:
        return asked is True
    return any(_read(f / "config.json", "evaluate").get("portable") is True for f in folders)


def _is_portable(recorded: dict[str, Any]) -> bool:
    from fpatch.runtime.execution import Execution

    try:
        return Execution(**recorded).portable
    except (TypeError, AttributeError):  # the command itself says what is wrong with the record
        return False


def _read(path: Path, name: str) -> dict[str, Any]:
    """Return an object of a JSON file; {} if there is none, which the command itself reports."""
    try:
        found = parse_json(read_text(path)).get(name)
    except (OSError, ValueError, AttributeError, MemoryError):
        return {}
    return found if isinstance(found, dict) else {}

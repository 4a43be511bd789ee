"""Tell a copy of a run folder from the folder itself, moved."""

import socket
from pathlib import Path
from typing import Any

from fpatch.core.inputs import parse_json


def place_of(folder: Path) -> dict[str, Any]:
    """Return the place of a folder: its path, its number on its file system, and the name of the machine."""
    status = folder.resolve().stat()
    return {
        "path": str(folder.resolve()),
        "device": status.st_dev,
        "inode": status.st_ino,
        "host": socket.gethostname(),
    }


def is_copy(state: dict[str, Any], here: dict[str, Any]) -> bool:
    """Return whether a folder is a copy of the one whose place is recorded, rather than that one, moved.

    A folder keeps its number when it is renamed. One that was moved to another disk of the same machine is
    no copy if the original is gone. On another machine the original may live on, so it is a copy.
    """
    before = state.get("place")
    if before is None:
        return False  # an older version recorded no place
    if before["inode"] == here["inode"] and (
        before["path"] == here["path"] or before["device"] == here["device"]
    ):
        return False
    original = Path(before["path"], "mlflow.json")
    if before["path"] == here["path"] or not original.is_file():
        return before["host"] != here["host"]
    try:
        return parse_json(original.read_bytes())["uid"] == state["uid"]
    except (ValueError, KeyError, TypeError):
        return False

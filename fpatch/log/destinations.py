"""The destinations that this user has named: servers and databases that may receive records.

A run folder records its destination. The folder may come from somebody else, and its destination with it. So
a command on a folder sends records only where the user has sent some before, or asks to send them.

Each destination is an empty file in `$XDG_STATE_HOME/fpatch/destinations`, by default below `~/.local/state`.
Its name is a digest, because an address may hold a password.
"""

import os
from contextlib import suppress
from pathlib import Path

from fpatch.core.files import digest

TRACKING_URI = "MLFLOW_TRACKING_URI"
"""MLflow's own environment variable; the destination that it names is the user's."""
_EXPERIMENT_NAME = "MLFLOW_EXPERIMENT_NAME"
EXPERIMENT = "fpatch"
"""The default name of the experiment in MLflow."""


def choose_experiment(experiment: str) -> str:
    """Return the name of the experiment: MLflow's environment variable replaces the default, nothing else.

    Example:
        >>> from fpatch.log.destinations import choose_experiment
        >>> choose_experiment("brake lights")
        'brake lights'
    """
    return os.environ.get(_EXPERIMENT_NAME) or experiment if experiment == EXPERIMENT else experiment


def remember(destination: str) -> None:
    """Remember a destination that the user has named; without a writable home, nothing is remembered."""
    with suppress(OSError, RuntimeError):  # RuntimeError: there is no home
        path = _path(destination)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.touch(mode=0o600)


def is_own(destination: str) -> bool:
    """Return whether the user has named a destination, now by MLflow's variable or in an earlier command.

    Example:
        >>> from fpatch.log.destinations import is_own
        >>> is_own("http://203.0.113.9:5000")
        False
    """
    if destination == os.environ.get(TRACKING_URI):
        return True
    try:
        return _path(destination).is_file()
    except (OSError, RuntimeError):
        return False


def _path(destination: str) -> Path:
    state = os.environ.get("XDG_STATE_HOME", "")
    folder = Path(state) if os.path.isabs(state) else Path("~/.local/state").expanduser()
    return folder / "fpatch" / "destinations" / digest(destination.encode())

"""No code is imported from the folder of a run or a sweep, which may be somebody else's."""

import importlib.machinery
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from fpatch.runs.locks import RunError


def forbid_imports(folder: Path) -> None:
    """Keep Python from importing modules out of a folder that may be somebody else's.

    Where the parent of the folder is searched for modules, the folder's name is a package's.

    Raises:
        RunError: If Python searches the folder itself.
    """
    folder = folder.resolve()
    for entry in sys.path:
        searched = Path(entry or os.curdir).resolve()
        if searched.exists() and searched.is_relative_to(folder):
            raise RunError(
                f"{folder} may be somebody else's, and Python searches {searched} for modules; take it "
                "out of PYTHONPATH, and start the command in another folder"
            )
        if folder.is_relative_to(searched):
            name = ".".join(folder.relative_to(searched).parts)
            loaded = sys.modules.get(name)
            if loaded is None and not _is_elsewhere(name, folder):
                sys.modules[name] = None  # type: ignore[assignment]  # an import of it fails


def holds_a_run(folder: Path) -> bool:
    """Return whether a folder is one of a run or a sweep, or lies in one."""
    marks = (("environment.json", "config.json"), ("sweep.json", "journal"))
    return any(
        all((place / name).exists() for name in mark) for place in (folder, *folder.parents) for mark in marks
    )


def _is_elsewhere(name: str, folder: Path) -> bool:
    """Return whether a package of this name would be imported from another folder."""
    searched: Sequence[str] | None = None
    found = None
    for part in name.split("."):
        found = importlib.machinery.PathFinder.find_spec(part, searched)
        if found is None or found.submodule_search_locations is None:
            return found is not None
        searched = list(found.submodule_search_locations)
    return folder not in (Path(place).resolve() for place in searched or ())

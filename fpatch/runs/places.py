"""The places of a run's data and weights: recorded relative to its folder, and found again elsewhere.

A project is moved as a whole, or a run folder is sent alone. Paths in the config therefore start at the run
folder, unless they share nothing but the root of the file system with it. A file is looked for in the folder
that a user names, at its place relative to the run folder, and at its place relative to the folder in which
the run was made. Digests are compared where the files are read.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fpatch.core.files import beneath, file_digest
from fpatch.core.inputs import expand_home
from fpatch.runs.locks import RunError

_NO_IMAGE = "no such image"
"""A part of every error of a missing image."""
_WAY_OUT = "name the folder that holds the tables and images by --data.root DIR (data_root in Python)"
_TABLES = ("placements", "objects")
_PATHS = ("data.placements", "data.objects", "data.root")
_Change = Callable[[str, str, str | None], str]
"""`(name of the setting, path, recorded digest) -> path`."""


def is_place(name: str) -> bool:
    """Return whether a setting of this dotted name is the path of a file or folder."""
    return name in _PATHS or name.endswith(".weights") or name.startswith("evaluate.controls.")


def to_relative(config: Mapping[str, Any], folder: Path, start: Path | None = None) -> dict[str, Any]:
    """Return a config whose paths start at a run folder.

    Args:
        config: The config of a study.
        folder: The run folder.
        start: The folder at which its relative paths start; None: the working directory.

    Example:
        >>> from pathlib import Path
        >>> from fpatch.runs.places import to_relative
        >>> config = {"data": {"placements": "/project/data/placements.csv", "objects": None}}
        >>> to_relative(config, Path("/project/runs/first"))["data"]
        {'placements': '../../data/placements.csv', 'objects': None}
    """
    return _change_paths(config, lambda name, path, digest: relative_path(path, folder, start))


def relative_settings(settings: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return settings by dotted name whose paths start at a run folder, instead of the working directory.

    Example:
        >>> from pathlib import Path
        >>> from fpatch.runs.places import relative_settings
        >>> settings = {"data.placements": "/project/night.csv", "seed": 1}
        >>> relative_settings(settings, Path("/project/runs/first"))
        {'data.placements': '../../night.csv', 'seed': 1}
    """

    def change(name: str, value: Any) -> Any:
        if isinstance(value, Mapping):
            return _change_within(name, value, lambda _, path, digest: relative_path(path, folder))
        return relative_path(value, folder) if isinstance(value, str) and is_place(name) else value

    return {name: change(name, value) for name, value in settings.items()}


def relative_path(path: str, folder: Path, start: Path | None = None) -> str:
    """Return a path relative to a run folder, or absolute if they share only the root."""
    full, folder = ((start or Path.cwd()) / expand_home("path", path)).resolve(), folder.resolve()
    if len(Path(os.path.commonpath([full, folder])).parts) < 2:
        return str(full)
    return Path(os.path.relpath(full, folder)).as_posix()


class Places:
    """Finds the files of a run's config.

    Args:
        folder: The run folder.
        made_in: The folder in which the run was made, if it is recorded.
        data_root: The folder of the data that a user names, or None.

    Raises:
        RunError: If the named folder does not exist.
    """

    def __init__(self, folder: Path, made_in: str | None, data_root: str | Path | None) -> None:
        self._starts = [folder.resolve(), *([Path(made_in)] if made_in else [])]
        self._root = None if data_root is None else expand_home("--data.root", data_root).resolve()
        if self._root is not None and not self._root.is_dir():
            raise RunError(f"--data.root {data_root}: no such folder; name the one that holds the data")

    def find(self, path: str, digest: str | None = None, *, is_table: bool = False) -> str:
        """Return the absolute path of a file; where it is missing, its place relative to the run folder.

        Args:
            path: The recorded path.
            digest: The recorded SHA-256; of several files in the named folder, the one with it is taken.
            is_table: Prefer a table in the named folder whatever its digest, which is compared later.
        """
        named = [] if self._root is None else list(beneath(self._root, path))
        equal = [p for p in named if not _differs(p, digest)]
        usual = [Path(os.path.normpath(start / expand_home("path", path))) for start in self._starts]
        there = [p for p in usual if p.exists()]
        found = [*equal, *named, *there] if is_table else [*equal, *there, *named]
        return str((found or usual)[0])

    def find_root(self, recorded: str | None, placements: str) -> str | None:
        """Return the folder of relative image paths; None: the folder of each table.

        Args:
            recorded: The recorded folder, if it was a setting.
            placements: The table of placements that was found.
        """
        if self._root is None:
            return None if recorded is None else self.find(recorded)
        if recorded is None:
            return None if Path(placements).is_relative_to(self._root) else str(self._root)
        folders = (p for p in beneath(self._root, recorded) if p.is_dir())
        return str(next(folders, self._root))

    def config(self, config: Mapping[str, Any], digests: Mapping[str, str]) -> dict[str, Any]:
        """Return a config with absolute paths of the files that are here.

        Args:
            config: The recorded config.
            digests: The recorded digests of the tables, by name.
        """

        def change(name: str, path: str, digest: str | None) -> str:
            table = name.removeprefix("data.")
            if name == "data.root":
                return path
            return self.find(path, digests.get(table, digest), is_table=table in _TABLES)

        found = _change_paths(config, change, self._named_files)
        data = found.get("data")
        if isinstance(data, dict) and isinstance(data.get("placements"), str):
            root = data.get("root")
            data["root"] = self.find_root(root if isinstance(root, str) else None, data["placements"])
        return found

    def settings(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings of a table, by dotted name, with absolute paths of the files that are here."""

        def found(name: str, value: Any) -> Any:
            if isinstance(value, str) and name == "data.root":
                return self.find_root(value, "")
            if isinstance(value, str) and is_place(name):
                return self.find(value)
            if isinstance(value, Mapping):
                return _change_within(name, value, lambda _, path, digest: self.find(path, digest))
            return value

        return {name: found(name, value) for name, value in settings.items()}

    def _named_files(self, resource: dict[str, Any]) -> dict[str, Any]:
        """Replace the arguments of a resource that name files by the files in the named folder."""
        arguments, files = resource.get("arguments"), resource.get("files")
        root = self._root
        if root is None or not isinstance(arguments, Mapping) or not isinstance(files, Mapping):
            return resource
        moved: dict[str, str] = {}

        def move(value: Any) -> Any:
            if isinstance(value, Mapping):
                return {name: move(part) for name, part in value.items()}
            if isinstance(value, list):
                return [move(part) for part in value]
            if not isinstance(value, str) or value not in files:
                return value
            equal = (p for p in beneath(root, value) if not _differs(p, files[value]))
            return moved.setdefault(value, str(next(equal, value)))

        changed = move(arguments)
        return {**resource, "arguments": changed, "files": {moved.get(n, n): d for n, d in files.items()}}


def _differs(path: Path, digest: str | None) -> bool:
    return digest is not None and path.is_file() and file_digest(path) != digest


def _change_paths(
    config: Mapping[str, Any],
    change: _Change,
    more: Callable[[dict[str, Any]], dict[str, Any]] = lambda resource: resource,
) -> dict[str, Any]:
    """Replace every path of a config: of data and of the files of resources."""

    def walk(value: Any, name: str) -> Any:
        if not isinstance(value, Mapping):
            return change(name, value, None) if name in _PATHS and isinstance(value, str) else value
        changed = {n: walk(v, f"{name}.{n}" if name else n) for n, v in value.items()}
        if isinstance(changed.get("loader"), str):
            if isinstance(changed.get("weights"), str):
                path = change(f"{name}.weights", changed["weights"], changed.get("sha256"))
                changed["weights"] = path
            changed = more(changed)
        elif name == "evaluate.controls":
            changed = {n: change(name, v, None) if isinstance(v, str) else v for n, v in changed.items()}
        return changed

    return walk(config, "")


def _change_within(name: str, value: Mapping[str, Any], change: _Change) -> Any:
    """Replace the paths in a table that is the value of a setting."""
    nested: Any = value
    for part in reversed(name.split(".")):
        nested = {part: nested}
    found = _change_paths(nested, change)
    for part in name.split("."):
        found = found[part]
    return found


@contextmanager
def suggest_data_root() -> Iterator[None]:
    """Add to the error of a missing file how to name the folder of the data.

    Raises:
        OSError: That of the block.
        ValueError: That of the block.
    """
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        error.add_note(_WAY_OUT)
        raise
    except ValueError as error:
        if _NO_IMAGE in str(error):
            error.add_note(_WAY_OUT)
        raise

"""Files of a run folder: written atomically, and read with errors that name what to restore."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_type_hints

from safetensors import SafetensorError, safe_open
from torch import Tensor

from fpatch.core.checks import shown
from fpatch.core.files import file_digest, write_atomic
from fpatch.core.inputs import parse_json, read_text
from fpatch.core.names import typed
from fpatch.core.schema import decode
from fpatch.log.sealed import SEAL, seal
from fpatch.log.values import to_json
from fpatch.runs.forms import check_form
from fpatch.runs.locks import RunError
from fpatch.runtime.execution import Execution

FORMAT = 1
"""The version of the layout of a run folder; a reader refuses another one."""


_MOST_THREADS = 4096


def write_file(path: Path, data: bytes) -> None:
    """Write a file atomically, in a folder that is made if absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, data)


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically; NaN becomes null."""
    write_file(path, to_json(value))


def write_sealed(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object atomically, with the digest of its content."""
    write_file(path, seal(value))


def read_json(path: Path, *keys: str) -> dict[str, Any]:
    """Read a JSON object, and check that it has these keys.

    Raises:
        RunError: If the file is no JSON, or lacks a key.
    """
    try:
        value = parse_json(read_text(path))
    except FileNotFoundError:
        raise RunError(f"{path} is missing; restore it, or train again") from None
    except ValueError as error:
        what = str(error).removeprefix(f"{path}: ")
        raise RunError(f"{path} is broken ({what}); restore it, or train again") from error
    if not isinstance(value, dict):
        raise RunError(
            f"{path} is broken (it must be an object, got {shown(value)}); restore it, or train again"
        )
    try:
        check_form(path, value)
    except ValueError as error:
        raise RunError(f"{path} is broken ({error}); restore it, or train again") from error
    if missing := [key for key in keys if key not in value]:
        raise RunError(f"{path} is broken (it lacks {missing[0]!r}); restore it, or train again")
    return value


def is_sealed_run(folder: Path) -> bool:
    """Return whether a run began with digests, so that each of its checkpoints and tables has its own.

    Raises:
        RunError: If `environment.json` is missing or broken.
    """
    return SEAL in read_json(folder / "environment.json")


def read_execution(path: Path) -> Execution:
    """Read the execution that a JSON file records.

    Raises:
        RunError: If the file is broken, or records other fields than this version.
    """
    recorded, kinds = read_json(path, "execution")["execution"], get_type_hints(Execution)
    try:
        for name in recorded.keys() & kinds:
            decode(kinds[name], recorded[name], f"execution.{name}")
    except ValueError as error:
        raise RunError(f"{path} is broken ({error}); restore it, or train or evaluate again") from error
    try:
        found = Execution(**recorded)
    except TypeError as error:
        what = "the execution has other fields than this version records; train or evaluate again"
        raise RunError(f"{path}: {what}") from error
    for name, least, most in (("block", 0, 10**6), ("threads", 1, _MOST_THREADS)):
        if not least <= (value := getattr(found, name)) <= most:
            what = f"execution.{name} must be a whole number from {least} to {most}, got {shown(value)}"
            raise RunError(f"{path} is broken ({what}); restore it, or train or evaluate again")
    return found


def read_tensors(folder: Path, name: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the tensors of a safetensors file, and its header.

    Args:
        folder: The run folder.
        name: The name of the file in it.

    Raises:
        RunError: If the file is missing or broken.
    """
    with _opened(folder, name) as file:
        return {n: file.get_tensor(n) for n in file.keys()}, file.metadata() or {}  # noqa: SIM118


def read_header(folder: Path, name: str) -> dict[str, str]:
    """Read the header of a safetensors file alone; see `read_tensors`."""
    with _opened(folder, name) as file:
        return file.metadata() or {}


@contextmanager
def _opened(folder: Path, name: str) -> Iterator[Any]:
    path = folder / name
    if not path.is_file():
        known = [p.name.removesuffix(".safetensors") for p in path.parent.glob("*.safetensors")]
        there = ", ".join(sorted(known)) or "nothing"
        hint = f"; if the run was stopped: fpatch resume {typed(folder)}" if "last" in known else ""
        raise RunError(f"{folder} lacks {name}; there is: {there}{hint}")
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        way = "restore it"
        if path.parent.name == "checkpoints":
            way = f"restore it, or resume from another checkpoint: fpatch resume {typed(folder)} --from NAME"
        raise RunError(f"{path} is broken ({error}); {way}") from error


def file_damage(folder: Path, name: str, recorded: Any) -> str | None:
    """Return a sentence if a file of a run folder is missing or has another digest, else None.

    A record may be somebody else's: a name that leads out of the folder is not followed.
    """
    if os.path.isabs(name) or os.path.normpath(name).startswith(".."):
        return f"{name} is recorded, and is no file of the folder"
    try:
        is_there = (folder / name).is_file()
    except (OSError, ValueError):  # a name that no file can have
        is_there = False
    if not is_there:
        return f"{name} is missing"
    return None if file_digest(folder / name) == recorded else f"{name} is not as it was written"

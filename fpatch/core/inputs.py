"""Files that a person gives: read only if they are regular, and as UTF-8."""

import json
import os
import stat
import tomllib
from pathlib import Path
from typing import Any

_KINDS = (
    (stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"), (stat.S_ISBLK, "a device"),
)  # fmt: skip
_MISSING = "no such file; check the path"


def check_file(path: str | Path, missing: str = _MISSING, regular: str = "give a regular file") -> Path:
    """Check that a path leads to a regular file; a pipe would block, and a device has no end.

    Args:
        path: The path, which may be a link.
        missing: The rest of the sentence if nothing is there.
        regular: The way out if it is a folder, a pipe, a socket or a device.

    Returns:
        The path.

    Raises:
        FileNotFoundError: If nothing is there.
        ValueError: If it is no regular file.

    Example:
        >>> from fpatch.core.inputs import check_file
        >>> check_file("/dev/null")
        Traceback (most recent call last):
        ValueError: /dev/null: it is a device; give a regular file
    """
    try:
        mode = Path(path).stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"{path}: {missing}") from None
    except ValueError:
        raise ValueError(f"{str(path)!r:.120}: a path cannot hold the character NUL; correct it") from None
    except OSError as error:
        raise OSError(f"{path!s:.120}: {error.strerror}; correct the path") from error
    for is_kind, kind in _KINDS:
        if is_kind(mode):
            raise ValueError(f"{path}: it is {kind}; {regular}")
    return Path(path)


def machine_memory() -> int:
    """Return the bytes of memory of this machine.

    Example:
        >>> from fpatch.core.inputs import machine_memory
        >>> machine_memory() > 2**28
        True
    """
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def check_encodable(path: str | Path) -> None:
    r"""Check that a path is text, which libraries and records can hold.

    Raises:
        ValueError: If it holds bytes that are not UTF-8.

    Example:
        >>> from fpatch.core.inputs import check_encodable
        >>> check_encodable("b" + chr(0xdce9))
        Traceback (most recent call last):
        ValueError: 'b\udce9': the path is not text in UTF-8; rename the folder
    """
    try:
        os.path.abspath(path).encode()
    except UnicodeEncodeError:
        raise ValueError(f"{str(path)!r}: the path is not text in UTF-8; rename the folder") from None


def expand_home(field: str, path: str | Path) -> Path:
    """Return a path with the home folder in the place of `~`.

    Args:
        field: The name of the setting, for errors.
        path: The path.

    Raises:
        ValueError: If there is no such home.

    Example:
        >>> from fpatch.core.inputs import expand_home
        >>> expand_home("log.runs", "~nobody-here/runs")
        Traceback (most recent call last):
        ValueError: log.runs: no home folder is known for ~nobody-here/runs; write the whole path
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ValueError(f"{field}: no home folder is known for {path}; write the whole path") from None


def read_text(path: str | Path, missing: str = _MISSING) -> str:
    """Read a file of text in UTF-8, with or without a mark of byte order.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no regular file, or not UTF-8.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from fpatch.core.inputs import read_text
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "names.txt").write_bytes(bytes([239, 187, 191]) + b"car")
        ...     read_text(Path(folder, "names.txt"))
        'car'
    """
    data = check_file(path, missing).read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        what = f"byte {error.start} is {data[error.start]:#04x}"
        raise ValueError(f"{path}: not text in UTF-8 ({what}); save it as UTF-8") from None


def parse_json(text: str | bytes) -> Any:
    """Parse JSON; nesting that is too deep is an error of the text, too.

    Raises:
        ValueError: If it is no JSON.

    Example:
        >>> from fpatch.core.inputs import parse_json
        >>> parse_json("[" * 100_000)
        Traceback (most recent call last):
        ValueError: it is nested too deeply
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def parse_toml(text: str) -> dict[str, Any]:
    """Parse TOML; nesting that is too deep is an error of the text, too.

    Raises:
        ValueError: If it is no TOML.
    """
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None

"""Names that become files, columns of tables and keys of logs: what they may be, and how they are shown."""

import re
import shlex
import unicodedata
import zlib
from collections.abc import Iterable

MAX_NAME_LENGTH = 200
_MAX_BYTES = 200

_RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{i}" for port in ("com", "lpt") for i in range(1, 10))}
"""Names that are devices on some systems, with any suffix."""


def safe_name(name: str) -> str:
    """Return a form of a name that is a valid path on every system and a valid key in MLflow.

    Letters, digits and `_ - . / space` are kept; other characters become `_`. A path segment of only dots and
    spaces becomes `_`. A name of more than 200 characters, or bytes of UTF-8, is cut and ends in its CRC-32.

    Example:
        >>> from fpatch.core.names import safe_name
        >>> safe_name("success/patch (gone)")
        'success/patch _gone_'
    """
    safe = re.sub(r"[^\w./\- ]", "_", name)
    safe = "/".join("_" if segment.strip(". ") == "" else segment for segment in safe.split("/"))
    if len(data := safe.encode(errors="replace")) > MAX_NAME_LENGTH:
        kept = data[: MAX_NAME_LENGTH - 9].decode(errors="ignore")
        safe = f"{kept}-{zlib.crc32(name.encode(errors='replace')):08x}"
    return safe


def typed(path: object) -> str:
    """Return a path as it is typed in a command: in quotes, if a shell reads it otherwise.

    Example:
        >>> from fpatch.core.names import typed
        >>> print(typed("runs/20260101-120000-poster"), typed("runs/my poster"))
        runs/20260101-120000-poster 'runs/my poster'
    """
    return shlex.quote(str(path))


def check_name(field: str, name: str) -> None:
    r"""Check that a name can be part of a file's name.

    Raises:
        ValueError: If it is empty or too long, leads to another folder, is a device on some system, or holds
            characters that are not shown.

    Example:
        >>> from fpatch.core.names import check_name
        >>> check_name("pixels(shapes)", "../../x")
        Traceback (most recent call last):
        ValueError: pixels(shapes): the name '../../x' must not hold '/' or '\'; rename it, e.g. 'hood'
    """
    rule = ""
    if not name.strip(". "):
        rule = "must hold a letter or a digit"
    elif "/" in name or "\\" in name:
        rule = "must not hold '/' or '\\'"
    elif show(name) != name or "\n" in name or "\t" in name:
        rule = "must not hold characters that are not shown"
    elif len(name.encode(errors="replace")) > _MAX_BYTES:
        rule = f"must be at most {_MAX_BYTES} bytes long"
    elif name.partition(".")[0].strip().casefold() in _RESERVED:
        rule = "must not be a device on any system"
    elif name != name.strip() or name.endswith("."):
        rule = "must not begin or end with a space, or end with a dot"
    if rule:
        raise ValueError(f"{field}: the name {name!r:.120} {rule}; rename it, e.g. 'hood'")


def check_file_name(field: str, name: str, example: str) -> None:
    """Check the name of a file in a run folder, without folder and suffix.

    Raises:
        ValueError: If it is none; the message tells a path from the name in it.

    Example:
        >>> from fpatch.core.names import check_file_name
        >>> check_file_name("checkpoint", "checkpoints/best.safetensors", "such as best")
        Traceback (most recent call last):
        ValueError: checkpoint: give a name without folder and suffix, such as best, got 'checkpoints/best...'
    """
    try:
        check_name(field, name)
        is_name = not name.endswith((".safetensors", ".csv", ".parquet", ".json"))
    except ValueError:
        is_name = False
    if not is_name:
        raise ValueError(f"{field}: give a name without folder and suffix, {example}, got {name!r:.120}")


def check_distinct(field: str, names: Iterable[str]) -> None:
    """Check that names stay distinct as files and keys, where case and special characters are lost.

    Raises:
        ValueError: If two names are the same.

    Example:
        >>> from fpatch.core.names import check_distinct
        >>> check_distinct("pixels(shapes)", ["a:b", "a_b"])
        Traceback (most recent call last):
        ValueError: pixels(shapes): 'a:b' and 'a_b' would be one file, or one key of a log; rename one
    """
    seen: dict[str, str] = {}
    for name in names:
        key = unicodedata.normalize("NFKC", safe_name(name)).casefold()
        if key in seen:
            raise ValueError(
                f"{field}: {seen[key]!r} and {name!r} would be one file, or one key of a log; rename one"
            )
        seen[key] = name


def show(text: str) -> str:
    r"""Return a text with its control characters as escapes, which a terminal shows and does not run.

    New lines and tabs stay. Marks that change the direction of writing are escaped, too.

    Example:
        >>> from fpatch.core.names import show
        >>> print(show("hood" + chr(27) + "[2J"))
        hood\x1b[2J
    """
    return text if text.isascii() and text.isprintable() else _HIDDEN.sub(_escape, text)


def label(text: str) -> str:
    r"""Return a text as a label of a figure, in which matplotlib reads no formula.

    Example:
        >>> from fpatch.core.names import label
        >>> print(label("from $5 to $6"))
        from \$5 to \$6
    """
    return show(text).replace("$", r"\$")


_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)


def _escape(found: re.Match[str]) -> str:
    return ascii(found.group())[1:-1]

"""Ways to damage a file: its bytes, or one value of its JSON or TOML."""
# ruff: noqa: E501, the tables of cases have a line for each

import copy
import datetime
import json
import os
import re
import shutil
import socket
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fpatch.core.schema import to_toml

Damage = Callable[[], object]
HUGE = 10**40
DEEP = "[" * 20_000


def cut(name: str, share: float) -> Damage:
    """Keep the first share of a file's bytes."""

    def damage() -> None:
        data = Path(name).read_bytes()
        Path(name).write_bytes(data[: int(len(data) * share)])

    return damage


def write(name: str, data: bytes | str) -> Damage:
    """Replace the content of a file."""
    return lambda: Path(name).write_bytes(data.encode() if isinstance(data, str) else data)


def edit(name: str, old: str, new: str) -> Damage:
    """Replace the first occurrence of a text, which must be there."""

    def damage() -> None:
        text = Path(name).read_text()
        assert old in text, (name, old)
        Path(name).write_text(text.replace(old, new, 1))

    return damage


def become(name: str, kind: str) -> Damage:
    """Put something that is no regular file in the place of a file."""

    def damage() -> None:
        path = Path(name)
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        if kind == "a folder":
            path.mkdir()
        elif kind == "a pipe":
            os.mkfifo(path)
        elif kind == "a device":
            path.symlink_to("/dev/zero")
        elif kind == "a link to itself":
            path.symlink_to(path.name)
        elif kind == "a socket":
            server = socket.socket(socket.AF_UNIX)
            server.bind(str(path))
            server.close()

    return damage


PLACES = ("a folder", "a pipe", "a device", "a link to itself", "a socket", "gone")
"""What stands where a file should."""


def bad_bytes(name: str) -> Iterator[tuple[str, Damage]]:
    """Yield damages of any file: something else in its place, its bytes cut or replaced."""
    for kind in PLACES:
        yield kind, become(name, kind)
    yield "empty", write(name, b"")
    yield "cut in half", cut(name, 0.5)
    yield "without its end", cut(name, 0.98)
    yield "NUL bytes", write(name, b"\0" * 64)
    yield (
        "UTF-16",
        lambda: Path(name).write_bytes(
            b"\xff\xfe" + Path(name).read_bytes()[:400].decode("latin-1").encode("utf-16-le")
        ),
    )
    yield "Latin-1", write(name, "größe = 3; \xe4\xf6\n".encode("latin-1"))
    yield "an image", lambda: shutil.copyfile("poster.png", name)
    yield "deeply nested", write(name, DEEP)


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Yield the path of every value in nested tables and lists, tables and lists among them."""
    if path:
        yield path, value
    items = (
        value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    )
    for name, inner in items:
        if not isinstance(value, list) or name == 0:  # the first entry stands for all
            yield from leaves(inner, (*path, name))


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """Return a copy with another value at a path; `...` removes the key."""
    made = copy.deepcopy(value)
    target = made
    for name in path[:-1]:
        target = target[name]
    if new is ...:
        del target[path[-1]]
    else:
        target[path[-1]] = new
    return made


WRONG = {
    "text": "hello", "nothing": None, "true": True, "a list": [], "a table": {}, "nested": [[[1]]],
    "negative": -1, "huge": HUGE, "infinite": float("inf"), "no number": float("nan"), "half": 0.5,
    "missing": ..., "long": "x" * 5000, "control": "a\x1b[2J\x00b",
}  # fmt: skip
"""Values of other types than the right one."""


def bad_json(name: str, wrong: Mapping[str, Any] = WRONG, skip: str = "$^") -> Iterator[tuple[str, Damage]]:
    """Yield a damage for every value of a JSON file and every wrong value; the project is the working folder."""
    whole = json.loads(Path(name).read_text())
    for path, value in leaves(whole):
        where = ".".join(map(str, path))
        for kind, new in wrong.items():
            if re.search(skip, f"{where} {kind}") or (
                new is not ... and type(new) is type(value) and new == value
            ):
                continue
            yield f"{where} {kind}", _json_writer(name, replaced(whole, path, new))


def _json_writer(name: str, value: Any) -> Damage:
    return lambda: Path(name).write_text(json.dumps(value))


def bad_toml(name: str, wrong: Mapping[str, Any] = WRONG, skip: str = "$^") -> Iterator[tuple[str, Damage]]:
    """Yield a damage for every value of a TOML file and every wrong value."""
    whole = tomllib.loads(Path(name).read_text())
    for path, value in leaves(whole):
        where = ".".join(map(str, path))
        for kind, new in {**wrong, "a date": datetime.date(2026, 1, 1)}.items():
            if (
                re.search(skip, f"{where} {kind}")
                or (type(new) is type(value) and new == value)
                or new is None
            ):
                continue
            yield f"{where} {kind}", _toml_writer(name, whole, path, new)


def _toml_writer(name: str, whole: Any, path: tuple[Any, ...], new: Any) -> Damage:
    mark = "DATE-OF-THE-CASE"
    is_date = isinstance(new, datetime.date)
    text = to_toml(replaced(whole, path, mark if is_date else new))
    return lambda: Path(name).write_text(text.replace(f'"{mark}"', "2026-01-01"))

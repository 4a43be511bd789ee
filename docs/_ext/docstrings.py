"""Docstrings of this library as reStructuredText: what stands in backticks is code, all else is prose."""

import re
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from sphinx.application import Sphinx

CODE = re.compile(r"(``?)(?=\S)(.+?)(?<=\S)\1(?!`)")
SECTION = re.compile(r"^(\s*)(Args|Attributes|Example|Examples|Note|Raises|References|Returns|Yields):$")


def escape(text: str) -> str:
    """One paragraph of prose, with every character that has a meaning in reStructuredText taken literally."""
    parts: list[str] = []
    end = 0
    for found in CODE.finditer(text):
        parts += [_escape_prose(text[end : found.start()]), f"``{found[2]}``"]
        if found.end() < len(text) and text[found.end()].isalnum():
            parts.append("\\ ")
        end = found.end()
    return "".join([*parts, _escape_prose(text[end:])])


def _escape_prose(text: str) -> str:
    text = re.sub(r"([\\*|])", r"\\\1", text)
    return re.sub(r"(?<=\w)_(?!\w)", r"\\_", text)


def convert(lines: Sequence[str]) -> list[str]:
    """A docstring, whose indented paragraphs outside the sections of Google's style are code."""
    return list(_converted("\n".join(lines).split("\n\n")))


def _converted(paragraphs: Sequence[str]) -> Iterator[str]:
    inside = False  # of a section such as Args
    for paragraph in paragraphs:
        first = paragraph.split("\n")[0]
        if first.strip() and not first[0].isspace():
            inside = bool(SECTION.match(first))
        if first.lstrip().startswith(">>>"):
            yield from (*paragraph.split("\n"), "")
        elif not inside and first.startswith("    "):
            yield from (".. code-block:: python", "", *paragraph.split("\n"), "")
        else:
            prose, _, _ = paragraph.partition(">>> ")
            code = paragraph[len(prose) :]  # below a title such as Example
            yield from (*(escape(prose) + code).split("\n"), "")


def on_docstring(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Convert before napoleon reads the sections."""
    lines[:] = convert(textwrap.dedent("\n".join(lines)).split("\n"))


def on_signature(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str | None, returns: str | None
) -> tuple[str, str | None] | None:
    """Write a default that a factory makes as Python can parse it."""
    return None if signature is None else (signature.replace("<factory>", "..."), returns)


def setup(app: Sphinx) -> dict[str, bool]:
    """Join the build."""
    app.connect("autodoc-process-docstring", on_docstring, priority=100)
    app.connect("autodoc-process-signature", on_signature)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

"""Docstrings of stages as Markdown: the sections of Google's style, told apart by what they hold."""

import re
import textwrap
from collections.abc import Iterator
from itertools import takewhile

EXAMPLES = ("Example", "Examples")
TITLE = re.compile(r"^([A-Z][A-Za-z ]*):\n(?=    )", re.MULTILINE)


def parse_summary(doc: str) -> str:
    """What stands above the first section."""
    return TITLE.split(doc)[0].strip()


def parse_section(doc: str, title: str) -> str:
    """The lines indented below a title of a docstring."""
    lines = doc.partition(f"{title}:\n")[2].splitlines()
    return textwrap.dedent("\n".join(takewhile(lambda line: not line or line[0].isspace(), lines))).strip()


def parse_attributes(doc: str) -> dict[str, str]:
    """The entries below "Attributes:" of a docstring."""
    found: dict[str, str] = {}
    for block in re.split(r"\n(?=\S)", parse_section(doc, "Attributes")):
        name, colon, text = block.partition(":")
        if colon:
            found[name.strip()] = " ".join(text.split())
    return found


def render_summary(doc: str) -> str:
    """The paragraphs above the first section."""
    return "\n\n".join(map(render_paragraph, parse_summary(doc).split("\n\n")))


def render_paragraph(text: str) -> str:
    """A paragraph, an example or an indented block."""
    if text.startswith(">>>"):
        return f"```pycon\n{text}\n```"
    return text if text.startswith("    ") else escape(text)


def render_sections(doc: str) -> Iterator[str]:
    """All sections but the settings, which have a table, and the examples, which have a heading."""
    for title in TITLE.findall(doc):
        text = parse_section(doc, title)
        if title == "References":
            yield from (f"*{escape(' '.join(text.split()))}*", "")
        elif title not in ("Attributes", *EXAMPLES):
            body = "\n\n".join(map(render_paragraph, text.split("\n\n")))
            yield from (f":::{{admonition}} {title}", body, ":::", "")


def render_examples(doc: str) -> Iterator[str]:
    """The examples, as Python would print them."""
    for title in filter(EXAMPLES.__contains__, TITLE.findall(doc)):
        yield from ("\n\n".join(map(render_paragraph, parse_section(doc, title).split("\n\n"))), "")


def escape(text: str) -> str:
    """Prose, without accidental tags or emphasis; code in backticks is left as it is."""
    parts = re.split(r"(`[^`]+`)", text)
    return "".join(part if part.startswith("`") else re.sub(r"([*<$])", r"\\\1", part) for part in parts)


def escape_cell(text: str) -> str:
    """The same in a table."""
    return escape(text).replace("|", "\\|")

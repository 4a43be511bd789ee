"""Names of classes: a list, a file with a name per line, or a number of unnamed classes."""

import os
from collections.abc import Sequence
from pathlib import Path

from fpatch.core.checks import MOST, check_count, shown
from fpatch.core.inputs import read_text

Classes = Sequence[str] | str | os.PathLike[str] | int
"""Names in the order of the victim's labels, the file that lists them, or their number."""


def read_classes(field: str, classes: Classes) -> tuple[str, ...]:
    """Return the names of classes in the order of their labels.

    Args:
        field: The name of the setting, for errors.
        classes: A list of names; a text file with one name per line; or a number `n` of classes without
            names, which are called "0" to "n - 1".

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a name is empty or occurs twice, or there is none; the message says which.

    Example:
        >>> from fpatch.data.classes import read_classes
        >>> read_classes("data.classes", 3), read_classes("data.classes", ["car", "bird"])
        (('0', '1', '2'), ('car', 'bird'))
        >>> read_classes("data.classes", ["crane", "heron", "crane"])
        Traceback (most recent call last):
        ValueError: data.classes: 'crane' is the name of the classes 0 and 2; rename one, as in the table
    """
    if isinstance(classes, int) and not isinstance(classes, bool):
        check_count(field, classes, 1, MOST // 1000)
        return tuple(map(str, range(classes)))
    if isinstance(classes, str | os.PathLike):
        names = _read_lines(field, Path(classes))
    elif isinstance(classes, Sequence) and all(isinstance(name, str) for name in classes):
        names = tuple(classes)
    else:
        raise ValueError(
            f"{field} must be a list of names, a file with a name per line, or the number of classes, got "
            f"{shown(classes)}"
        )
    if not names:
        raise ValueError(f"{field} must hold one name at least, got none; leave it out to take all labels")
    first: dict[str, int] = {}
    for i, name in enumerate(names):
        if not name.strip():
            raise ValueError(f"{field}: class {i} has no name; give one, since names count the labels")
        if first.setdefault(name, i) != i:
            raise ValueError(
                f"{field}: {shown(name)} is the name of the classes {first[name]} and {i}; rename one, as in "
                "the table"
            )
    return names


def _read_lines(field: str, path: Path) -> tuple[str, ...]:
    text = read_text(path, f"no such file; {field} names a file with a class per line, or lists the names")
    return tuple(line.strip() for line in text.rstrip().splitlines())


def name_class(names: Sequence[str], number: int) -> str:
    """Return the name of a class; one without a name is called by its number.

    Example:
        >>> from fpatch.data.classes import name_class
        >>> name_class(("stop", "yield"), 1), name_class((), 1)
        ('yield', 'class 1')
    """
    return names[number] if 0 <= number < len(names) else f"class {number}"

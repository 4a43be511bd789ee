"""Names and numbers beside the axes of figures, of a bounded length."""

import re
from collections.abc import Sequence

_MOST_LINES = 3
_LONGEST_NUMBER = 4
_PARTS = re.compile(r"(?:[^/_\- \n.]|\.(?![A-Za-z]))*(?:[/_\- \n]|\.(?=[A-Za-z]))?")
"""Parts of a name; a dot within a number ends none."""


def wrap_name(name: str, width: int = 18, lines: int = _MOST_LINES) -> str:
    """Break a name into lines after slashes, dots, underscores and spaces; a long one loses its middle.

    Example:
        >>> from fpatch.viz.names import wrap_name
        >>> print(wrap_name("camera/exposure/stops"))
        camera/exposure/
        stops
    """
    found = [""]
    for part in _PARTS.findall(name):
        for piece in (part[i : i + width] for i in range(0, len(part), width)):
            if found[-1] and len((found[-1] + piece).rstrip()) > width:
                found.append("")
            found[-1] += piece
    found = [line.strip() for line in found]
    if len(found) > lines:
        found = [found[0], "...", found[-1]] if lines > 2 else [clip_name(name, width)]
    return "\n".join(found)


def clip_name(name: str, width: int = 24) -> str:
    """Cut the middle out of a long name; both ends tell names apart, and no number is cut in two.

    Example:
        >>> from fpatch.viz.names import clip_name
        >>> clip_name("a rather long name of a run, seed 7", 20)
        'a rather...n, seed 7'
        >>> clip_name('a class of a long name, number 77 of eighty', 24)
        'a class o...77 of eighty'
    """
    if len(name) <= width:
        return name
    tail = len(name) - (width - 3 - (width - 3) // 2)
    tail = _before_number(name, tail)
    head = max(width - 3 - (len(name) - tail), 0)
    return f"{name[: _before_number(name, head)].rstrip()}...{name[tail:]}"


def _before_number(name: str, at: int) -> int:
    """Return a place to cut a name, moved to the front of a short number that is cut there."""
    found = at
    while 0 < found < len(name) and name[found - 1].isdigit() and name[found].isdigit():
        found -= 1
    return found if at - found <= _LONGEST_NUMBER else at


def clip_apart(names: Sequence[str], width: int = 24) -> list[str]:
    """Clip names to a width, or to the next that tells them apart.

    Example:
        >>> from fpatch.viz.names import clip_apart
        >>> clip_apart(["victim number 1 of a long list", "victim number 2 of a long list"], 12)
        ['victim number 1 of a long list', 'victim number 2 of a long list']
    """
    for most in (width, 3 * width // 2, 2 * width, 1000):
        shown = [clip_name(name, most) for name in names]
        if len(set(shown)) == len(set(names)):
            break
    return shown


def short_paths(paths: Sequence[str]) -> list[str]:
    """Return the last parts of paths that tell them apart; a number keeps the name before it.

    Example:
        >>> from fpatch.viz.names import short_paths
        >>> short_paths(["camera/exposure/stops", "implant/scale/0"])
        ['stops', 'scale/0']
    """
    split = [path.split("/") for path in paths]
    short = []
    for parts in split:
        fewest = 2 if parts[-1].isdigit() else 1
        lengths = range(fewest, len(parts) + 1)
        alone = (n for n in lengths if sum(other[-n:] == parts[-n:] for other in split) == 1)
        short.append("/".join(parts[-next(alone, len(parts)) :]))
    return short


def show_values(values: Sequence[float | str]) -> list[str]:
    """Write numbers with three digits, or with as many as tell them apart; names stay.

    Example:
        >>> from fpatch.viz.names import show_values
        >>> show_values([-1 / 3, 0.0, 2.5]), show_values([1000.0, 1000.5])
        (['-0.333', '0', '2.5'], ['1000', '1000.5'])
    """
    for digits in (3, 4, 6, 9, 17):
        shown = [v if isinstance(v, str) else f"{v:.{digits}g}" for v in values]
        if len(set(shown)) == len(set(values)):
            break
    return shown

"""Names and numbers beside the axes of figures, of a bounded length."""

import re
from collections.abc import Sequence

_MOST_LINES = 3


def wrap_name(name: str, width: int = 18) -> str:
    """Break a name into lines after slashes, underscores, hyphens and spaces; a long one loses its middle.

    Example:
        >>> from fpatch.viz._names import wrap_name
        >>> print(wrap_name("camera/exposure/stops"))
        camera/exposure/
        stops
    """
    lines = [""]
    for part in re.findall(r"[^/_\-\s]*[/_\-\s]?", name):
        for piece in (part[i : i + width] for i in range(0, len(part), width)):
            if lines[-1] and len((lines[-1] + piece).rstrip()) > width:
                lines.append("")
            lines[-1] += piece
    lines = [line.strip() for line in lines]
    if len(lines) > _MOST_LINES:
        lines = [lines[0], "...", lines[-1]]
    return "\n".join(lines)


def show_values(values: Sequence[float | str]) -> list[str]:
    """Write numbers with three digits, or with as many as tell them apart; names stay.

    Example:
        >>> from fpatch.viz._names import show_values
        >>> show_values([-1 / 3, 0.0, 2.5]), show_values([1000.0, 1000.5])
        (['-0.333', '0', '2.5'], ['1000', '1000.5'])
    """
    for digits in (3, 4, 6, 9, 17):
        shown = [v if isinstance(v, str) else f"{v:.{digits}g}" for v in values]
        if len(set(shown)) == len(set(values)):
            break
    return shown

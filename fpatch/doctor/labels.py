"""The order of labels: does the victim count its classes as the data do?"""

from collections import Counter
from collections.abc import Mapping, Sequence

from torch import Tensor

from fpatch.doctor.clean import NOTHING, name_of

MOST_FRAC = 0.6
"""A class counts as answered by another one if a larger share of its images is."""

MIN_ROWS = 2
"""A class with fewer images is no evidence."""

MAX_CLASSES = 4
"""Classes that a finding lists."""


def find_order(truth: Tensor, said: Tensor, names: Sequence[str]) -> str | None:
    """Find an order of the victim's labels that explains its wrong answers, and say it by name.

    Args:
        truth: The true labels [n].
        said: The answered ones [n].
        names: The names of the classes in the data.

    Example:
        >>> import torch
        >>> from fpatch.doctor.labels import find_order
        >>> truth = torch.tensor([0, 0, 1, 1, 2, 2])
        >>> found = find_order(truth, torch.tensor([1, 1, 0, 0, 2, 2]), ["go", "no", "on"])
        >>> print(found.partition(": ")[2].partition("; ")[0])
        'go' is answered as 'no' (2 of 2), 'no' as 'go' (2 of 2)
        >>> find_order(truth, truth, ["go", "no", "on"]) is None
        True
    """
    pairs = Counter(zip(truth.tolist(), said.tolist(), strict=True))
    count = Counter({t: n for t, n in Counter(truth.tolist()).items() if n >= MIN_ROWS and t != NOTHING})
    moved: dict[int, int] = {}
    for label in sorted(count):
        most, rows = max(((s, n) for (t, s), n in pairs.items() if t == label), key=lambda p: p[1])
        if most not in (label, NOTHING) and rows > MOST_FRAC * count[label]:
            moved[label] = most
    if not moved:
        return None
    steps = {answer - label for label, answer in moved.items()}
    listed = _list(moved, pairs, count, names)
    if len(count) > 1 and len(moved) == len(count) and len(steps) == 1:
        step = steps.pop()
        way = "it seems to count a background first; " if step == 1 else ""
        off = f"its labels are those of the data {'plus' if step > 0 else 'minus'} {abs(step)}: {listed}"
        return f"{off}; {way}give the names in the victim's order"
    several = len(moved) > 2 and len({*moved.values()}) == len(moved) and 2 * len(moved) >= len(count)
    if _in_cycles(moved) or several:
        return (
            f"its labels have another order than data.classes: {listed}; give the names in the victim's order"
        )
    if len(count) == 1:
        return (
            f"{listed}: its labels may have another order than data.classes; give the names in the victim's "
            "order, or train it"
        )
    return None


def _in_cycles(moved: Mapping[int, int]) -> bool:
    """Return whether some classes are answered in place of one another."""
    for start in moved:
        label, steps = moved[start], 1
        while label in moved and label != start and steps <= len(moved):
            label, steps = moved[label], steps + 1
        if label == start:
            return True
    return False


def _list(
    moved: Mapping[int, int],
    pairs: Mapping[tuple[int, int], int],
    count: Mapping[int, int],
    names: Sequence[str],
) -> str:
    parts = []
    for label, answer in list(moved.items())[:MAX_CLASSES]:
        verb = "is answered as" if not parts else "as"
        counted = f"({pairs[label, answer]} of {count[label]})"
        parts.append(f"{name_of(label, names)!r} {verb} {name_of(answer, names)!r} {counted}")
    more = len(moved) - len(parts)
    return ", ".join(parts) + (f", and {more} more" if more else "")

"""Tables by class: success rates, what the victim calls the objects, and average precision."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from fpatch.cli.tables import condition_title, percent

if TYPE_CHECKING:
    from fpatch.evaluation.by_class import ByClass

NUM_CLASSES = 12
"""The most classes that a table shows."""
_NAME_WIDTH = 24


def class_table(title: str, found: "ByClass", num_classes: int = NUM_CLASSES) -> Table:
    """Make a table of success by class: the patch, the strongest control, and the answers under the patch.

    Args:
        title: The title above the table.
        found: The results by class.
        num_classes: The most classes shown: those with the most rows that count.

    Example:
        >>> from fpatch.cli.class_tables import class_table
        >>> from fpatch.evaluation.by_class import ByClass, ClassResult
        >>> from fpatch.metrics import Rate
        >>> rates = {"patch": Rate(0.5, 0.2, 0.8, 10, 10), "noise": Rate(0.1, 0.0, 0.4, 10, 10)}
        >>> stop = ClassResult(Rate(1.0, 0.7, 1.0, 10, 10), rates, {}, {"patch": {"stop": 5, "bird": 5}})
        >>> table = class_table("by class", ByClass({"stop": stop}))
        >>> [[str(cell) for cell in column.cells] for column in table.columns]
        [['stop'], ['10 of 10'], [' 50.0  [20.0, 80.0]'], ['10.0'], ['5 bird']]
    """
    from fpatch.evaluation.conditions import NONE, PATCH

    shown = found.largest(num_classes)
    if not found.attacked:
        return _right_table(title, found, shown)
    asked = "success" if found.goal is None else f"answered {found.goal}"
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("class", max_width=_NAME_WIDTH, overflow="fold")
    table.add_column("found\nwithout", justify="right", no_wrap=True)
    table.add_column(f"{asked} %\nwith the patch", justify="right", no_wrap=True)
    table.add_column("best\ncontrol", justify="right", no_wrap=True)
    table.add_column("wrong answers\nwith the patch", overflow="fold")
    for name in shown:
        entry = found.classes[name]
        rate = entry.rates[PATCH]
        controls = [r.value for c, r in entry.rates.items() if c != PATCH and r.value == r.value]
        wrong = {answer: n for answer, n in entry.answers.get(PATCH, {}).items() if answer != name}
        table.add_row(
            Text(name),
            f"{rate.count} of {entry.clean.count}" if NONE not in entry.not_finite else "not finite",
            percent(rate),
            f"{100 * max(controls):.1f}" if controls else "-",
            Text(_list_answers(wrong)),
        )
    table.caption, table.caption_justify = _left_out(found, shown), "left"
    return table


def _right_table(title: str, found: "ByClass", shown: Sequence[str]) -> Table:
    """Make a table of what is right by class, where no patch was shown."""
    from fpatch.evaluation.conditions import NONE

    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("class", max_width=_NAME_WIDTH, overflow="fold")
    for heading in ("rows", "right %"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("wrong answers", overflow="fold")
    for name in shown:
        entry = found.classes[name]
        wrong = {answer: n for answer, n in entry.answers.get(NONE, {}).items() if answer != name}
        cells = (str(entry.clean.count), percent(entry.clean))
        table.add_row(Text(name), *cells, Text(_list_answers(wrong)))
    table.caption, table.caption_justify = _left_out(found, shown), "left"
    return table


def _left_out(found: "ByClass", shown: Sequence[str]) -> str | None:
    """Count the classes that a table does not show."""
    left = [entry.clean.count for name, entry in found.classes.items() if name not in shown]
    return f"and {len(left)} more classes with {sum(left)} rows; the summary has them all" if left else None


def _list_answers(answers: Mapping[str, int], most: int = 3) -> str:
    """Write the most frequent answers with their counts, a line each, and the number of the others."""
    counted = list(answers.items())
    shown = counted if len(counted) <= most else counted[: most - 1]
    told = [f"{count} {_clip(answer)}" for answer, count in shown]
    if others := counted[len(shown) :]:
        told.append(f"{sum(count for _, count in others)} of {len(others)} more classes")
    return "\n".join(told) or "-"


def _clip(name: str, width: int = _NAME_WIDTH - 4) -> str:
    """Cut the middle out of a long name."""
    return name if len(name) <= width else f"{name[: width - 9]}...{name[-6:]}"


def precision_tables(
    summaries: Mapping[str, Mapping[str, float | None]], class_names: Sequence[str] = ()
) -> Iterator[Table]:
    """Make tables of the average precision of each metric that gathers it, by condition and by class.

    Args:
        summaries: Numbers by condition and name, as a summary holds them.
        class_names: The classes to show first, in this order; the others follow as a metric names them. With
            one class there is no table by class.

    Example:
        >>> from fpatch.cli.class_tables import precision_tables
        >>> numbers = {"ap/map": 0.25, "ap/map_50": 0.5, "ap/map_75": 0.2, "ap/recall": None}
        >>> (table,) = precision_tables({"none": numbers})
        >>> [[str(cell) for cell in column.cells] for column in table.columns]
        [['no patch'], ['0.250'], ['0.500'], ['0.200'], ['-']]
    """
    first = next(iter(summaries.values()), {})
    for path in (name.removesuffix("/map_50") for name in first if name.endswith("/map_50")):
        table = Table(title=f"average precision ({path})", title_justify="left", title_style="bold")
        table.add_column("condition", no_wrap=True)
        headings = {"map": "AP", "map_50": "AP at 0.5", "map_75": "AP at 0.75", "recall": "recall"}
        for heading in headings.values():
            table.add_column(heading, justify="right", no_wrap=True)
        for condition, numbers in summaries.items():
            table.add_row(
                condition_title(condition), *(_number(numbers.get(f"{path}/{n}")) for n in headings)
            )
        left_out = {c: n.get(f"{path}/map/left_out") for c, n in summaries.items()}
        told = [f"{condition_title(c)} {n:g}" for c, n in left_out.items() if n]
        note = f"; not counted beyond the best 100 of an image and class: {', '.join(told)}" if told else ""
        table.caption = f"AP: the mean over IoU 0.5 to 0.95{note}"
        table.caption_justify = "left"
        yield table
        every = [n.removeprefix(f"{path}/map/") for n in first if n.startswith(f"{path}/map/")]
        order = [name for name in dict.fromkeys((*class_names, *every)) if name in every]
        named = [name for name in order if name != "left_out"]
        if len(named) > 1:
            yield _precision_by_class(path, summaries, named)


def _precision_by_class(
    path: str, summaries: Mapping[str, Mapping[str, float | None]], class_names: Sequence[str]
) -> Table:
    table = Table(title=f"AP by class ({path})", title_justify="left", title_style="bold")
    table.add_column("class", max_width=_NAME_WIDTH, overflow="fold")
    for condition in summaries:
        table.add_column(condition_title(condition), justify="right")
    for name in class_names[:NUM_CLASSES]:
        table.add_row(Text(name), *(_number(n.get(f"{path}/map/{name}")) for n in summaries.values()))
    if left := len(class_names[NUM_CLASSES:]):
        table.caption = f"and {left} more classes in the mean; the summary has them all"
        table.caption_justify = "left"
    return table


def _number(value: Any) -> str:
    return "-" if value is None or value != value else f"{value:.3f}"

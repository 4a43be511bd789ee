"""Tables of the doctor: every stage of training, and how good each victim is without a patch."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from fpatch.doctor.clean import CleanFacts, Count
    from fpatch.doctor.examine import Diagnosis


def stage_table(diagnosis: "Diagnosis") -> Table:
    """Make a table of the effect of a test patch at every stage of training."""
    table = Table(title="one batch, stage by stage", title_justify="left", title_style="bold")
    table.add_column("stage", no_wrap=True)
    table.add_column("writes", max_width=24)
    for heading in ("|gradient|", "patch changes it by", "covers %", "clipped %"):
        table.add_column(heading, justify="right", no_wrap=True)

    def number(value: float, form: str) -> str:
        return "-" if value != value else format(value, form)

    for path, facts in diagnosis.stages.items():
        table.add_row(
            path,
            ", ".join(facts.writes),
            number(facts.gradient, ".3g"),
            number(facts.delta, ".3g"),
            number(100 * facts.covered, ".2f"),
            number(100 * facts.clipped, ".1f"),
        )
    return table


def clean_table(diagnosis: "Diagnosis", num_classes: int = 20) -> Table:
    """Make a table of how good each victim is without a patch, by class and split.

    Args:
        diagnosis: The report of the doctor.
        num_classes: The most classes shown of each victim: those in which it is worst.

    Example:
        >>> import tempfile
        >>> from fpatch.cli.doctor_tables import clean_table
        >>> from fpatch.demo.tiny import tiny_study
        >>> from fpatch.doctor.examine import examine
        >>> table = clean_table(examine(tiny_study(tempfile.mkdtemp())))
        >>> [[str(cell) for cell in column.cells] for column in table.columns]
        [['lamp', 'all'], ['2 of 2', '2 of 2'], ['2 of 2', '2 of 2'], ['4 of 4', '4 of 4']]
    """
    splits = {facts.split: facts for facts in diagnosis.clean}
    victims = list(dict.fromkeys(facts.victim for facts in diagnosis.clean))
    table = Table(title="right without a patch", title_justify="left", title_style="bold")
    table.add_column("class")
    for split in splits:
        table.add_column(split, justify="right", no_wrap=True)
    for victim in victims:
        own = {facts.split: facts for facts in diagnosis.clean if facts.victim == victim}
        if len(victims) > 1:
            table.add_row(Text(victim, style="italic"))
        shown, others = _worst_classes(list(own.values()), num_classes)
        for name in shown:
            counts = (own[s].classes.get(name) if s in own else None for s in splits)
            table.add_row(Text(name or "unknown"), *map(_counted, counts))
        if others:
            table.add_row(f"{others} others, in which it is better")
        table.add_row("all", *(_counted(own[s].all if s in own else None) for s in splits))
        table.add_section()
    looked = ", ".join(f"{f.images} of {f.total} in {f.split}" for f in splits.values())
    table.caption, table.caption_justify = f"images examined: {looked}", "left"
    return table


def _counted(count: "Count | None") -> str:
    return "-" if count is None else f"{count.right} of {count.count}"


def _worst_classes(facts: "Sequence[CleanFacts]", most: int) -> tuple[list[str], int]:
    """Return the classes in which a victim is worst, in their own order, and the number of the others."""
    names = list(dict.fromkeys(name for f in facts for name in f.classes))

    def share(name: str) -> float:
        counts = [f.classes[name] for f in facts if name in f.classes]
        return sum(c.right for c in counts) / sum(c.count for c in counts)

    worst = {*sorted(names, key=share)[:most]}
    return [name for name in names if name in worst], len(names) - len(worst)

"""The command that hardens a victim."""

import argparse
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from fpatch.cli.answers import Answer
from fpatch.cli.console import console, say
from fpatch.cli.options import add_command
from fpatch.cli.tables import condition_title, two_lines
from fpatch.core.names import show

if TYPE_CHECKING:
    from fpatch.runs.hardened import Hardened


def add(commands: Any) -> None:
    """Register the command."""
    harden = add_command(
        commands,
        "harden",
        _harden,
        "train a victim against patches, and attack it from scratch",
        "The study of an attack with the section [harden] names the study that trains its victim. A pool of "
        "patches is trained against the victim; then the victim is trained with them on a share of its rows, "
        "and beside it without. The victim as it was and both others are attacked from scratch, and the "
        "command prints in how many held-out rows each is right, without a patch and under each attack. It "
        "makes a folder with the weights of both, harden.json and harden.png.",
        ("harden study.toml --harden.pool 4", "harden study.toml --resume runs/20260101-120000-study-harden"),
    )
    harden.add_argument("config", metavar="STUDY", help="the study of the attack, with [harden]")
    harden.add_argument("--resume", metavar="FOLDER", help="the folder of a hardening that was stopped")


def _harden(options: argparse.Namespace) -> Answer:
    from fpatch.runs.hardened import describe
    from fpatch.runs.hardening import harden
    from fpatch.study.hardening import load_harden_plan

    done = harden(load_harden_plan(options.config, options.overrides), folder=options.resume)
    console.print(harden_table(done))
    say(f"folder: {show(str(done.folder))}")
    return Answer(0, {"folder": str(done.folder), **describe(done)})


def harden_table(done: "Hardened") -> Table:
    """Make a table of clean and robust accuracy: the victims side by side, an attack in each row.

    Example:
        >>> from pathlib import Path
        >>> from fpatch.cli.hardening import harden_table
        >>> from fpatch.metrics import Rate
        >>> from fpatch.runs.hardened import Hardened
        >>> one, other = Rate(1.0, 0.9, 1.0, 40, 40), Rate(0.5, 0.3, 0.7, 40, 40)
        >>> done = Hardened(Path(), [], {"start": one}, {"start": {"fresh-1-1": other}}, {"start": {}})
        >>> list(harden_table(done).columns[0].cells)
        ['no patch', 'from scratch, loss 1, key 1', 'the worst']
    """
    count = next(iter(done.clean.values()))
    title = f"right, % of {count.count} held-out rows ({count.photographs} images)"
    table = Table(title=title, title_justify="left", title_style="bold")
    table.caption, table.caption_justify = "brackets are 95 % intervals over images", "left"
    table.add_column("attack")
    for name in done.clean:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_row(condition_title("none"), *map(two_lines, done.clean.values()), end_section=True)
    for attack in dict.fromkeys(a for rates in done.robust.values() for a in rates):
        kind, loss, key = attack.split("-")
        shown = f"{'from scratch' if kind == 'fresh' else 'made for the start'}, loss {loss}, key {key}"
        cells = (two_lines(rates[attack]) if attack in rates else "" for rates in done.robust.values())
        table.add_row(shown, *cells)
    table.add_section()
    table.add_row("the worst", *(two_lines(done.worst(name)[1]) for name in done.clean), end_section=True)
    for summary in next(iter(done.summaries.values())):
        table.add_row(Text(summary), *(f"{100 * own[summary]:.1f}" for own in done.summaries.values()))
    return table

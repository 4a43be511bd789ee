"""The command that hardens a victim."""

import argparse
from typing import Any

from fpatch.cli.answers import Answer
from fpatch.cli.console import console, say
from fpatch.cli.options import add_command
from fpatch.cli.tables import harden_table
from fpatch.core.names import show


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

"""The command that starts, resumes and reads sweeps."""

import argparse
import tomllib
from pathlib import Path
from typing import Any

from fpatch.cli.answers import Answer, describe_entry, describe_trials
from fpatch.cli.console import console, progress_bars, say
from fpatch.cli.options import OVERRIDES, add_command, whole
from fpatch.cli.tables import settings_table, trials_table
from fpatch.core.inputs import expand_home
from fpatch.core.names import typed


def add(commands: Any) -> None:
    """Register the command."""
    sweep = add_command(
        commands,
        "sweep",
        _sweep,
        "search the settings of a study for the best objective; resume or read a sweep",
        "WHAT is a study in TOML with the sections [space] and [sweep], or one of: status, the table of "
        "trials; best, the best trial; export, its study as TOML; resume, which continues a sweep; fetch, "
        f"which copies one from its storage. {OVERRIDES}",
        (
            "sweep study.toml --sweep.num_trials 24",
            "sweep status runs/20260101-120000-study-sweep",
            "sweep resume runs/20260101-120000-study-sweep --num-trials 48",
            "sweep export runs/20260101-120000-study-sweep --out best.toml",
        ),
    )
    sweep.add_argument("what", metavar="WHAT", help="CONFIG.toml, status, best, export, resume or fetch")
    sweep.add_argument("run_folder", metavar="RUN", nargs="?", help="the folder of the sweep; fetch: its URI")
    sweep.add_argument("--trial", metavar="NAME", help="export: a trial, e.g. 0003 (default: the best)")
    sweep.add_argument("--out", metavar="FILE", help="export: the file to write (default: the terminal)")
    sweep.add_argument(
        "--config",
        metavar="CONFIG.toml",
        help="resume: refuse if the file describes another sweep",
    )
    sweep.add_argument("--num-trials", type=whole(1), metavar="N", help="resume: total number of trials")
    sweep.add_argument("--runs", metavar="FOLDER", help="fetch: folder to copy into (default: runs)")


def _sweep(options: argparse.Namespace) -> Answer:
    verbs = {
        "status": (_sweep_status, ()),
        "best": (_sweep_best, ()),
        "export": (_sweep_export, ("trial", "out")),
        "resume": (_sweep_resume, ("config", "num_trials")),
        "fetch": (_sweep_fetch, ("runs",)),
    }
    what = options.what
    if what not in verbs and not Path(what).suffix and not Path(what).exists():
        from fpatch.core.checks import nearest

        raise ValueError(f"fpatch sweep: there is no {what!r}; {nearest(what, [*verbs, 'CONFIG.toml'])}")
    run, takes = verbs.get(what, (_sweep_begin, ()))
    for name in ("trial", "out", "config", "num_trials", "runs"):
        if getattr(options, name) is not None and name not in takes:
            instead = "; set --sweep.num_trials" if (run, name) == (_sweep_begin, "num_trials") else ""
            raise ValueError(f"fpatch sweep {what} takes no --{name.replace('_', '-')}{instead}")
    if what in verbs and options.run_folder is None:
        raise ValueError(f"fpatch sweep {what} RUN: the folder of a sweep must follow")
    if what in verbs and options.overrides and options.config is None:
        name = next(iter(options.overrides))
        raise ValueError(f"fpatch sweep {what} takes no --{name}; only resume --config CONFIG.toml does")
    return run(options)


def _sweep_begin(options: argparse.Namespace) -> Answer:
    from fpatch import tune

    if options.run_folder is not None:
        raise ValueError(f"fpatch sweep {options.what}: a sweep is one file, got {options.run_folder!r}, too")
    plan = tune.load_plan(options.what, options.overrides)
    with progress_bars(lines="trial ") as on_progress:
        journal = tune.run_plan(plan, on_progress)
    return _say_sweep(journal.folder)


def _sweep_resume(options: argparse.Namespace) -> Answer:
    from fpatch import tune

    plan = tune.load_plan(options.config, options.overrides) if options.config else None
    with progress_bars(lines="trial ") as on_progress:
        journal = tune.resume_sweep(options.run_folder, on_progress, plan=plan, num_trials=options.num_trials)
    return _say_sweep(journal.folder)


def _sweep_fetch(options: argparse.Namespace) -> Answer:
    from fpatch import tune

    journal = tune.fetch_sweep(options.run_folder, expand_home("--runs", options.runs or "runs"))
    for line in (f"sweep folder: {journal.folder}", f"  fpatch sweep resume {typed(journal.folder)}"):
        say(line)
    return Answer(0, {"sweep": str(journal.folder)})


def _say_sweep(folder: Path) -> Answer:
    from fpatch import tune

    journal = tune.Journal.open(folder)
    plan, entries = tune.read_plan(journal), journal.entries()
    console.print(trials_table(plan, entries))
    commands = [f"fpatch sweep best {typed(folder)}"]
    if (folder / "hparams").is_dir():
        commands.append(f"tensorboard --logdir {folder / 'hparams'}")
    for line in (f"sweep folder: {folder}", *(f"  {command}" for command in commands)):
        say(line)
    return Answer(0, describe_trials(folder, plan, entries, going=False))


def _sweep_status(options: argparse.Namespace) -> Answer:
    from fpatch import tune

    journal = tune.Journal.open(options.run_folder)
    going, plan, entries = journal.is_locked, tune.read_plan(journal), journal.entries()
    console.print(trials_table(plan, entries, num_rows=None, going=going))
    if not going and any(entry.outcome is None for entry in entries):
        say(f"resume with: fpatch sweep resume {typed(journal.folder)}")
    return Answer(0, describe_trials(journal.folder, plan, entries, going))


def _sweep_best(options: argparse.Namespace) -> Answer:
    from fpatch import tune

    journal = tune.Journal.open(options.run_folder)
    plan = tune.read_plan(journal)
    entry = tune.find_entry(journal, plan)
    console.print(settings_table(plan, entry))
    folder = journal.run_folder(entry.trial.name)
    for line in (f"run folder: {folder}", f"  fpatch evaluate {typed(folder)}"):
        say(line)
    return Answer(0, {"run": str(folder), "objective": plan.sweep.objective, **describe_entry(entry)})


def _sweep_export(options: argparse.Namespace) -> Answer:
    from fpatch import tune

    text = tune.export_trial(options.run_folder, options.trial)
    if options.out is not None:
        Path(options.out).write_text(text, "utf-8")
        say(f"  {options.out}")
    elif not options.json:
        print(text, end="")
    return Answer(0, {"study": tomllib.loads(text), "files": [options.out] if options.out else []})

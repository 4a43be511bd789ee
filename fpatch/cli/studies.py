"""What is done with a study: it is described, examined and trained."""

import argparse
from pathlib import Path
from typing import Any

from fpatch.cli.console import console, progress_bars, say
from fpatch.cli.options import OVERRIDES, add_command
from fpatch.cli.tables import stage_table


def add(commands: Any) -> None:
    """Give the command line these commands."""
    demo = add_command(
        commands, "demo", _demo, "render scenes, train a victim and a patch against it, and measure it"
    )
    demo.add_argument("--quick", action="store_true", help="one smaller victim: about a minute")
    demo.add_argument("--runs", default="runs", help="folder of run folders (default: runs)")
    demo.add_argument(
        "--mlflow-uri", help="an MLflow server (default: a local SQLite file in the runs folder)"
    )
    demo.add_argument(
        "--seed", type=int, default=0, help="of the scenes, the victims and the patch (default: 0)"
    )

    train = add_command(commands, "train", _train, "train a patch as a study file says", OVERRIDES)
    train.add_argument("config", metavar="CONFIG.toml", help="the study")
    train.add_argument("--mlflow-uri", help="an MLflow server instead of what the study says")

    resume = add_command(commands, "resume", _resume, "go on with a run that was stopped, to the bit")
    resume.add_argument("run_folder", metavar="RUN", help="the run folder")

    describe = add_command(commands, "describe", _describe, "say what a study is, stage by stage", OVERRIDES)
    describe.add_argument("config", metavar="CONFIG.toml", help="the study")
    describe.add_argument("--phase", help="only the nodes alive in it: train, validation, test, ...")
    describe.add_argument("--mermaid", action="store_true", help="a Mermaid diagram instead")

    doctor = add_command(
        commands,
        "doctor",
        _doctor,
        "say why a patch would not learn: send one through every stage, and follow its gradient back",
        "Exit code 1 if the patch could not learn or not be measured, 0 with warnings at most. " + OVERRIDES,
    )
    doctor.add_argument("config", metavar="CONFIG.toml", help="the study")
    doctor.add_argument(
        "--rows", type=int, default=16, help="photographs of each split that are looked at (default: 16)"
    )


def _demo(options: argparse.Namespace) -> int:
    from fpatch.cli.demo import run_demo

    run_demo(Path(options.runs), quick=options.quick, mlflow=options.mlflow_uri or True, seed=options.seed)
    return 0


def _train(options: argparse.Namespace) -> int:
    from fpatch.runs.training import train
    from fpatch.runtime.parallel import joined
    from fpatch.study.config import load_study

    overrides = options.overrides | ({"log.mlflow": options.mlflow_uri} if options.mlflow_uri else {})
    study = load_study(options.config, overrides)
    with joined(device=study.device) as ranks, progress_bars() as on_progress:
        run = train(study, on_progress)
        if not ranks.rank:
            _say_where(run.folder)
    return 0


def _resume(options: argparse.Namespace) -> int:
    from fpatch.runs.folder import Run
    from fpatch.runs.training import resume
    from fpatch.runtime.parallel import joined

    device = Run.open(options.run_folder).read_json("config.json", "device")["device"]
    with joined(device=device) as ranks, progress_bars() as on_progress:
        run = resume(options.run_folder, on_progress)
        if not ranks.rank:
            _say_where(run.folder)
    return 0


def _describe(options: argparse.Namespace) -> int:
    from fpatch.study.config import load_study
    from fpatch.study.setup import make_objective

    loaded = load_study(options.config, options.overrides)
    make_objective(loaded)  # names that nothing writes are wrong here already
    pipeline = loaded.pipeline if options.phase is None else loaded.pipeline.at(options.phase)
    if options.mermaid:
        print(pipeline.mermaid())
        return 0
    console.print(f"[bold]{loaded.name}[/bold], seed {loaded.seed}")
    say(pipeline.describe())
    say(f"needs in a batch: {', '.join(pipeline.required())}")
    weights = ", ".join(f"{w:g} x {n}" for n, w in loaded.objective.weights.items())
    say(f"minimizes {weights}; {loaded.optimizer}; {loaded.train}")
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from fpatch.doctor.examine import examine
    from fpatch.study.config import load_study

    diagnosis = examine(load_study(options.config, options.overrides), options.rows)
    if diagnosis.stages:
        console.print(stage_table(diagnosis))
    for finding in diagnosis.findings:
        style = "bold red" if finding.level == "error" else "yellow"
        console.print(f"[{style}]{finding.level}[/{style}]", end=" ")
        say(f"{finding.where}: {finding.what}")
    if diagnosis.can_learn:
        count = len(diagnosis.findings)
        console.print(f"the patch can learn; {count} warning{'' if count == 1 else 's'}")
    else:
        console.print("the patch could not learn, or not be measured")
    return 0 if diagnosis.can_learn else 1


def _say_where(folder: Path) -> None:
    commands = (f"fpatch evaluate {folder}", f"tensorboard --logdir {folder.parent}")
    for line in (f"run folder: {folder}", *(f"  {command}" for command in commands)):
        say(line)

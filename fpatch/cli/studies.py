"""Commands on studies: demo, describe, doctor, train, resume."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fpatch.cli.answers import Answer, describe_run, describe_victim
from fpatch.cli.console import console, progress_bars, say
from fpatch.cli.doctor_tables import clean_table, stage_table
from fpatch.cli.options import OVERRIDES, add_command, take_data_root, take_device, take_mlflow, whole
from fpatch.core.inputs import expand_home
from fpatch.core.names import typed

if TYPE_CHECKING:
    from fpatch.runs.folder import Run
    from fpatch.study.study import Study


def add(commands: Any) -> None:
    """Register the commands."""
    for register in (_add_demo, _add_describe, _add_doctor, _add_train, _add_resume):
        register(commands)


def _add_demo(commands: Any) -> None:
    demo = add_command(
        commands,
        "demo",
        _demo,
        "render scenes, train a victim and a patch against it, and measure it",
        "Nothing is downloaded. Scenes and victims are cached, so that a second demo is quicker.",
        ("demo --quick", "demo --runs demo-runs --seed 1"),
    )
    demo.add_argument("--quick", action="store_true", help="one smaller victim: about a minute")
    demo.add_argument("--runs", default="runs", help="folder of run folders (default: runs)")
    demo.add_argument(
        "--mlflow-uri", help="an MLflow server (default: a local SQLite file in the runs folder)"
    )
    demo.add_argument(
        "--seed", type=whole(0), default=0, help="seed of scenes, victims and patch (default: 0)"
    )


def _add_describe(commands: Any) -> None:
    describe = add_command(
        commands,
        "describe",
        _describe,
        "print a study: its stages in order, the inputs they need and what is minimized",
        OVERRIDES,
        ("describe study.toml", "describe study.toml --phase test --mermaid"),
    )
    describe.add_argument("config", metavar="CONFIG.toml", help="the study")
    describe.add_argument("--phase", help="only the nodes alive in it: train, validation, test, ...")
    describe.add_argument("--mermaid", action="store_true", help="print a Mermaid diagram instead")


def _add_doctor(commands: Any) -> None:
    doctor = add_command(
        commands,
        "doctor",
        _doctor,
        "find out why a patch would not learn: follow one batch and its gradient through every stage",
        "It also prints how good the victim is without a patch, by class and split: from 256 images of each "
        "split, or from as many as it answers in 15 seconds. It leaves a picture of the placements. "
        f"{OVERRIDES}",
        ("doctor study.toml", "doctor study.toml --rows 64 --optimizer.learning_rate 0.01"),
        "the patch could not learn, or not be measured",
    )
    doctor.add_argument("config", metavar="CONFIG.toml", help="the study")
    doctor.add_argument(
        "--rows",
        type=whole(1, 10**6),
        default=16,
        help="number of images in the batch that is followed (default: 16)",
    )
    doctor.add_argument(
        "--picture",
        metavar="FILE.png",
        help="the picture of the placements (default: NAME-placements.png in the folder of runs)",
    )


def _add_train(commands: Any) -> None:
    train = add_command(
        commands,
        "train",
        _train,
        "train a patch, or networks alone, as a study file says, into a new run folder",
        OVERRIDES,
        ("train study.toml", "train study.toml --train.num_steps 1000 --optimizer.learning_rate 0.1"),
    )
    train.add_argument("config", metavar="CONFIG.toml", help="the study")
    train.add_argument("--mlflow-uri", help="an MLflow server instead of the study's own setting")


def _add_resume(commands: Any) -> None:
    resume = add_command(
        commands,
        "resume",
        _resume,
        "resume a stopped run from its last checkpoint",
        "The patch will be that of an uninterrupted run, bit for bit; differences that prevent it are named.",
        ("resume runs/20260101-120000-study", "resume RUN --from step-00000050"),
    )
    resume.add_argument("run_folder", metavar="RUN", help="the run folder")
    take_data_root(resume)
    take_device(resume)
    take_mlflow(resume)
    resume.add_argument(
        "--from", dest="checkpoint", metavar="CHECKPOINT",
        help="go back to a checkpoint such as step-00000050, or accept the folder as it is by last; later "
        "files are moved into aside/ (default: last, which must agree with the records and the config)",
    )  # fmt: skip


def _demo(options: argparse.Namespace) -> Answer:
    from fpatch.cli.demo import run_demo

    found = run_demo(
        expand_home("--runs", options.runs),
        quick=options.quick,
        mlflow=options.mlflow_uri or True,
        seed=options.seed,
    )
    return Answer(0, {"victims": [describe_victim(result) for result in found]})


def _train(options: argparse.Namespace) -> Answer:
    from fpatch.core.files import check_writable
    from fpatch.runs.training import train
    from fpatch.runtime.parallel import joined
    from fpatch.study.config import load_study

    overrides = options.overrides | ({"log.mlflow": options.mlflow_uri} if options.mlflow_uri else {})
    study = load_study(options.config, overrides)
    check_writable("log.runs", study.log.runs)
    with joined(device=study.device) as ranks:
        with progress_bars() as on_progress:
            run = train(study, on_progress)
        if not ranks.rank:
            _say_where(run)
    return Answer(0, {} if ranks.rank else describe_run(run))


def _resume(options: argparse.Namespace) -> Answer:
    from fpatch.runs.folder import Run
    from fpatch.runs.training import resume
    from fpatch.runtime.device import check_device
    from fpatch.runtime.parallel import joined

    recorded = Run.open(options.run_folder).read_json("config.json", "device")["device"]
    device = recorded if options.device is None else options.device
    check_device("device", device)
    with joined(device=device) as ranks:
        with progress_bars() as on_progress:
            run = resume(
                options.run_folder, on_progress, checkpoint=options.checkpoint, mlflow=options.mlflow_uri,
                data_root=options.data_root, device=options.device,
            )  # fmt: skip
        if not ranks.rank:
            _say_where(run)
    return Answer(0, {} if ranks.rank else describe_run(run))


def _describe(options: argparse.Namespace) -> Answer:
    from fpatch.study.config import load_study
    from fpatch.study.setup import make_objective

    loaded = load_study(options.config, options.overrides)
    if options.phase is not None:
        _check_known("--phase", options.phase, loaded)
    make_objective(loaded)  # names that nothing writes are wrong here already
    pipeline = loaded.pipeline if options.phase is None else loaded.pipeline.at(options.phase)
    stages = {path: str(pipeline[path].stage) for path in pipeline}
    facts = {"name": loaded.name, "seed": loaded.seed, "stages": stages, "needs": list(pipeline.required())}
    facts |= {"config": loaded.config}
    if options.mermaid:
        say(pipeline.mermaid())
        return Answer(0, facts | {"mermaid": pipeline.mermaid()})
    console.print(loaded.name, style="bold", end="")
    console.print(f", seed {loaded.seed}")
    say(pipeline.describe())
    say(f"needs in a batch: {', '.join(pipeline.required())}")
    weights = ", ".join(f"{w:g} x {n}" for n, w in loaded.objective.weights.items())
    say(f"minimizes {weights}; {loaded.optimizer}; {loaded.train}")
    return Answer(0, facts)


def _check_known(field: str, phase: str, study: "Study") -> None:
    """Check that a phase is a standard one, or one of the study's own."""
    from fpatch.core.checks import nearest
    from fpatch.graph.node import PHASES

    if phase == "eval":
        raise ValueError(f"{field}: 'eval' means two phases; choose 'validation' or 'test'")
    known = {*PHASES, *(phase for node in study.pipeline.values() for phase in node.phases or ())}
    if phase not in known:
        raise ValueError(f"{field}: no phase {phase!r:.80}; {nearest(phase, known)}")


def _doctor(options: argparse.Namespace) -> Answer:
    from fpatch.doctor.examine import examine
    from fpatch.doctor.placement_figure import draw_placements
    from fpatch.study.config import load_study

    study = load_study(options.config, options.overrides)
    path = _find_picture_path(options.picture, study)
    diagnosis = examine(study, options.rows)
    if diagnosis.stages:
        console.print(stage_table(diagnosis))
    if diagnosis.clean:
        console.print(clean_table(diagnosis))
    say(f"training images: {diagnosis.rows}")
    try:
        if draw_placements(path, study.data.open().split(study.data.train), diagnosis.sizes):
            say(f"placements: {path}")
    except (ImportError, OSError) as error:
        say(f"no picture of the placements: {error}")
    for finding in diagnosis.findings:
        style = {"error": "bold red", "warning": "yellow", "note": "dim"}[finding.level]
        console.print(finding.level, style=style, end=" ")
        say(f"{finding.where}: {finding.what}")
    if diagnosis.can_learn:
        count = sum(f.level == "warning" for f in diagnosis.findings)
        console.print(f"the patch can learn; {count} warning{'' if count == 1 else 's'}")
    else:
        console.print("the patch could not learn, or not be measured")
    facts = {"can_learn": diagnosis.can_learn, **diagnosis._asdict()}
    return Answer(0 if diagnosis.can_learn else 1, facts)


def _find_picture_path(given: str | None, study: "Study") -> Path:
    """Return the path of the picture of the placements; it is checked before the work, not after it."""
    from fpatch.core.files import check_writable

    if given is None:
        return check_writable("log.runs", study.log.runs) / f"{study.name}-placements.png"
    path = Path(given)
    if path.suffix.lower() != ".png" or path.is_dir():
        raise ValueError(f"--picture must name a file FILE.png, got {given!r:.200}; add .png, or correct it")
    check_writable("--picture", path.parent)
    return path


def _say_where(run: "Run") -> None:
    """Print the run folder, and the commands that evaluate it and open its logs."""
    from fpatch.log.sinks import tracking_uri
    from fpatch.study.settings import EvaluateConfig

    folder, facts, config = run.folder, run.checkpoint_facts("best"), run.read_json("config.json")
    if "best_step" in facts:
        best = config.get("evaluate", {}).get("best", EvaluateConfig.best)
        say(f"best checkpoint: step {facts['best_step']}, {best} {facts['best']:.4g} in the validation")
    log = config.get("log", {})
    commands = [f"fpatch evaluate {typed(folder)}"]
    if log.get("tensorboard"):
        commands.append(f"tensorboard --logdir {typed(folder.parent)}")
    if log.get("mlflow"):
        uri = tracking_uri(folder, log["mlflow"])
        commands.append(uri if uri.startswith("http") else f"mlflow ui --backend-store-uri {typed(uri)}")
    for line in (f"run folder: {folder}", *(f"  {command}" for command in commands)):
        say(line)

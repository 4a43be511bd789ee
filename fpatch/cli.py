"""The command line. Every command imports what it needs when it runs, so that `--help` answers at once."""

import argparse
import os
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fpatch import __version__
from fpatch.console import (
    cells_table,
    console,
    importance_table,
    progress_bars,
    score_table,
    settings_table,
    stage_table,
    success_table,
    transfer_table,
    trials_table,
)
from fpatch.memory import CUBLAS_WORKSPACE, keep_freed_memory

if TYPE_CHECKING:
    from torch import Tensor

    from fpatch.types import Params

_EPILOG = """\
typical use:
  fpatch demo                              see everything once, in a few minutes
  fpatch describe study.toml               what a config means, stage by stage
  fpatch doctor study.toml                 why its patch would not learn
  fpatch train study.toml --train.num_steps 1000 --pipeline.camera/exposure.stops.low -2
  fpatch evaluate runs/20260101-120000-study
  fpatch replay runs/20260101-120000-study --verify
  fpatch analyze runs/20260101-120000-study
  fpatch grid runs/20260101-120000-study --over camera/exposure/stops=-1:1:5
  fpatch transfer runs/20260101-120000-a runs/20260101-130000-b
  fpatch score truth.json detections.json --iou 0.5 --score 0.4
  fpatch sweep study.toml --sweep.num_trials 24
  fpatch sweep resume runs/20260101-120000-study-sweep
"""

_OVERRIDES = (
    "Any setting can be given by its dotted name, with a TOML value: --optimizer.learning_rate 0.1 "
    "--objective.weights.vanish 2 --pipeline.camera/exposure.stops '[-1, 1]' "
    "--pipeline.camera/exposure.stops.low -2 --seed 1"
)

_ANALYZE = (
    "How to read it: a forest learns the metric from what was sampled (angles, stops, ...) and is asked "
    "about photographs that it has not seen. The score is the share of the variance that it predicts: if "
    "that may be 0, the importances mean nothing. An importance is what of the score is lost when that "
    "column is shuffled. figures/scatter.html opens in any browser, offline; figures/training.gif shows "
    "the patch at every checkpoint."
)


_TAKE_OVERRIDES = ("train", "describe", "doctor", "sweep")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code (0 done, 1 a difference was found, 2 wrong input)."""
    sys.path.insert(0, os.getcwd())  # modules that a study imports stages from
    if arguments is None:  # the process is ours
        keep_freed_memory()
        os.environ.setdefault(*CUBLAS_WORKSPACE)
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        overrides = _take_overrides(words) if words and words[0] in _TAKE_OVERRIDES else {}
        options = _make_parser().parse_args(words)
        options.overrides = overrides
        return options.run(options)
    except KeyboardInterrupt as stop:
        print("; ".join(["fpatch: stopped", *getattr(stop, "__notes__", ())]), file=sys.stderr)
        return 130
    except (ValueError, ImportError, OSError) as error:
        sentences = [_message(error), *getattr(error, "__notes__", ())]
        print(f"fpatch: error: {'; '.join(sentences)}", file=sys.stderr)
        return 2


def _message(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    return str(error)


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fpatch",
        description="Train, measure and replay physical adversarial patches.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"fpatch {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    demo = _add(
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

    train = _add(commands, "train", _train, "train a patch as a study file says", _OVERRIDES)
    train.add_argument("config", metavar="CONFIG.toml", help="the study")
    train.add_argument("--mlflow-uri", help="an MLflow server instead of what the study says")

    resume = _add(commands, "resume", _resume, "go on with a run that was stopped, to the bit")
    resume.add_argument("run_folder", metavar="RUN", help="the run folder")

    evaluate = _add(
        commands,
        "evaluate",
        _evaluate,
        "measure a run's patch against its controls, held out",
        "Every photograph of the split is shown with the trained patch, without, and with benign prints "
        "(noise, a flat print, the patch's pixels shuffled), on the same samples. It prints success with "
        "intervals, and leaves in the run folder tables/test.csv and .parquet, a row per photograph and "
        "draw, tables/test.summary.json, figures/test.png and figures/test-effects.png.",
    )
    evaluate.add_argument("run_folder", metavar="RUN", help="the run folder")
    evaluate.add_argument("--split", choices=("test", "validation"), default="test", help="(default: test)")
    evaluate.add_argument("--checkpoint", default="best", help="best, last or step-00000100 (default: best)")

    score = _add(
        commands,
        "score",
        _score,
        "score detections of any program against ground truth, both in COCO's JSON format",
        "AP is COCO's: the best 100 detections per image and class, whatever their score; classes without "
        "objects have none. Objects marked iscrowd do not count.",
    )
    score.add_argument("truth", metavar="GT.json", help="images, annotations and categories")
    score.add_argument(
        "detections", metavar="DETECTIONS.json", help="a list of image_id, category_id, bbox, score"
    )
    score.add_argument("--iou", type=float, default=0.5, help="overlap of a match (default: 0.5)")
    score.add_argument("--score", type=float, default=0.5, help="threshold for recall (default: 0.5)")

    replay = _add(
        commands,
        "replay",
        _replay,
        "rerun logged images from their logged samples",
        "Photographs, samples, results and composed images are compared, images by their digests, which is "
        "what a table holds of them. How to look at one, or at what it would be with another value sampled, "
        'stands in docs/analysis.md, "One logged image again"; fpatch grid does that to all.',
    )
    replay.add_argument("run_folder", metavar="RUN", help="the run folder")
    replay.add_argument(
        "--rows", metavar="A:B", help="rows of the table, e.g. 0:16, or one, e.g. 3 (default: all)"
    )
    replay.add_argument(
        "--table", default="test", help="test, test-last, validation-00000100 and the like (default: test)"
    )
    replay.add_argument("--step", type=int, metavar="N", help="rerun training update N instead")
    replay.add_argument(
        "--verify", action="store_true", help="exit 1 if anything is not bit for bit as logged"
    )

    grid = _add(
        commands,
        "grid",
        _grid,
        "measure a run's patch in every combination of sampled values",
        "VALUES are numbers, as a list -1,0,1 or as LOW:HIGH:COUNT; true and false are 1 and 0. Paths are "
        "those of the columns `sample/...` of a table, such as camera/exposure/stops; all else is drawn as "
        "ever, and alike in every cell.",
    )
    grid.add_argument("run_folder", metavar="RUN", help="the run folder")
    grid.add_argument(
        "--over", metavar="PATH=VALUES", action="append", required=True, help="an axis; may be repeated"
    )
    grid.add_argument("--split", choices=("test", "validation"), default="test", help="(default: test)")
    grid.add_argument("--checkpoint", default="best", help="best, last or step-00000100 (default: best)")

    transfer = _add(
        commands, "transfer", _transfer, "measure the patch of every run on the victim of every other"
    )
    transfer.add_argument(
        "run_folders", metavar="RUN", nargs="+", help="runs whose patches meet their victims"
    )
    transfer.add_argument(
        "--also", metavar="RUN", nargs="+", default=(), help="runs of which only the patch is measured"
    )
    transfer.add_argument("--split", choices=("test", "validation"), default="test", help="(default: test)")
    transfer.add_argument("--checkpoint", default="best", help="best, last or step-00000100 (default: best)")
    transfer.add_argument(
        "--out", metavar="FILE", help="FILE.png and FILE.json (default: transfer, beside the first run)"
    )

    analyze = _add(
        commands,
        "analyze",
        _analyze,
        "say which sampled values matter, and draw the run's rows and steps",
        _ANALYZE,
    )
    analyze.add_argument("run_folder", metavar="RUN", help="the run folder")
    analyze.add_argument(
        "--metric",
        metavar="COLUMN",
        help="such as found/patch or best_score/delta/noise (default: found/delta)",
    )
    analyze.add_argument(
        "--table", default="test", help="test, or validation-00000100 and the like (default: test)"
    )

    sweep = _add(
        commands,
        "sweep",
        _sweep,
        "search a study's settings for the best objective, or see to a sweep that was started",
        "WHAT is a study in TOML with the sections [space] and [sweep], or one of: status, the table of "
        "trials; best, the best one; export, its study as TOML; resume, to go on; fetch, to bring one back "
        "from its storage. " + _OVERRIDES,
    )
    sweep.add_argument("what", metavar="WHAT", help="CONFIG.toml, status, best, export, resume or fetch")
    sweep.add_argument("run_folder", metavar="RUN", nargs="?", help="the folder of the sweep; fetch: its URI")
    sweep.add_argument("--trial", metavar="NAME", help="export: this one instead of the best, e.g. 0003")
    sweep.add_argument("--out", metavar="FILE", help="export: where to (default: the terminal)")
    sweep.add_argument("--config", metavar="CONFIG.toml", help="resume: refuse if this is another sweep now")
    sweep.add_argument("--num-trials", type=int, metavar="N", help="resume: so many in all")
    sweep.add_argument("--runs", metavar="FOLDER", help="fetch: the folder that will hold it (default: runs)")

    describe = _add(commands, "describe", _describe, "say what a study is, stage by stage", _OVERRIDES)
    describe.add_argument("config", metavar="CONFIG.toml", help="the study")
    describe.add_argument("--phase", help="only the nodes alive in it: train, validation, test, ...")
    describe.add_argument("--mermaid", action="store_true", help="a Mermaid diagram instead")

    doctor = _add(
        commands,
        "doctor",
        _doctor,
        "say why a patch would not learn: send one through every stage, and follow its gradient back",
        "Exit code 1 if the patch could not learn or not be measured, 0 with warnings at most. " + _OVERRIDES,
    )
    doctor.add_argument("config", metavar="CONFIG.toml", help="the study")
    doctor.add_argument(
        "--rows", type=int, default=16, help="photographs of each split that are looked at (default: 16)"
    )
    return parser


def _add(commands: Any, name: str, run: Any, help: str, epilog: str | None = None) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=help, description=f"{help[0].upper()}{help[1:]}.", epilog=epilog)
    parser.set_defaults(run=run)
    return parser


def _take_overrides(words: list[str]) -> dict[str, Any]:
    """Remove every `--section.name value` (or that of `--name`, `--seed`, `--device`) from the words.

    Values are TOML, or else strings.
    """
    overrides: dict[str, Any] = {}
    i = 0
    while i < len(words):
        name, equals, text = words[i].partition("=")
        if not name.startswith("--") or not ("." in name or name in ("--name", "--seed", "--device")):
            i += 1
            continue
        if not equals and i + 1 == len(words):
            raise ValueError(f"{name}: a value must follow")
        if not equals:
            text = words.pop(i + 1)
        del words[i]
        if name == "--name":
            overrides["name"] = text
            continue
        try:
            overrides[name.removeprefix("--")] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            overrides[name.removeprefix("--")] = text
    return overrides


def _demo(options: argparse.Namespace) -> int:
    from fpatch.demo.main import run_demo

    run_demo(Path(options.runs), quick=options.quick, mlflow=options.mlflow_uri or True, seed=options.seed)
    return 0


def _train(options: argparse.Namespace) -> int:
    from fpatch.parallel import joined
    from fpatch.study import load_study
    from fpatch.training import train

    overrides = options.overrides | ({"log.mlflow": options.mlflow_uri} if options.mlflow_uri else {})
    study = load_study(options.config, overrides)
    with joined(device=study.device) as ranks, progress_bars() as report:
        run = train(study, report)
        if not ranks.rank:
            _say_where(run.folder)
    return 0


def _resume(options: argparse.Namespace) -> int:
    from fpatch.parallel import joined
    from fpatch.runs import Run
    from fpatch.training import resume

    device = Run.open(options.run_folder).read_json("config.json", "device")["device"]
    with joined(device=device) as ranks, progress_bars() as report:
        run = resume(options.run_folder, report)
        if not ranks.rank:
            _say_where(run.folder)
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    from fpatch.conditions import PATCH
    from fpatch.metrics import num_photographs
    from fpatch.rates import of_objects
    from fpatch.run_evaluation import evaluate_run, table_name

    with progress_bars() as report:
        run, rates = evaluate_run(options.run_folder, options.split, options.checkpoint, report)
    title = f"{options.split}, checkpoint {options.checkpoint}"
    console.print(success_table(title, rates))
    table = table_name(options.split, options.checkpoint)
    metric = run.read_json(f"tables/{table}.summary.json")["metric"]
    if (objects := of_objects(run.load_objects(table), metric)) is not None:
        console.print(success_table(f"{title}: every object", objects))
    rate = rates.rates[PATCH]
    if rate.count:
        wished = num_photographs(rate.value, 0.1)
        console.print(f"for an interval of +-5 points: about {wished} photographs ({rate.photographs} here)")
    for name in (f"tables/{table}.csv", f"figures/{table}.png", f"figures/{table}-effects.png"):
        console.print(f"  {run.folder / name}", markup=False, soft_wrap=True)
    return 0


def _score(options: argparse.Namespace) -> int:
    from fpatch.metrics import score_detections

    found = score_detections(options.truth, options.detections, options.iou, options.score)
    console.print(score_table(found, options.iou, options.score))
    return 0


def _replay(options: argparse.Namespace) -> int:
    from fpatch.run_replay import replay_run, replay_step

    if options.step is not None:
        again = replay_step(options.run_folder, options.step)
        _say_environment(again.environment)
        console.print(f"update {again.step}, from the checkpoint of step {again.start}")
        for name, (logged, found) in again.scalars.items():
            mark = "identical" if logged == found or (logged != logged and found != found) else "DIFFERENT"
            line = f"  {name:<32} logged {logged!r}  rerun {found!r}  {mark}"
            console.print(line, markup=False, soft_wrap=True)
        return 0 if again.identical or not options.verify else 1
    with progress_bars() as report:
        result, environment = replay_run(options.run_folder, _read_slice(options.rows), options.table, report)
    _say_environment(environment)
    for row, found in sorted(result.differences.items()):
        console.print(f"row {row}: " + "; ".join(found), markup=False, soft_wrap=True)
    different = len(result.differences)
    if different:
        console.print(f"largest difference of a number: {result.largest:g}")
    console.print(f"rows {len(result.rows)} identical {len(result.rows) - different} different {different}")
    return 1 if different and options.verify else 0


def _say_environment(differences: Sequence[str]) -> None:
    for sentence in differences:
        console.print(f"not the recorded execution: {sentence}", markup=False, soft_wrap=True)


def _read_slice(text: str | None) -> slice | None:
    if text is None:
        return None
    low, colon, high = text.partition(":")
    try:
        first = int(low) if low else 0
        return slice(first, int(high) if high else None) if colon else slice(first, first + 1)
    except ValueError:
        raise ValueError(f"--rows must be A:B or a row number, got {text!r}") from None


def _grid(options: argparse.Namespace) -> int:
    from fpatch.run_evaluation import table_name
    from fpatch.stratified import stratify_run

    axes = [_read_axis(text) for text in options.over]
    if len(dict(axes)) < len(axes):
        raise ValueError("--over: each path may be given once, with all its values")
    with progress_bars() as report:
        run, cells = stratify_run(options.run_folder, dict(axes), options.split, options.checkpoint, report)
    console.print(cells_table(cells))
    name = f"{table_name(options.split, options.checkpoint)}-grid"
    for file in (f"tables/{name}.csv", f"figures/{name}.png", f"figures/{name}-cells.png"):
        console.print(f"  {run.folder / file}", markup=False, soft_wrap=True)
    return 0


def _read_axis(text: str) -> tuple[str, list[float]]:
    """`path=-1,0,1` or `path=-1:1:5`."""
    path, _, values = text.partition("=")
    try:
        if ":" in values:
            low, high, count = values.split(":")
            span, steps = float(high) - float(low), int(count)
            return path, [float(low) + span * i / max(steps - 1, 1) for i in range(steps)]
        words = {"true": 1.0, "false": 0.0}
        return path, [words[v] if v in words else float(v) for v in values.split(",")]
    except ValueError:
        raise ValueError(f"--over must be PATH=-1,0,1 or PATH=LOW:HIGH:COUNT, got {text!r}") from None


def _transfer(options: argparse.Namespace) -> int:
    from fpatch.transfer import save_transfer, transfer_runs

    with progress_bars() as report:
        found = transfer_runs(options.run_folders, options.also, options.split, options.checkpoint, report)
    console.print(transfer_table(found))
    out = Path(options.out or Path(options.run_folders[0]).resolve().parent / "transfer")
    for file in save_transfer(out, found):
        console.print(f"  {file}", markup=False, soft_wrap=True)
    return 0


def _analyze(options: argparse.Namespace) -> int:
    from fpatch import analysis, viz
    from fpatch.analysis.importance import NothingToExplain
    from fpatch.conditions import make_patches
    from fpatch.reopen import open_run

    run, study = open_run(options.run_folder)
    table = run.load_table(options.table)
    metric = options.metric or f"{study.evaluate.metric}/delta"
    first = None
    try:
        result = analysis.permutation_importance(table, metric)
    except NothingToExplain as error:
        console.print(f"no importances: {error}", markup=False, soft_wrap=True)
    else:
        first = result.columns[0].column
        console.print(importance_table(f"{options.table}, {metric}", result))
    page, animation = run.path("figures/scatter.html"), run.path("figures/training.gif")
    pipeline = study.pipeline.at("test")

    def decode(params: "Params") -> "dict[str, Tensor]":
        patches = make_patches(pipeline, params)
        return {name: patch for entries in patches.values() for name, patch in entries.items()}

    photographs = {
        int(i): p for i, p in zip(table["image_id"], table["path"], strict=True) if Path(p).is_file()
    }
    with run.locked():
        analysis.scatter(table, page, x=first, y=metric, images=photographs)
        viz.animate(run.folder, animation, decode)
    for path in (page, animation):
        console.print(f"  {path}", markup=False, soft_wrap=True)
    return 0


def _sweep(options: argparse.Namespace) -> int:
    verbs = {
        "status": (_sweep_status, ()),
        "best": (_sweep_best, ()),
        "export": (_sweep_export, ("trial", "out")),
        "resume": (_sweep_resume, ("config", "num_trials")),
        "fetch": (_sweep_fetch, ("runs",)),
    }
    what = options.what
    if what not in verbs and not Path(what).suffix and not Path(what).exists():
        from fpatch.checks import nearest

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


def _sweep_begin(options: argparse.Namespace) -> int:
    from fpatch import tune

    if options.run_folder is not None:
        raise ValueError(f"fpatch sweep {options.what}: a sweep is one file, got {options.run_folder!r}, too")
    plan = tune.load_plan(options.what, options.overrides)
    with progress_bars(lines="trial ") as report:
        journal = tune.run_plan(plan, report)
    return _say_sweep(journal.folder)


def _sweep_resume(options: argparse.Namespace) -> int:
    from fpatch import tune

    plan = tune.load_plan(options.config, options.overrides) if options.config else None
    with progress_bars(lines="trial ") as report:
        journal = tune.resume_sweep(options.run_folder, report, plan=plan, num_trials=options.num_trials)
    return _say_sweep(journal.folder)


def _sweep_fetch(options: argparse.Namespace) -> int:
    from fpatch import tune

    journal = tune.fetch_sweep(options.run_folder, options.runs or "runs")
    for line in (f"sweep folder: {journal.folder}", f"  fpatch sweep resume {journal.folder}"):
        console.print(line, markup=False, soft_wrap=True)
    return 0


def _say_sweep(folder: Path) -> int:
    from fpatch import tune

    journal = tune.Journal.open(folder)
    console.print(trials_table(tune.read_plan(journal), journal.entries()))
    commands = [f"fpatch sweep best {folder}"]
    if (folder / "hparams").is_dir():
        commands.append(f"tensorboard --logdir {folder / 'hparams'}")
    for line in (f"sweep folder: {folder}", *(f"  {command}" for command in commands)):
        console.print(line, markup=False, soft_wrap=True)
    return 0


def _sweep_status(options: argparse.Namespace) -> int:
    from fpatch import tune

    journal = tune.Journal.open(options.run_folder)
    going, plan = journal.is_held, tune.read_plan(journal)
    console.print(trials_table(plan, journal.entries(), num_rows=None, going=going))
    if not going and any(entry.outcome is None for entry in journal.entries()):
        console.print(f"go on with: fpatch sweep resume {journal.folder}", markup=False, soft_wrap=True)
    return 0


def _sweep_best(options: argparse.Namespace) -> int:
    from fpatch import tune

    journal = tune.Journal.open(options.run_folder)
    plan = tune.read_plan(journal)
    entry = tune.find_entry(journal, plan)
    console.print(settings_table(plan, entry))
    folder = journal.run_folder(entry.trial.name)
    for line in (f"run folder: {folder}", f"  fpatch evaluate {folder}"):
        console.print(line, markup=False, soft_wrap=True)
    return 0


def _sweep_export(options: argparse.Namespace) -> int:
    from fpatch import tune

    text = tune.export_trial(options.run_folder, options.trial)
    if options.out is None:
        print(text, end="")
    else:
        Path(options.out).write_text(text)
        console.print(f"  {options.out}", markup=False, soft_wrap=True)
    return 0


def _describe(options: argparse.Namespace) -> int:
    from fpatch.parts import make_objective
    from fpatch.study import load_study

    loaded = load_study(options.config, options.overrides)
    make_objective(loaded)  # names that nothing writes are wrong here already
    pipeline = loaded.pipeline if options.phase is None else loaded.pipeline.at(options.phase)
    if options.mermaid:
        print(pipeline.mermaid())
        return 0
    console.print(f"[bold]{loaded.name}[/bold], seed {loaded.seed}")
    console.print(pipeline.describe(), markup=False, soft_wrap=True)
    console.print(f"needs in a batch: {', '.join(pipeline.required())}", markup=False)
    weights = ", ".join(f"{w:g} x {n}" for n, w in loaded.objective.weights.items())
    console.print(f"minimizes {weights}; {loaded.optimizer}; {loaded.train}", markup=False, soft_wrap=True)
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from fpatch.doctor import examine
    from fpatch.study import load_study

    diagnosis = examine(load_study(options.config, options.overrides), options.rows)
    if diagnosis.stages:
        console.print(stage_table(diagnosis))
    for finding in diagnosis.findings:
        style = "bold red" if finding.level == "error" else "yellow"
        console.print(f"[{style}]{finding.level}[/{style}]", end=" ")
        console.print(f"{finding.where}: {finding.what}", markup=False, soft_wrap=True)
    if diagnosis.can_learn:
        count = len(diagnosis.findings)
        console.print(f"the patch can learn; {count} warning{'' if count == 1 else 's'}")
    else:
        console.print("the patch could not learn, or not be measured")
    return 0 if diagnosis.can_learn else 1


def _say_where(folder: Path) -> None:
    commands = (f"fpatch evaluate {folder}", f"tensorboard --logdir {folder.parent}")
    for line in (f"run folder: {folder}", *(f"  {command}" for command in commands)):
        console.print(line, markup=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())

"""Commands that measure: evaluate, grid, transfer, score, analyze."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from fpatch.cli.class_tables import NUM_CLASSES, class_table, precision_tables
from fpatch.cli.console import console, progress_bars, say
from fpatch.cli.options import add_command, read_number, take_checkpoint, take_data_root, take_mlflow
from fpatch.cli.tables import cells_table, importance_table, score_table, success_table, transfer_table

if TYPE_CHECKING:
    from torch import Tensor

    from fpatch.core.types import Params
    from fpatch.runs.folder import Run


def add(commands: Any) -> None:
    """Register the commands."""
    for register in (_add_evaluate, _add_grid, _add_transfer, _add_score, _add_analyze):
        register(commands)


def _add_evaluate(commands: Any) -> None:
    evaluate = add_command(
        commands,
        "evaluate",
        _evaluate,
        "measure a run's patch against its controls, on held-out images",
        "Every image of the split is shown with the trained patch, without a patch, and with control patches "
        "(noise, a flat print, the patch's pixels shuffled), on the same samples. The command prints success "
        "rates with intervals. It writes into the run folder: tables/test.csv and .parquet, one row per "
        "image and draw; tables/test.summary.json; figures/test.png and figures/test-effects.png. Settings "
        "of metrics and of [evaluate] are options by their dotted names; the table is named after them.",
        (
            "evaluate runs/20260101-120000-study --checkpoint last",
            "evaluate runs/20260101-120000-study --pipeline.hit.goal stop",
        ),
    )
    evaluate.add_argument("run_folder", metavar="RUN", help="the run folder")
    take_checkpoint(evaluate)
    take_data_root(evaluate)
    take_mlflow(evaluate)


def _add_grid(commands: Any) -> None:
    grid = add_command(
        commands,
        "grid",
        _grid,
        "measure a run's patch in every combination of sampled values",
        "VALUES are numbers: a list -1,0,1 or a range LOW:HIGH:COUNT; true and false are 1 and 0. A PATH is "
        "a column `sample/...` of a table without that prefix. All other values are drawn by "
        "the same keys in every cell. The command writes a table, heat maps of all pairs of axes and images "
        "of the weakest and strongest cells.",
        (
            "grid runs/20260101-120000-study --over camera/exposure/stops=-1:1:5",
            "grid RUN --over camera/exposure/stops=-1,0,1 --over camera/blur/sigma_px=0:2:3",
        ),
    )
    grid.add_argument("run_folder", metavar="RUN", help="the run folder")
    grid.add_argument(
        "--over", metavar="PATH=VALUES", action="append", required=True, help="an axis; may be repeated"
    )
    take_checkpoint(grid)
    take_data_root(grid)


def _add_transfer(commands: Any) -> None:
    transfer = add_command(
        commands,
        "transfer",
        _transfer,
        "measure the patch of every run on the victim of every other run",
        "All runs must use the same images. The command prints a table and writes it as JSON and as a heat "
        "map.",
        (
            "transfer runs/20260101-120000-a runs/20260101-130000-b",
            "transfer runs/*-a runs/*-b --also runs/*-ensemble --out figures/transfer",
        ),
    )
    transfer.add_argument(
        "run_folders", metavar="RUN", nargs="+", help="runs whose patches meet their victims"
    )
    transfer.add_argument(
        "--also", metavar="RUN", nargs="+", default=(), help="runs of which only the patch is measured"
    )
    take_checkpoint(transfer)
    take_data_root(transfer)
    transfer.add_argument(
        "--out", metavar="FILE", help="FILE.png and FILE.json (default: transfer, beside the first run)"
    )


def _add_score(commands: Any) -> None:
    score = add_command(
        commands,
        "score",
        _score,
        "score the detections of any program against ground truth, both in COCO's JSON format",
        "Average precision is COCO's: the best 100 detections per image and class, whatever their score. A "
        "class without objects has none. Objects marked iscrowd do not count.",
        (
            "score truth.json detections.json",
            "score truth.json detections.json --iou 0.75 --score 0.4",
        ),
    )
    score.add_argument("truth", metavar="GT.json", help="images, annotations and categories")
    score.add_argument(
        "detections", metavar="DETECTIONS.json", help="a list of image_id, category_id, bbox, score"
    )
    score.add_argument("--iou", type=float, default=0.5, help="overlap of a match, 0..1 (default: 0.5)")
    score.add_argument(
        "--score", type=float, default=0.5, help="score threshold of the recall, 0..1 (default: 0.5)"
    )


def _add_analyze(commands: Any) -> None:
    analyze = add_command(
        commands,
        "analyze",
        _analyze,
        "rank the sampled values by their importance, and draw the run's rows and steps",
        "A random forest learns the metric from the sampled values (angles, stops and so on) and predicts it "
        "for held-out images. The score is the share of variance that it predicts: if that may be 0, the "
        "importances mean nothing. The importance of a column is the score lost when that column is "
        "shuffled. figures/scatter.html opens in any browser, offline; figures/training.gif shows the "
        "patch at every checkpoint.",
        (
            "analyze runs/20260101-120000-study",
            "analyze runs/20260101-120000-study --metric best_score/delta/noise",
        ),
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
    take_data_root(analyze)


def _evaluate(options: argparse.Namespace) -> int:
    from fpatch.evaluation.conditions import PATCH
    from fpatch.evaluation.rates import of_objects
    from fpatch.metrics import num_photographs
    from fpatch.runs.evaluating import evaluate_run, table_name

    with progress_bars() as on_progress:
        run, rates = evaluate_run(
            options.run_folder,
            options.split,
            options.checkpoint,
            on_progress,
            settings=options.overrides,
            mlflow=options.mlflow_uri,
            data_root=options.data_root,
        )
    table = table_name(options.split, options.checkpoint, options.overrides)
    facts = run.read_json(f"tables/{table}.summary.json")
    given = (f"{name} = {value}" for name, value in options.overrides.items())
    made = f"checkpoint {options.checkpoint} (step {facts['step']})"
    title = escape(", ".join([options.split, made, *given]))
    console.print(success_table(title, rates))
    if (objects := of_objects(run.load_objects(table), facts["metric"])) is not None:
        console.print(success_table(f"{title}: every object", objects))
    _print_classes(facts)
    rate = rates.rates[PATCH]
    if rate.value == rate.value:
        wished = num_photographs(rate.value, 0.1)
        console.print(f"for an interval of +-5 points: about {wished} images ({rate.photographs} here)")
    for name in (f"tables/{table}.csv", f"figures/{table}.png", f"figures/{table}-effects.png"):
        say(f"  {run.folder / name}")
    return 0


def _print_classes(facts: "dict[str, Any]") -> None:
    """Print the parts of a summary by class, of every object if a metric measured them, and the AP."""
    from fpatch.evaluation.by_class import from_json

    objects = facts.get("objects", {})
    classes = objects.get("classes") or facts.get("classes")
    found = from_json(classes, facts.get("goal")) if classes else None
    if found is not None:
        counted = "every object" if objects.get("classes") else "the rows"
        console.print(class_table(f"{counted} by class", found))
    shown = [] if found is None else found.largest(NUM_CLASSES)
    for table in precision_tables(facts["summaries"], shown):
        console.print(table)


def _score(options: argparse.Namespace) -> int:
    from fpatch.metrics import score_detections

    found = score_detections(options.truth, options.detections, options.iou, options.score)
    console.print(score_table(found, options.iou, options.score))
    return 0


def _grid(options: argparse.Namespace) -> int:
    from fpatch.runs.evaluating import table_name
    from fpatch.runs.grid import evaluate_grid_run

    axes = [_read_axis(text) for text in options.over]
    if len(dict(axes)) < len(axes):
        raise ValueError("--over: give each path once, with all its values")
    with progress_bars() as on_progress:
        run, cells = evaluate_grid_run(
            options.run_folder, dict(axes), options.split, options.checkpoint, on_progress,
            data_root=options.data_root,
        )  # fmt: skip
    console.print(cells_table(cells))
    say(f"checkpoint {options.checkpoint} (step {run.checkpoint_step(options.checkpoint)})")
    name = f"{table_name(options.split, options.checkpoint)}-grid"
    for file in (f"tables/{name}.csv", f"figures/{name}.png", f"figures/{name}-cells.png"):
        say(f"  {run.folder / file}")
    return 0


def _read_axis(text: str) -> tuple[str, list[float]]:
    """Read `path=-1,0,1` or `path=-1:1:5`."""
    path, _, values = text.partition("=")
    try:
        if ":" in values:
            low, high, count = values.split(":")
            span, steps = float(high) - float(low), int(count)
            return path, [float(low) + span * i / max(steps - 1, 1) for i in range(steps)]
        return path, [read_number(value) for value in values.split(",")]
    except ValueError:
        raise ValueError(f"--over must be PATH=-1,0,1 or PATH=LOW:HIGH:COUNT, got {text!r}") from None


def _measured_step(run: "Run", table: str) -> str:
    """Return the checkpoint that a table measured and its step, if the folder says it."""
    name = f"tables/{table}.summary.json"
    if not (run.folder / name).is_file():
        return ""
    facts = run.read_json(name, "checkpoint", "step")
    return f" of checkpoint {facts['checkpoint']} (step {facts['step']})"


def _transfer(options: argparse.Namespace) -> int:
    from fpatch.runs.transfer import save_transfer, transfer_runs

    with progress_bars() as on_progress:
        found = transfer_runs(
            options.run_folders, options.also, options.split, options.checkpoint, on_progress,
            data_root=options.data_root,
        )  # fmt: skip
    console.print(transfer_table(found))
    out = Path(options.out or Path(options.run_folders[0]).resolve().parent / "transfer")
    for file in save_transfer(out, found):
        say(f"  {file}")
    return 0


def _analyze(options: argparse.Namespace) -> int:
    from fpatch import analysis, viz
    from fpatch.analysis.importance import NothingToExplain
    from fpatch.evaluation.conditions import make_patches
    from fpatch.runs.checks import warn_of_inputs
    from fpatch.runs.opening import open_run

    run, study = open_run(options.run_folder, data_root=options.data_root)
    table = run.load_table(options.table)
    warn_of_inputs(run, study, table=options.table)
    metric = options.metric or f"{study.evaluate.metric}/delta"
    first = None
    try:
        result = analysis.permutation_importance(table, metric)
    except NothingToExplain as error:
        say(f"no importances: {error}")
    else:
        first = result.columns[0].column
        console.print(
            importance_table(f"{options.table}{_measured_step(run, options.table)}, {metric}", result)
        )
    page, animation = run.path("figures/scatter.html"), run.path("figures/training.gif")
    pipeline = study.pipeline.at("test")

    def decode(params: "Params") -> "dict[str, Tensor]":
        patches = make_patches(pipeline, params)
        return {name: patch for entries in patches.values() for name, patch in entries.items()}

    root = Path(study.data.root or Path(study.data.placements).parent)
    paths = {int(i): root / p for i, p in zip(table["image_id"], table["path"], strict=True)}
    images = {i: str(path) for i, path in paths.items() if path.is_file()}
    with run.locked():
        analysis.scatter(table, page, x=first, y=metric, images=images)
        viz.animate(run.folder, animation, decode)
    for path in (page, animation):
        say(f"  {path}")
    return 0

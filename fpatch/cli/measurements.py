"""What is measured of runs, and of detections of other programs."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fpatch.cli.console import console, progress_bars, say
from fpatch.cli.options import add_command, read_number
from fpatch.cli.tables import cells_table, importance_table, score_table, success_table, transfer_table

if TYPE_CHECKING:
    from torch import Tensor

    from fpatch.core.types import Params

_ANALYZE = (
    "How to read it: a forest learns the metric from what was sampled (angles, stops, ...) and is asked "
    "about photographs that it has not seen. The score is the share of the variance that it predicts: if "
    "that may be 0, the importances mean nothing. An importance is what of the score is lost when that "
    "column is shuffled. figures/scatter.html opens in any browser, offline; figures/training.gif shows "
    "the patch at every checkpoint."
)


def add(commands: Any) -> None:
    """Give the command line these commands."""
    evaluate = add_command(
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
    _take_checkpoint(evaluate)

    score = add_command(
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

    grid = add_command(
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
    _take_checkpoint(grid)

    transfer = add_command(
        commands, "transfer", _transfer, "measure the patch of every run on the victim of every other"
    )
    transfer.add_argument(
        "run_folders", metavar="RUN", nargs="+", help="runs whose patches meet their victims"
    )
    transfer.add_argument(
        "--also", metavar="RUN", nargs="+", default=(), help="runs of which only the patch is measured"
    )
    _take_checkpoint(transfer)
    transfer.add_argument(
        "--out", metavar="FILE", help="FILE.png and FILE.json (default: transfer, beside the first run)"
    )

    analyze = add_command(
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


def _take_checkpoint(command: argparse.ArgumentParser) -> None:
    command.add_argument("--split", choices=("test", "validation"), default="test", help="(default: test)")
    command.add_argument("--checkpoint", default="best", help="best, last or step-00000100 (default: best)")


def _evaluate(options: argparse.Namespace) -> int:
    from fpatch.evaluation.conditions import PATCH
    from fpatch.evaluation.rates import of_objects
    from fpatch.metrics import num_photographs
    from fpatch.runs.evaluating import evaluate_run, table_name

    with progress_bars() as on_progress:
        run, rates = evaluate_run(options.run_folder, options.split, options.checkpoint, on_progress)
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
        say(f"  {run.folder / name}")
    return 0


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
        raise ValueError("--over: each path may be given once, with all its values")
    with progress_bars() as on_progress:
        run, cells = evaluate_grid_run(
            options.run_folder, dict(axes), options.split, options.checkpoint, on_progress
        )
    console.print(cells_table(cells))
    name = f"{table_name(options.split, options.checkpoint)}-grid"
    for file in (f"tables/{name}.csv", f"figures/{name}.png", f"figures/{name}-cells.png"):
        say(f"  {run.folder / file}")
    return 0


def _read_axis(text: str) -> tuple[str, list[float]]:
    """`path=-1,0,1` or `path=-1:1:5`."""
    path, _, values = text.partition("=")
    try:
        if ":" in values:
            low, high, count = values.split(":")
            span, steps = float(high) - float(low), int(count)
            return path, [float(low) + span * i / max(steps - 1, 1) for i in range(steps)]
        return path, [read_number(value) for value in values.split(",")]
    except ValueError:
        raise ValueError(f"--over must be PATH=-1,0,1 or PATH=LOW:HIGH:COUNT, got {text!r}") from None


def _transfer(options: argparse.Namespace) -> int:
    from fpatch.runs.transfer import save_transfer, transfer_runs

    with progress_bars() as on_progress:
        found = transfer_runs(
            options.run_folders, options.also, options.split, options.checkpoint, on_progress
        )
    console.print(transfer_table(found))
    out = Path(options.out or Path(options.run_folders[0]).resolve().parent / "transfer")
    for file in save_transfer(out, found):
        say(f"  {file}")
    return 0


def _analyze(options: argparse.Namespace) -> int:
    from fpatch import analysis, viz
    from fpatch.analysis.importance import NothingToExplain
    from fpatch.evaluation.conditions import make_patches
    from fpatch.runs.opening import open_run

    run, study = open_run(options.run_folder)
    table = run.load_table(options.table)
    metric = options.metric or f"{study.evaluate.metric}/delta"
    first = None
    try:
        result = analysis.permutation_importance(table, metric)
    except NothingToExplain as error:
        say(f"no importances: {error}")
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
        say(f"  {path}")
    return 0

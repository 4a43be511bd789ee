"""Commands that measure: evaluate, grid, transfer, score, analyze."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fpatch.cli.answers import Answer, describe_cells
from fpatch.cli.class_tables import NUM_CLASSES, class_table, precision_tables
from fpatch.cli.console import console, progress_bars, say
from fpatch.cli.grid_tables import cells_table
from fpatch.cli.options import (
    MEASURED,
    add_command,
    number,
    read_axis,
    take_checkpoint,
    take_data_root,
    take_device,
    take_mlflow,
    take_portable,
)
from fpatch.cli.tables import importance_table, rates_of, score_table, transfer_table
from fpatch.core.files import check_writable

if TYPE_CHECKING:
    from torch import Tensor

    from fpatch.core.types import Params
    from fpatch.runs.folder import Run
    from fpatch.study.study import Study


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
        "image and draw; tables/test.summary.json; figures/test.png, test-effects.png and test-classes.png. "
        f"{MEASURED}",
        (
            "evaluate runs/20260101-120000-study --checkpoint last",
            "evaluate runs/20260101-120000-study --pipeline.hit.goal stop",
            "evaluate RUN --data.placements night.csv --data.objects night-objects.csv",
        ),
    )
    evaluate.add_argument("run_folder", metavar="RUN", help="the run folder")
    take_checkpoint(evaluate)
    take_portable(evaluate)
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
        f"of the weakest and strongest cells. {MEASURED}",
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
    take_portable(grid)
    take_data_root(grid)


def _add_transfer(commands: Any) -> None:
    transfer = add_command(
        commands,
        "transfer",
        _transfer,
        "measure the patch of every run on the victim of every other run",
        "All runs must use the same images. The command prints a table and writes it as JSON and as a heat "
        f"map. {MEASURED}",
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
    take_portable(transfer)
    take_data_root(transfer)
    transfer.add_argument(
        "--out",
        metavar="FILE",
        help="FILE.png and FILE.json (default: beside the first run, named after the runs)",
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
    score.add_argument("--iou", type=number, default=0.5, help="overlap of a match, 0..1 (default: 0.5)")
    score.add_argument(
        "--score", type=number, default=0.5, help="score threshold of the recall, 0..1 (default: 0.5)"
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
        "shuffled. figures/scatter.html (with another table or metric in its name) opens in any browser, "
        "offline; figures/training.gif shows the patch at every checkpoint. Without a patch, it "
        "explains what is right.",
        (
            "analyze runs/20260101-120000-study",
            "analyze runs/20260101-120000-study --metric best_score/delta/noise",
        ),
    )
    analyze.add_argument("run_folder", metavar="RUN", help="the run folder")
    analyze.add_argument(
        "--metric",
        metavar="COLUMN",
        help="such as found/patch or best_score/delta/noise (default: found/delta, or found/none)",
    )
    analyze.add_argument(
        "--table", default="test", help="test, or validation-00000100 and the like (default: test)"
    )
    take_data_root(analyze)
    take_device(analyze)


def _evaluate(options: argparse.Namespace) -> Answer:
    from fpatch.evaluation.rates import of_objects
    from fpatch.metrics import num_photographs
    from fpatch.runs.evaluating import evaluate_run
    from fpatch.runs.naming import table_name
    from fpatch.runs.places import relative_settings

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
    table = table_name(options.split, options.checkpoint, relative_settings(options.overrides, run.folder))
    facts = run.read_json(f"tables/{table}.summary.json")
    given = (f"{name} = {value}" for name, value in options.overrides.items())
    made = f"checkpoint {options.checkpoint} (step {facts['step']})"
    title = ", ".join([options.split, made, *given])
    console.print(rates_of(title, rates))
    if (objects := of_objects(run.load_objects(table), facts["metric"])) is not None:
        console.print(rates_of(f"{title}: every object", objects))
    _print_classes(facts)
    rate = rates.main
    if rate.value == rate.value:
        wished = num_photographs(rate.value, 0.1)
        console.print(f"for an interval of +-5 points: about {wished} images ({rate.photographs} here)")
    figures = (f"figures/{table}{end}.png" for end in ("", "-effects", "-classes"))
    drawn = [name for name in figures if (run.folder / name).is_file()]
    files = _say_files(run, f"tables/{table}.csv", *drawn)
    return Answer(0, {"run": str(run.folder), "table": table, **facts, "files": files})


def _say_files(run: "Run", *names: str) -> list[str]:
    """Print the paths of files of a run, and return them."""
    files = [str(run.folder / name) for name in names]
    for file in files:
        say(f"  {file}")
    return files


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


def _score(options: argparse.Namespace) -> Answer:
    from fpatch.metrics import score_detections

    found = score_detections(options.truth, options.detections, options.iou, options.score)
    console.print(score_table(found, options.iou, options.score))
    return Answer(0, {"iou": options.iou, "score": options.score, **found._asdict()})


def _grid(options: argparse.Namespace) -> Answer:
    from fpatch.runs.grid import evaluate_grid_run
    from fpatch.runs.naming import grid_name
    from fpatch.runs.places import relative_settings

    axes = [read_axis(text) for text in options.over]
    if len(dict(axes)) < len(axes):
        raise ValueError("--over: give each path once, with all its values")
    with progress_bars() as on_progress:
        run, cells = evaluate_grid_run(
            options.run_folder,
            dict(axes),
            options.split,
            options.checkpoint,
            on_progress,
            settings=options.overrides,
            data_root=options.data_root,
        )
    console.print(cells_table(cells))
    settings = relative_settings(options.overrides, run.folder)
    name = grid_name(options.split, options.checkpoint, dict(axes), settings)
    made = {"checkpoint": options.checkpoint, "step": run.checkpoint_step(options.checkpoint)}
    given = (f"{name} = {value}" for name, value in options.overrides.items())
    say(", ".join([f"checkpoint {made['checkpoint']} (step {made['step']})", *given]))
    files = _say_files(run, f"tables/{name}.csv", f"figures/{name}.png", f"figures/{name}-cells.png")
    facts = {"run": str(run.folder), "table": name, **made, "settings": settings}
    return Answer(0, {**facts, "cells": describe_cells(cells), "files": files})


def _measured_step(run: "Run", table: str) -> str:
    """Return the checkpoint that a table measured and its step, if the folder says it."""
    name = f"tables/{table}.summary.json"
    if not (run.folder / name).is_file():
        return ""
    facts = run.read_json(name, "checkpoint", "step")
    return f" of checkpoint {facts['checkpoint']} (step {facts['step']})"


def _transfer(options: argparse.Namespace) -> Answer:
    from fpatch.runs.naming import transfer_name
    from fpatch.runs.places import relative_settings
    from fpatch.runs.transfer import save_transfer, transfer_facts, transfer_runs

    if options.out:
        check_writable("--out", Path(options.out).parent)
    with progress_bars() as on_progress:
        found = transfer_runs(
            options.run_folders,
            options.also,
            options.split,
            options.checkpoint,
            on_progress,
            settings=options.overrides,
            data_root=options.data_root,
        )
    console.print(transfer_table(found))
    folders = [Path(folder).resolve() for folder in (*options.run_folders, *options.also)]
    settings = relative_settings(options.overrides, folders[0])
    name = transfer_name([f.name for f in folders], options.split, options.checkpoint, settings)
    files = [str(file) for file in save_transfer(options.out or folders[0].parent / name, found)]
    for file in files:
        say(f"  {file}")
    facts = {"split": options.split, "checkpoint": options.checkpoint, "settings": settings}
    return Answer(0, {**facts, "goal": found.goal, "victims": transfer_facts(found), "files": files})


def _analyze(options: argparse.Namespace) -> Answer:
    from fpatch.runs.opening import open_run

    run, study = open_run(options.run_folder, data_root=options.data_root, device=options.device)
    with run.locked():
        return _analyze_run(options, run, study)


def _analyze_run(options: argparse.Namespace, run: "Run", study: "Study") -> Answer:
    from fpatch import analysis, viz
    from fpatch.analysis.importance import NothingToExplain
    from fpatch.evaluation.conditions import make_patches
    from fpatch.runs.checks import warn_of_inputs
    from fpatch.runs.naming import scatter_name
    from fpatch.runs.opening import study_of_table

    table = run.load_table(options.table)
    where = {"data_root": options.data_root, "device": options.device}
    measured = study_of_table(run, study, options.table, **where)
    warn_of_inputs(run, study, table=options.table, own_data=measured.own_data)
    usual = f"{study.evaluate.metric}/{'delta' if study.makes_patch else 'none'}"
    metric = options.metric or usual
    first = result = None
    try:
        result = analysis.permutation_importance(table, metric)
    except NothingToExplain as error:
        say(f"no importances: {error}")
    else:
        first = result.columns[0].column
        console.print(
            importance_table(f"{options.table}{_measured_step(run, options.table)}, {metric}", result)
        )
    page = f"figures/{scatter_name(options.table, None if metric == usual else metric)}.html"
    pipeline = study.pipeline.at("test")

    def decode(params: "Params") -> "dict[str, Tensor]":
        patches = make_patches(pipeline, params)
        return {name: patch for entries in patches.values() for name, patch in entries.items()}

    data = measured.study.data
    root = Path(data.root or Path(data.placements).parent)
    paths = {int(i): root / p for i, p in zip(table["image_id"], table["path"], strict=True)}
    images = {i: str(path) for i, path in paths.items() if path.is_file()}
    analysis.scatter(table, run.path(page), x=first, y=metric, images=images)
    files = [page, *(["figures/training.gif"] if study.makes_patch else [])]
    for file in files[1:]:
        viz.animate(run.folder, run.path(file), decode)
    facts = {"run": str(run.folder), "table": options.table, "metric": metric, "importances": result}
    return Answer(0, {**facts, "files": _say_files(run, *files)})

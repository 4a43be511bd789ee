"""Evaluate a run: the images of a split, under the keys and controls of its study.

`fpatch.evaluation` measures a pipeline on a data set; this module opens the run and its study for it.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

from fpatch.core.display import shown
from fpatch.core.plain import plain_torch
from fpatch.core.progress import Progress
from fpatch.core.types import Params
from fpatch.data import TargetSet
from fpatch.evaluation.by_class import by_class
from fpatch.evaluation.evaluation import Evaluation
from fpatch.evaluation.means import scalars
from fpatch.evaluation.rates import Success, object_metric, of_objects, success
from fpatch.graph.pipeline import Pipeline
from fpatch.runs.checkpoints import read_header_of
from fpatch.runs.checks import warn_of_inputs
from fpatch.runs.figures import (
    REPORT_PX,
    log_stage_views,
    make_figure,
    picture_classes,
    picture_effects,
    view_first_block,
)
from fpatch.runs.folder import Run
from fpatch.runs.logging import open_study_log, own_log
from fpatch.runs.measuring import measured_study
from fpatch.runs.naming import table_name, warn_of_replaced
from fpatch.runs.opening import open_run
from fpatch.runs.places import suggest_data_root
from fpatch.runs.record import images_trained_on
from fpatch.runs.tables import record_files
from fpatch.runtime.device import describe_device, deterministic_algorithms
from fpatch.runtime.portable import portable_kernels
from fpatch.study.room import warn_of_crowded
from fpatch.study.setup import set_up
from fpatch.study.splits import check_metric, evaluate_split, split_name
from fpatch.study.study import Study

_logger = logging.getLogger(__name__)


@plain_torch(grad=True)
def evaluate_run(
    folder: str | Path,
    split: Literal["test", "validation"] = "test",
    checkpoint: str = "best",
    on_progress: Progress | None = None,
    resources: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    *,
    mlflow: str | None = None,
    data_root: str | Path | None = None,
) -> tuple[Run, Success]:
    """Measure a run's patch on held-out images, and add the table, figures and rates to its folder.

    A run without a patch is measured by what its network gets right.

    Args:
        folder: The run folder.
        split: The split of the study's data.
        checkpoint: The name of a checkpoint.
        on_progress: Called with the progress; None: bars or lines on standard error.
        resources: Live objects by "path/setting" of the pipeline.
        settings: Other settings of this evaluation, by dotted name: those of `evaluate` and `data`, of nodes
            that do not train the patch, such as a metric, `seed` and `device`. The table is named after them.
        mlflow: A tracking URI for the records; None: the recorded one, if this user has sent records there.
        data_root: The folder of the data, if they are not where they were: tables, images and weights are
            looked for in it by the last parts of their recorded paths, and compared with the record.

    Raises:
        ValueError: If a setting is wrong, or the patch was trained with it.

    Example:
        >>> import tempfile
        >>> from fpatch import evaluate_run, train
        >>> from fpatch.demo.tiny import tiny_study
        >>> run = train(tiny_study(tempfile.mkdtemp()))
        >>> run, rates = evaluate_run(run.folder)
        >>> rates.clean.value, rates.rates["noise"].value, rates.rates["patch"].value
        (1.0, 0.0, 1.0)
        >>> sorted(path.name for path in (run.folder / "figures").iterdir())
        ['test-classes.png', 'test-effects.png', 'test.png']
    """
    opened = load_trained(folder, split, checkpoint, resources, settings, data_root)
    with Run.open(folder).locked(), opened as trained, shown(on_progress) as on_progress:
        run, study, dataset = trained.run, trained.study, trained.dataset
        metric, table = study.evaluate.metric, table_name(split, checkpoint, trained.settings)
        warn_of_replaced(run, table, trained.facts(checkpoint))
        last_step = run.checkpoint_step("last")
        result = evaluate_split(study, trained.params, dataset, split, on_progress)
        rates = success(result.table, metric)  # a metric without rates leaves no table
        execution = study.execution(study.evaluate.block)
        run.save_evaluation(table, result, execution, **trained.facts(checkpoint))
        names = dataset.class_names
        summary = summarize(metric, checkpoint, trained.step, result, names, trained.settings)
        run.write_json(f"tables/{table}.summary.json", summary)
        log = open_study_log(own_log(study, run, mlflow), run, last_step)
        try:
            log.revisit(trained.step)  # the numbers stand at the step of the patch
            log.scalars(trained.step, {f"{table}/{n}": v for n, v in scalars(result, metric).items()})
            views = view_first_block(study, trained.params, dataset, result.table, split)
            log_stage_views(study, trained.step, views, dataset.class_names, log, table)
            figures = [f"figures/{table}.png"]
            first = make_figure(study, views, dataset.class_names, panel_px=REPORT_PX)
            run.write_image(figures[0], first)
            if rates.rates:
                figures.append(f"figures/{table}-effects.png")
                figure = picture_effects(study, trained.params, dataset, result.table, split)
                run.write_image(figures[1], figure)
                log.images(trained.step, {f"{table}/largest and smallest effects": figure})
            figures += picture_classes(run, study.name, table, summary)
            record_files(run.folder, table, [f"tables/{table}.summary.json", *figures])
            log.artifacts([f"tables/{table}.parquet", f"tables/{table}.csv", *figures])
            log.commit(last_step)
        finally:
            log.close(finished=last_step == study.train.num_steps or None)
    return run, rates


class Trained(NamedTuple):
    """A run opened for measuring.

    Attributes:
        run: The run folder.
        study: The study of the run.
        pipeline: The pipeline of the phase with the name of the split.
        params: The patch parameters of a checkpoint.
        step: The updates that led to the checkpoint.
        dataset: The images of the split.
        differences: Differences of the inputs from the record of the run, a sentence each.
        settings: The settings that are not those of the run, as a table records them.
        data: The digests of the files that these settings name.
    """

    run: Run
    study: Study
    pipeline: Pipeline
    params: Params
    step: int
    dataset: TargetSet
    differences: list[str]
    settings: dict[str, Any]
    data: dict[str, str]

    def facts(self, checkpoint: str) -> dict[str, Any]:
        """Return the facts of a table that this patch is measured in, for its manifest."""
        state = read_header_of(self.run.folder, checkpoint).state
        patch = {"checkpoint": checkpoint, "step": self.step, "state": state}
        patch |= {"settings": self.settings} if self.settings else {}
        patch |= {"data": self.data} if self.data else {}
        return {**patch, "num_draws": self.study.evaluate.num_draws, "differences": self.differences}


@contextmanager
def load_trained(
    folder: str | Path,
    split: Literal["test", "validation"] = "test",
    checkpoint: str = "best",
    resources: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    data_root: str | Path | None = None,
) -> Iterator[Trained]:
    """Load a run's patch, and the images and the pipeline to measure it with.

    Within the block torch uses deterministic algorithms if the study sets `train.deterministic`, and portable
    kernels with `evaluate.portable`. Differences between the inputs and the record of the run are said.

    Args:
        folder: The run folder.
        split: The split of the study's data.
        checkpoint: The name of a checkpoint.
        resources: Live objects by "path/setting" of the pipeline.
        settings: As for `evaluate_run`.
        data_root: As for `evaluate_run`.

    Example:
        >>> import tempfile
        >>> from fpatch import train
        >>> from fpatch.demo.tiny import tiny_study
        >>> from fpatch.runs.evaluating import load_trained
        >>> run = train(tiny_study(tempfile.mkdtemp(), {"data.validation": False}))
        >>> with load_trained(run.folder) as trained:
        ...     trained.step, trained.params["tag"].shape, len(trained.dataset.image_ids)
        (4, torch.Size([3, 6, 6]), 4)
    """
    run, study = open_run(folder, resources, data_root)
    measured = measured_study(study, settings, run.folder, resources, data_root)
    trained_on, study = study.data.train, measured.study
    name = split_name(study, split)
    with suggest_data_root():
        parts = set_up(study, only=name if measured.own_data else None)
    check_metric(study, split)
    warn_of_crowded(study, parts, (split,))
    state, _ = run.load_checkpoint(checkpoint, parts.initial)
    dataset = parts.dataset.split(name)
    said = warn_of_inputs(run, study, parts.dataset, [name], own_data=measured.own_data)
    if any(setting.startswith("data.") for setting in settings or {}):
        images = images_trained_on(run.folder, trained_on, dataset)
        _warn_of_trained(study.trained, images, len(dataset.image_ids))
    data = measured.describe(parts.dataset)
    pipeline, recorded = study.placed.at(split), measured.settings
    kernels = portable_kernels(study.evaluate.portable, describe_device(study.place))
    with deterministic_algorithms(study.train.deterministic), kernels:
        params = state.all_params
        yield Trained(run, study, pipeline.freeze(params), params, state.step, dataset, said, recorded, data)


def _warn_of_trained(trained: str, images: Sequence[Path], count: int) -> None:
    """Warn about images that are measured and that the patch, or the network, was trained on."""
    if images:
        what = (
            f"{len(images)} of {count} images are images that the {trained} was trained on, first {images[0]}"
        )
        _logger.warning("%s: its rates are no measure of other images", what)


def summarize(
    metric: str,
    checkpoint: str,
    step: int,
    result: Evaluation,
    class_names: Sequence[str],
    settings: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the content of a summary: rates of rows, of objects and of classes, and summaries of metrics."""
    facts: dict[str, Any] = {"checkpoint": checkpoint, "step": step, "metric": metric}
    facts |= {"settings": dict(settings)} if settings else {}
    facts |= success(result.table, metric).to_json()
    if (classes := by_class(result.table, metric, class_names)) is not None:
        facts["classes"] = classes.to_json()
    if (objects := of_objects(result.objects, metric)) is not None:
        facts["objects"] = objects.to_json()
        found = by_class(result.objects, object_metric(metric), class_names)
        facts["objects"] |= {} if found is None else {"classes": found.to_json()}
    return facts | {"summaries": result.summaries}

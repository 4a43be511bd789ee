"""Replay a run: evaluated rows from their logged samples, and training updates from checkpoints.

`fpatch.evaluation.replaying` replays tables of a pipeline; this module opens the run and its study for it.
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from fpatch.core.plain import plain_torch
from fpatch.core.progress import Progress, silent
from fpatch.core.tree import to_device
from fpatch.core.types import Values
from fpatch.evaluation.replaying import Replay, replay
from fpatch.graph.drawable import check_drawable
from fpatch.graph.samples import override
from fpatch.optim.loop import fit
from fpatch.optim.step import StepInfo, TrainState
from fpatch.runs.checkpoints import check_checkpoint, state_digest
from fpatch.runs.checks import warn_of_inputs
from fpatch.runs.files import is_sealed_run
from fpatch.runs.folder import Run
from fpatch.runs.locks import RunError
from fpatch.runs.logging import logged_scalars, step_scalars
from fpatch.runs.opening import open_run, recorded_execution, study_of_table
from fpatch.runs.places import suggest_data_root
from fpatch.runs.weights import frozen_pipeline
from fpatch.study.setup import make_loader, make_training_step, set_up
from fpatch.study.splits import split_name

_logger = logging.getLogger(__name__)


class StepReplay(NamedTuple):
    """The result of rerunning a training update.

    Attributes:
        step: The update.
        start: The step of the checkpoint at which the rerun started.
        scalars: The logged and the rerun value of every scalar of the step.
        info: The samples and terms of the batch.
        environment: Differences from the recorded execution, a sentence each.
        states: Whether the state after the update is that of a checkpoint, for each checkpoint of its step.
    """

    step: int
    start: int
    scalars: dict[str, tuple[float, float]]
    info: StepInfo
    environment: list[str]
    states: dict[str, bool]

    @property
    def identical(self) -> bool:
        """True if every value and every state equals the recorded one, bit for bit."""
        return all(repr(a) == repr(b) for a, b in self.scalars.values()) and all(self.states.values())


@plain_torch(grad=True)
def replay_run(
    folder: str | Path,
    rows: slice | None = None,
    table: str = "test",
    on_progress: Progress = silent,
    resources: Mapping[str, Any] | None = None,
    *,
    edits: Mapping[str, float | Tensor] | None = None,
    keep: Sequence[str] = (),
    on_block: Callable[[np.ndarray, Mapping[str, Values]], None] | None = None,
    data_root: str | Path | None = None,
    device: str | None = None,
) -> tuple[Replay, list[str]]:
    """Rerun evaluated rows from their logged samples, in the recorded execution.

    Args:
        folder: The run folder.
        rows: The rows of the table; None: all.
        table: The name of the table.
        on_progress: Called with the progress.
        resources: Live objects by "path/setting" of the pipeline.
        edits: Values that replace the sampled ones, by path, as in `fpatch.override`.
        keep: Names of further values for `on_block`, such as "image".
        on_block: Called after every block with its row indices and its results under every condition.
        data_root: As for `evaluate_run`.
        device: The device to rerun on, such as "cpu"; None: the recorded one.

    Returns:
        The replay, and the differences from the recorded execution, a sentence each.

    Example:
        >>> import tempfile
        >>> from fpatch import evaluate_run, replay_run, train
        >>> from fpatch.demo.tiny import tiny_study
        >>> run = train(tiny_study(tempfile.mkdtemp()))
        >>> _ = evaluate_run(run.folder)
        >>> again, differences = replay_run(run.folder, slice(0, 2))
        >>> again.rows.tolist(), again.differences, differences
        ([0, 1], {}, [])
    """
    run, study = open_run(folder, resources, data_root, device)
    logged, recorded = run.load_table(table), run.load_execution(table)
    measured = study_of_table(run, study, table, resources, data_root, device)
    study = measured.study
    with suggest_data_root():
        split, every = table.partition("-")[0], study.data.open()
    dataset = every.split(split_name(study, split))
    chosen = range(len(logged["image_id"]))[rows or slice(None)]
    if not chosen:
        raise ValueError(
            f"replay --rows: the table has rows 0 to {len(logged['image_id']) - 1}, got none of them"
        )
    check_drawable(study.placed.at(split), edits or {})
    _say_skipped(logged, chosen, edits or {})
    warn_of_inputs(run, study, every, [split_name(study, split)], table, own_data=measured.own_data)
    with recorded_execution(recorded, study) as differences:
        result = replay(
            frozen_pipeline(run, study, table, split),
            to_device(run.load_conditions(table), study.place),
            dataset,
            logged,
            chosen,
            block=recorded.block,
            edit=(lambda sample: override(sample, edits)) if edits else None,
            keep=keep,
            on_block=on_block,
            progress=lambda done, total: on_progress("replaying", done, total, ""),
        )
    return result, differences


def _say_skipped(logged: Mapping[str, np.ndarray], chosen: range, edits: Mapping[str, Any]) -> None:
    """Say of how many rows an edit changes nothing, since they skip its stage."""
    for path in edits:
        parents = [path.rsplit("/", i)[0] for i in range(1, path.count("/") + 1)]
        on = next((f"{node}/on" for node in parents if f"sample/{node}/on" in logged), None)
        if on is None or on in edits:
            continue
        if skipped := int((~logged[f"sample/{on}"][chosen].astype(bool)).sum()):
            _logger.warning(
                "replay: %s changes nothing in %d of %d rows, which skip its stage; to run it there too, set "
                "%s to 1", path, skipped, len(chosen), on,
            )  # fmt: skip


@plain_torch(grad=True)
def replay_step(
    folder: str | Path,
    number: int,
    resources: Mapping[str, Any] | None = None,
    *,
    data_root: str | Path | None = None,
    device: str | None = None,
) -> StepReplay:
    """Rerun a training update from the nearest checkpoint before it; compare its scalars and checkpoints.

    Args:
        folder: The run folder.
        number: The update, from 1 to the last logged one.
        resources: Live objects by "path/setting" of the pipeline.
        data_root: As for `evaluate_run`.
        device: The device to rerun on, such as "cpu"; None: the recorded one.

    Raises:
        ValueError: If the update has no record.
    """
    run, study = open_run(folder, resources, data_root, device)
    with suggest_data_root():
        parts = set_up(study)
    warn_of_inputs(run, study, parts.dataset, [study.data.train])
    logged = logged_scalars(run, number)
    start = max((s for s in run.checkpoint_steps() if s < number), default=None)
    if start is None:
        raise RunError(f"replay --step: {run.folder} has no checkpoint before update {number}; restore one")
    state, _ = run.load_checkpoint(f"step-{start:08d}", parts.initial)
    processes, at_start = run.processes_at(number), run.processes_at(start + 1)
    step = make_training_step(study, parts, processes=processes)
    with recorded_execution(run.execution, study) as differences:
        if at_start != processes:
            differences.append(
                f"processes: {at_start} made update {start + 1}, {processes} made update {number}; restore "
                "the checkpoint between them"
            )
        *_, (after, info) = fit(state, step, make_loader(study, parts), number)
    found = step_scalars(info)
    scalars = {n: (logged.get(n, math.nan), found[n]) for n in found if n in logged or not _is_newer(run, n)}
    return StepReplay(number, start, scalars, info, differences, _compare_states(run, after))


def _is_newer(run: Run, name: str) -> bool:
    """Return whether a version that recorded no digests did not record a scalar."""
    return name.startswith("train/rows/") and not is_sealed_run(run.folder)


def _compare_states(run: Run, state: TrainState) -> dict[str, bool]:
    """Compare a state with the checkpoints of its step; those of older versions record no digest."""
    found = {}
    for name in (f"step-{state.step:08d}", "last", "best"):
        if run.has_checkpoint(name):
            header = check_checkpoint(run.folder, name)
            if header.step == state.step and header.state is not None:
                found[name] = header.state == state_digest(state)
    return found

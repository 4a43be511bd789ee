"""Verify a run: every file, every input, and a table that is drawn, measured and counted again."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import optree
import torch

from fpatch import random
from fpatch.core.plain import plain_torch
from fpatch.core.progress import Progress, silent
from fpatch.core.schema import flatten
from fpatch.core.tree import to_device
from fpatch.core.types import Values
from fpatch.data import TargetSet
from fpatch.evaluation.columns import goal_columns, metric_names, object_columns
from fpatch.evaluation.conditions import PATCH, Patches, make_conditions, make_controls
from fpatch.evaluation.evaluation import Evaluation
from fpatch.evaluation.growing import Growing
from fpatch.evaluation.means import scalars
from fpatch.evaluation.replaying import Replay, replay, same_bits
from fpatch.evaluation.summaries import compute_states, init_states, update_states
from fpatch.log.records import read_scalars
from fpatch.log.values import to_json, to_scalar
from fpatch.runs.checkpoints import read_header_of
from fpatch.runs.checks import input_differences, unproven_inputs
from fpatch.runs.claims import OF_GRIDS, check_claims
from fpatch.runs.evaluating import summarize
from fpatch.runs.files import read_json
from fpatch.runs.folder import Run
from fpatch.runs.locks import RunError
from fpatch.runs.manifest import Files, check_files
from fpatch.runs.naming import table_name, validation_step
from fpatch.runs.opening import open_run, recorded_execution, study_of_table
from fpatch.runs.places import suggest_data_root
from fpatch.runs.redrawing import axes_of, compare_drawn, expected_rows, missing_rows
from fpatch.runs.tables import encode_table, load_manifest
from fpatch.runs.weights import find_checkpoint, frozen_pipeline
from fpatch.study.splits import evaluation_key, split_name
from fpatch.study.study import Study

OnBlock = Callable[[np.ndarray, Mapping[str, Values]], None]
"""Called after every block with its row indices and its results under every condition."""


class Verification(NamedTuple):
    """The result of a verification.

    Attributes:
        files: The files that equal their digest, those that nothing is compared with, and the damage.
        differences: A sentence for each difference of the folder, its inputs or the table as a whole.
        replay: The rows that were rerun, with their differences; None if none could be.
        unproven: A sentence for each claim that was not checked.
        environment: Differences from the recorded execution, a sentence each.
    """

    files: Files
    differences: list[str]
    replay: Replay | None
    unproven: list[str]
    environment: list[str]

    @property
    def is_proved(self) -> bool:
        """True if everything that was checked is as recorded, and rows were rerun."""
        return self.replay is not None and not (self.differences or self.replay.differences)


@plain_torch(grad=True)
def verify_run(
    folder: str | Path,
    rows: slice | None = None,
    table: str = "test",
    on_progress: Progress = silent,
    resources: Mapping[str, Any] | None = None,
    *,
    on_block: OnBlock | None = None,
    data_root: str | Path | None = None,
    device: str | None = None,
) -> Verification:
    """Check every file and input of a run, and draw, measure and count a table again.

    Args:
        folder: The run folder.
        rows: The rows to rerun; None: all, and then objects, rates and summaries are computed again, too.
        table: The name of the table; the files of others are compared with their digests.
        on_progress: Called with the progress.
        resources: Live objects by "path/setting" of the pipeline.
        on_block: Called after every block of rows, with the images among its results.
        data_root: As for `evaluate_run`.
        device: As for `replay_run`.

    Raises:
        RunError: If the folder is no run folder.

    Example:
        >>> import tempfile
        >>> from fpatch import evaluate_run, train
        >>> from fpatch.demo.tiny import tiny_study
        >>> from fpatch.runs.verifying import verify_run
        >>> run = train(tiny_study(tempfile.mkdtemp()))
        >>> _ = evaluate_run(run.folder)
        >>> verify_run(run.folder).is_proved
        True
        >>> _ = (run.folder / "patch/tag.png").write_bytes(b"")
        >>> verify_run(run.folder).differences
        ['patch/tag.png is not as it was written']
    """
    run = Run.open(folder)
    if not any((run.folder / f"tables/{table}.{suffix}").is_file() for suffix in ("json", "parquet")):
        run.load_table(table)  # raises
    files = check_files(run)
    differences, unproven, environment = list(files.damage), [], []
    result = None
    try:
        unproven += unproven_inputs(run)
        _, study = open_run(folder, resources, data_root, device)
        measured = study_of_table(run, study, table, resources, data_root, device)
        with suggest_data_root():
            dataset = measured.study.data.open()
            is_same = measured.study.data == study.data
            compared = None if measured.own_data else dataset if is_same else study.data.open()
        said = input_differences(run, study, compared)
        said += _changed_files(load_manifest(run.folder, table).get("data", {}), measured.describe(dataset))
        differences += [s for s in said if s not in differences]
        if measured.own_data:
            unproven.append(f"the data of the training, which {table} does not read")
        study = measured.study
        execution = run.load_execution(table)
        if execution.block < 1:
            raise RunError(f"tables/{table}.json: execution.block must be at least 1, got {execution.block}")
        with recorded_execution(execution, study) as environment:
            checked = _Table(run, study, dataset, table, execution.block)
            result = checked.rerun(rows, on_progress, on_block)
            differences += checked.differences
            unproven += checked.unproven
    except _NoRows:
        raise
    except (ValueError, OSError, ImportError, KeyError, TypeError, IndexError) as error:
        said = "; ".join([str(error), *getattr(error, "__notes__", ())])
        differences.append(f"table {table!r} cannot be rerun: {said}")
    if others := [name for name in _table_names(run) if name != table]:
        unproven.append(f"rows of {', '.join(others)}: give one as --table")
    return Verification(files, differences, result, unproven, environment)


def _changed_files(recorded: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    """Compare the files that the settings of a table name with their record."""
    changed = [name for name in {**recorded, **found} if recorded.get(name) != found.get(name)]
    return [f"{name}: it is not what the table was made from" for name in changed]


class _NoRows(ValueError):
    """Rows that the table does not have."""


class _Table:
    """A table that is computed again.

    Attributes:
        differences: A sentence for each difference of the table as a whole.
        unproven: A sentence for each claim that was not checked.
    """

    def __init__(self, run: Run, study: Study, dataset: TargetSet, name: str, block: int) -> None:
        self._run, self._study, self._name, self._block = run, study, name, block
        self._split = name.partition("-")[0]
        self._dataset = dataset.split(split_name(study, self._split))
        self._pipeline = frozen_pipeline(run, study, name, self._split)
        self._key = evaluation_key(study, self._split)
        self._logged, self._manifest = run.load_table(name), load_manifest(run.folder, name)
        self._is_grid = "grid" in self._manifest or bool(axes_of(self._logged))
        self.differences: list[str] = []
        said = self._manifest.get("differences", [])
        self.unproven = [f"the inputs of {name}, which differed as it was made: {what}" for what in said]

    def rerun(self, rows: slice | None, on_progress: Progress, on_block: OnBlock | None) -> Replay:
        """Compare the patches shown, then draw and measure the rows, then count them."""
        total = len(self._logged["image_id"])
        chosen = range(total)[rows or slice(None)]
        if not chosen:
            raise _NoRows(f"replay --rows: the table has rows 0 to {total - 1}, got none of them")
        conditions = to_device(self._run.load_conditions(self._name), self._study.place)
        self._compare_conditions(conditions)
        objects = Growing(total)
        states = {c: init_states(self._pipeline) for c in conditions}

        def gather(picked: np.ndarray, results: Mapping[str, Values]) -> None:
            batch = {n: torch.from_numpy(self._logged[n][picked]) for n in ("image_id", "draw")}
            found = object_columns(results, batch, metric_names(self._pipeline))
            counted, names = len(found.get("image_id", ())), self._dataset.class_names
            objects.add(found | goal_columns(self._pipeline, names, counted, objects=True))
            for c, values in results.items():
                states[c] = update_states(self._pipeline, states[c], values["seen"], values["seen_finite"])
            if on_block is not None:
                on_block(picked, results)

        result = replay(
            self._pipeline, conditions, self._dataset, self._logged, chosen, block=self._block,
            keep=("image",) if on_block else (), on_block=gather,
            progress=lambda done, all_: on_progress("replaying", done, all_, ""),
        )  # fmt: skip
        result = self._compare_drawn(result, chosen, conditions)
        if len(chosen) == total and len(next(iter(result.columns.values()), ())) == total:
            self._count(
                objects.columns(),
                {c: compute_states(self._pipeline, s, self._dataset.class_names) for c, s in states.items()},
            )
        else:
            self.unproven.append("objects, rates and summaries: not all rows were rerun")
        return result

    def _compare_drawn(self, result: Replay, chosen: Sequence[int], conditions: dict[str, Any]) -> Replay:
        """Add the differences of what was drawn to those of the results."""
        num_draws = self._manifest.get("num_draws") or self._study.evaluate.num_draws
        grid = self._manifest.get("grid") or axes_of(self._logged)
        if lacking := missing_rows(self._logged, self._dataset, num_draws, grid):
            self.differences += lacking
            self.unproven.append("keys and samples: the rows cannot be told apart")
            return result
        expected = expected_rows(self._dataset, num_draws, grid)
        found, whole = compare_drawn(
            self._logged, expected, chosen, self._pipeline, self._dataset, self._key, conditions, self._block
        )
        self.differences += whole
        known = {"image_id", "draw", "path", "photograph", "sample", "key/0", "key/1", *result.columns}
        strange = [n for n in self._logged if n not in known and not n.startswith(("sample/", "grid/"))]
        self.differences += [f"the table has a column {n!r} that no evaluation makes" for n in strange]
        differences = dict(result.differences)
        for row, sentences in found.items():
            names = {s.partition(":")[0] for s in differences.get(row, [])}
            new = [s for s in sentences if s.partition(":")[0] not in names]
            differences[row] = [*differences.get(row, []), *new]
        return result._replace(differences=differences)

    def _compare_conditions(self, conditions: Mapping[str, Patches]) -> None:
        """Compare the patches shown with those of the checkpoint, and the controls with their key."""
        key, pictures = random.fold_in(self._key, "control"), self._study.evaluate.pictures
        name = find_checkpoint(self._run, self._name)
        if name is None:
            self.unproven.append(f"the patch of {self._name}: no checkpoint of its state is kept")
            made = dict(conditions)
            if PATCH in conditions:
                patches = conditions[PATCH]
                made = {PATCH: patches, "none": patches, **make_controls(patches, key, pictures)}
        else:
            is_of = read_header_of(self._run.folder, name).step
            if (step := self._manifest.get("step", is_of)) != is_of:
                self.differences.append(
                    f"tables/{self._name}.json: step is {step}, its patch is that of step {is_of}"
                )
            params = to_device(self._run.load_params(name), self._study.place)
            made = make_conditions(self._pipeline, params, key, pictures)
        expected = [c for c in made if c in OF_GRIDS or not self._is_grid]
        found = check_claims(self._name, self._manifest, self._study, name, conditions, expected)
        self.differences += found.differences
        self.unproven += found.unproven
        for condition, shown in conditions.items():
            if condition not in made:
                self.differences.append(f"{self._name}: no study makes the condition {condition!r}")
                continue
            paths, leaves, _ = optree.tree_flatten_with_path(shown)  # type: ignore[arg-type]
            for path, leaf in zip(paths, leaves, strict=True):
                other: Any = made[condition]
                for part in path:
                    other = other[part]
                if leaf.shape != other.shape or not same_bits(*(_flat(t) for t in (leaf, other))).all():
                    shown_as = "/".join(map(str, (condition, *path)))
                    why = "its key" if name is None else f"checkpoint {name!r}"
                    self.differences.append(f"tables/{self._name}.patches: {shown_as} is not that of {why}")

    def _count(self, found: Mapping[str, np.ndarray], summaries: Mapping[str, Any]) -> None:
        """Compare objects, rates, summaries and the CSV files with those of the rerun."""
        logged = self._run.load_objects(self._name)
        if not self._is_grid:
            self.differences += _compare_columns(f"tables/{self._name}.objects", logged, found)
        for prefix, columns in (("", self._logged), ("objects.", logged)):
            self.differences += self._compare_csv(prefix, columns) if columns else []
        if self._is_grid:
            return
        result = Evaluation(dict(self._logged), {}, {}, dict(logged), {}, dict(summaries))
        self._compare_summary(result)
        step = validation_step(self._name)
        prefix = self._name if step is None else "validation"
        recorded = read_scalars(self._run.folder, f"{prefix}/", step)
        for name, value in scalars(result, self._study.evaluate.metric).items():
            was, now = recorded.get(f"{prefix}/{name}"), to_scalar(name, value)
            if repr(was) != repr(now):
                self.differences.append(f"records.jsonl: {prefix}/{name} is {was}, {now} is counted")

    def _compare_csv(self, prefix: str, columns: Mapping[str, np.ndarray]) -> list[str]:
        file = f"tables/{self._name}.{prefix}csv"
        path = self._run.folder / file
        if not path.is_file() or path.read_bytes() == encode_table(prefix, columns)[f"{prefix}csv"]:
            return []
        return [f"{file} does not hold the numbers of {file.removesuffix('csv')}parquet"]

    def _compare_summary(self, result: Evaluation) -> None:
        file = f"tables/{self._name}.summary.json"
        path = self._run.folder / file
        if not path.is_file():
            return
        recorded, metric = read_json(path), self._study.evaluate.metric
        checkpoint = str(recorded.get("checkpoint"))
        settings = self._manifest.get("settings", {})
        if table_name(self._split, str(checkpoint), settings) != self._name:
            self.differences.append(f"{file}: checkpoint is {checkpoint!r}, which has another table")
        else:
            step = self._manifest.get("step")
            if step is None and self._run.has_checkpoint(checkpoint):
                step = read_header_of(self._run.folder, checkpoint).step
            step = recorded.get("step", 0) if step is None else step
            names = self._dataset.class_names
            made = summarize(metric, checkpoint, step, result, names, settings)
            expected = json.loads(to_json(made))
            for name, was, now in _different(recorded, expected):
                self.differences.append(f"{file}: {name} is {was}, {now} is counted")


def _different(recorded: Mapping[str, Any], expected: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Yield the names under which two JSON objects differ, with both values; -0 is not 0."""
    was, now = flatten(recorded), flatten(expected)
    for name in {**was, **now}:
        if repr(was.get(name)) != repr(now.get(name)):
            yield name, was.get(name), now.get(name)


def _compare_columns(
    file: str, logged: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray]
) -> Iterator[str]:
    for name in sorted({*logged, *found}):
        if name not in logged or name not in found:
            yield f"{file}: the column {name!r} is {'missing' if name in found else 'not measured'}"
        elif len(logged[name]) != len(found[name]):
            yield f"{file}: {name} has {len(logged[name])} entries, {len(found[name])} are measured"
        elif len(bad := np.flatnonzero(~same_bits(logged[name], found[name]))):
            was, now = logged[name][bad[0]], found[name][bad[0]]
            yield f"{file}: {name} of entry {bad[0]}: {was} was logged, {now} came out"


def _flat(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().cpu().contiguous().flatten().numpy()


def _table_names(run: Run) -> list[str]:
    return sorted(p.stem for p in (run.folder / "tables").glob("*.parquet") if "." not in p.stem)

"""A study: everything that a run is made from, in one frozen value, and what can be done with it.

`train`, `resume`, `evaluate_run` and `replay_run` are the ready-made callers of the loop, the evaluation and
the replay: they add the run folder, the log, checkpoints and progress.
"""

import dataclasses
import hashlib
import json
import logging
import math
import tomllib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from fpatch import __version__, random
from fpatch.checks import check_number, nearest
from fpatch.config import build
from fpatch.data import Loader, TargetSet, image_file, targets
from fpatch.device import check_device, describe_device, deterministic_algorithms, find_device
from fpatch.evaluation import (
    Diagnosis,
    Evaluation,
    Execution,
    check_control_name,
    diagnose,
    evaluate,
    make_patches,
    metric_names,
)
from fpatch.graph import Pipeline
from fpatch.infer.lighter import lighter
from fpatch.log import Log, open_log
from fpatch.loop import Step, StepInfo, TrainState, find_bad_row, fit, make_state, make_step
from fpatch.objective import COMPILE_MODES, Objective, check_terms
from fpatch.optim import Optimizer, make_optimizer
from fpatch.parallel import ALONE, Ranks, joined
from fpatch.rates import Success, effects, of_objects, scalars, standard_errors, success
from fpatch.rerun import Replay, logged_rows, replay
from fpatch.resource import Resource, file_digest, live
from fpatch.runs import Run, RunError, describe_environment, state_bytes
from fpatch.schema import decode, encode, flatten
from fpatch.tree import place
from fpatch.types import Params
from fpatch.viz.side_by_side import Panel, side_by_side

_PICTURED = 3
"""Rows at either end of the effects of which there is an image."""

_logger = logging.getLogger(__name__)

Report = Callable[[str, int, int, str], None]
"""Told of progress: the task, how much is done, of how much, and a note."""


def _silent(task: str, done: int, total: int, note: str = "") -> None:
    """Report nothing."""


@dataclass(frozen=True)
class Data:
    """The photographs; see `fpatch.data.targets`.

    Attributes:
        placements: CSV of where patches go.
        objects: CSV of the objects in the photographs, or None.
        size: (height, width) that every photograph is letterboxed to.
        root: Folder that image paths start from; None: that of each CSV.
        patches: Names to use; None: all in the CSV.
        classes: Names by label; None: as they appear.
        outside_frac: How far corners may lie outside a photograph, as a fraction of its side.
        resident: Keep decoded photographs in memory ("host") or on the device ("device"), or decode at every
            use ("disk").
        train: Split to train on.
        validation: Split that chooses the best checkpoint; None (false in TOML): no validation, and the last
            checkpoint is the best.
        test: Split held out for `fpatch evaluate`.
    """

    placements: str
    size: tuple[int, int]
    objects: str | None = None
    root: str | None = None
    patches: tuple[str, ...] | None = None
    classes: tuple[str, ...] | None = None
    outside_frac: float = 0.0
    resident: Literal["device", "host", "disk"] = "host"
    train: str = "train"
    validation: str | None = "validation"
    test: str = "test"

    def open(self) -> TargetSet:
        """Read the CSV files."""
        return targets(
            self.placements,
            self.objects,
            size=self.size,
            root=self.root,
            patches=self.patches,
            classes=self.classes,
            outside_frac=self.outside_frac,
            resident=self.resident,
        )

    def pinned(self, root: Path) -> "Data":
        """The same with absolute paths; relative ones start at `root`."""
        paths = {n: getattr(self, n) for n in ("placements", "objects", "root")}
        found = {n: str((root / Path(p).expanduser()).resolve()) for n, p in paths.items() if p is not None}
        return dataclasses.replace(self, **found)


@dataclass(frozen=True)
class Goal:
    """What is minimized.

    Attributes:
        weights: Weight of each loss term, by name.
        transform: How the gradient is taken; see `fpatch.objective.value_and_grad`.
    """

    weights: Mapping[str, float]
    transform: Literal["autograd", "func"] = "autograd"


@dataclass(frozen=True)
class Train:
    """How long, and in what pieces.

    Attributes:
        num_steps: Updates.
        batch_size: Rows per update.
        micro_batch: Rows held in memory at a time, whose gradients add up to that of the update; None: all.
        rho: Distance that a sharpness-aware step looks uphill, in a second pass; 0: none. See
            `fpatch.loop.make_step`.
        compile: Compile steps: true, or a mode of `torch.compile`; see `fpatch.objective.compiled`.
            Evaluations and replays of rows run uncompiled, always.
        precision: Of the victims, while training; see `fpatch.infer.lighter`.
        channels_last: Layout of the victims, while training.
        recompute: Keep less of what the victims compute, and compute it again in the backward.
        deterministic: Only operations that give the same bits every time, in evaluations and replays too:
            slower on a GPU, and nothing new on a CPU. See `fpatch.device.deterministic_algorithms`.
        replace: Draw photographs with replacement instead of by epochs.
        checkpoint_every: Steps between numbered checkpoints, which `replay --step` starts from.
    """

    num_steps: int = 500
    batch_size: int = 16
    micro_batch: int | None = None
    rho: float = 0.0
    compile: bool | str = False
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    channels_last: bool = False
    recompute: bool = False
    deterministic: bool = False
    replace: bool = False
    checkpoint_every: int = 50

    def __post_init__(self) -> None:
        check_number("train.num_steps", self.num_steps, 1)
        check_number("train.batch_size", self.batch_size, 1)
        if self.micro_batch is not None:
            check_number("train.micro_batch", self.micro_batch, 1)
        check_number("train.rho", self.rho, 0.0)
        check_number("train.checkpoint_every", self.checkpoint_every, 1)
        if self.compile not in (False, True, *COMPILE_MODES):
            raise ValueError(
                f"train.compile must be true, false or one of {COMPILE_MODES}, got {self.compile!r}"
            )


@dataclass(frozen=True)
class Evaluate:
    """How the patch is measured.

    Attributes:
        every: Steps between evaluations on the validation split.
        num_draws: Samples per photograph.
        block: Rows that run together, one condition per block.
        metric: The boolean metric whose failure is a success of the patch.
        best: The scalar on validation rows that picks the best checkpoint (higher is better).
        score: Detections below it are not drawn in figures.
        controls: Further benign prints by name: image files, stretched to every patch.
    """

    every: int = 100
    num_draws: int = 1
    block: int = 16
    metric: str = "found"
    best: str = "success/patch"
    score: float = 0.5
    controls: Mapping[str, str | Resource] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_number("evaluate.every", self.every, 1)
        check_number("evaluate.num_draws", self.num_draws, 1)
        check_number("evaluate.block", self.block, 1)
        for name in self.controls:
            check_control_name("evaluate.controls", name)

    def pinned(self, root: Path) -> "Evaluate":
        """The same with the digests of the controls' files; relative paths start at `root`."""
        found = {
            n: (Resource(image_file.name, c) if isinstance(c, str) else c).pinned(root)
            for n, c in self.controls.items()
        }
        return dataclasses.replace(self, controls=found)

    @property
    def pictures(self) -> dict[str, torch.Tensor]:
        """The images of the controls, [3, h, w] in 0..1."""
        made = {n: image_file(c) if isinstance(c, str) else c for n, c in self.controls.items()}
        return {name: live(control) for name, control in made.items()}


@dataclass(frozen=True)
class Logging:
    """Where records go; `records.jsonl` in the run folder is always written.

    Attributes:
        runs: Folder that holds run folders.
        tensorboard: Write event files.
        mlflow: Tracking URI; true: a local SQLite file beside the runs; false: none.
        experiment: Name of the experiment in MLflow.
        profile_steps: Steps recorded by torch.profiler, from the third on, for TensorBoard's profile tab.
    """

    runs: str = "runs"
    tensorboard: bool = True
    mlflow: bool | str = True
    experiment: str = "fpatch"
    profile_steps: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.mlflow, str) and "://" not in self.mlflow:
            form = "sqlite:///FILE or http://HOST:PORT"
            raise ValueError(f"log.mlflow must be true, false, or like {form}, got {self.mlflow!r}")
        if "://" in self.runs:
            raise ValueError(
                f"log.runs must be a folder, local or on a network file system, got {self.runs!r}; object "
                "stores are not supported: mount the bucket, or copy finished runs there"
            )
        check_number("log.profile_steps", self.profile_steps, 0)


@dataclass(frozen=True)
class Study:
    """All that a run is made from.

    Attributes:
        name: Of the run folder.
        data: The photographs.
        pipeline: The stages, for all phases.
        objective: What is minimized.
        seed: Of the root key.
        device: Where it runs: "cpu", "cuda" or one GPU such as "cuda:1"; "auto" is a GPU if there is one.
            Samples are drawn on the host, and are the same on all.
        optimizer: How the patch moves.
        train: How long.
        evaluate: How it is measured.
        log: Where records go.
    """

    name: str
    data: Data
    pipeline: Pipeline
    objective: Goal
    seed: int = 0
    device: str = "auto"
    optimizer: Optimizer = field(default_factory=Optimizer)
    train: Train = field(default_factory=Train)
    evaluate: Evaluate = field(default_factory=Evaluate)
    log: Logging = field(default_factory=Logging)

    def __post_init__(self) -> None:
        if not self.name or self.name != Path(self.name).name:
            raise ValueError(f"name must be usable as the name of a folder, got {self.name!r}")
        check_device("device", self.device)
        taken = [name for name in ("compile", "recompute") if getattr(self.train, name)]
        if taken and self.objective.transform == "func":
            raise ValueError(
                f'train.{taken[0]} differentiates by plain autograd; leave out objective.transform = "func"'
            )

    @cached_property
    def place(self) -> torch.device:
        """The device that it runs on here.

        Raises:
            ValueError: If it asks for a GPU that is not there.
        """
        return find_device(self.device)

    @cached_property
    def placed(self) -> Pipeline:
        """The pipeline with its networks where the study runs."""
        return self.pipeline if self.place.type == "cpu" else self.pipeline.to(self.place)

    def execution(self, block: int) -> Execution:
        """How it is run here, so many rows together."""
        return Execution.current(block, describe_device(self.place))

    @property
    def config(self) -> dict[str, Any]:
        """JSON values from which `study_from_config` makes the same study."""
        sections = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {n: v.config if isinstance(v, Pipeline) else encode(v) for n, v in sections.items()}


def load_study(
    path: str | Path, overrides: Mapping[str, Any] | None = None, resources: Mapping[str, Any] | None = None
) -> Study:
    """Read a TOML file; relative paths in it start at its folder.

    Args:
        path: `[data]`, `[pipeline.NAME]`, `[objective]`, `[optimizer]`, `[train]`, `[evaluate]`, `[log]`.
        overrides: Values by dotted name, `{"optimizer.learning_rate": 0.1, "pipeline.exposure.stops.low":
            -2}`.
        resources: Live objects by "path/setting" of the pipeline.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: With file, dotted name, value and what was expected.
    """
    path = Path(path)
    raw = read_toml(path)
    try:
        study = study_from_config(raw, path.parent.resolve(), resources)
        if overrides:
            study = vary(study, overrides, resources)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return study


def read_toml(path: Path) -> dict[str, Any]:
    """The content of a config file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not TOML.
    """
    if not path.is_file():
        what = "is a folder; give the TOML file in it" if path.is_dir() else "no such config file"
        raise FileNotFoundError(f"{path}: {what}")
    try:
        return tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid TOML: {error}") from error


def study_from_config(
    config: Mapping[str, Any], root: Path, resources: Mapping[str, Any] | None = None
) -> Study:
    """The study that a config describes.

    Args:
        config: As in TOML, or `Study.config`.
        root: Folder that relative paths start at.
        resources: Live objects by "path/setting" of the pipeline.

    Raises:
        ValueError: With the dotted name, the value and what was expected.
    """
    fields = [f.name for f in dataclasses.fields(Study)]
    for name in config:
        if name not in fields:
            raise ValueError(f"unknown section {name!r}; {nearest(name, fields)}")
    for name in ("data", "pipeline", "objective"):
        if name not in config:
            raise ValueError(f"the section [{name}] is required")
    sections = {
        "name": str, "seed": int, "device": str, "data": Data, "objective": Goal, "optimizer": Optimizer,
        "train": Train, "evaluate": Evaluate, "log": Logging,
    }  # fmt: skip
    decoded = {n: decode(kind, config[n], n) for n, kind in sections.items() if n in config}
    decoded.setdefault("name", "study")
    decoded["data"] = decoded["data"].pinned(root)
    if "evaluate" in decoded:
        decoded["evaluate"] = decoded["evaluate"].pinned(root)
    made = build(_pin(config["pipeline"], root), resources)
    return Study(pipeline=made, **decoded)


def vary(study: Study, settings: Mapping[str, Any], resources: Mapping[str, Any] | None = None) -> Study:
    """The same study with other settings.

    Args:
        study: What stays.
        settings: Values by dotted name; `.low` and `.high` address a range.
        resources: Live objects by "path/setting" of the pipeline.

    Raises:
        ValueError: With the dotted name, the value and what was expected.
    """
    config = study.config | {"pipeline": study.pipeline.given_config}
    for name, value in settings.items():
        _assign(config, name, value)
    return study_from_config(config, Path.cwd(), resources)


def _pin(config: Any, root: Path) -> Any:
    """Resources with absolute paths and digests."""
    if isinstance(config, Mapping) and isinstance(config.get("loader"), str):
        return encode(decode(Resource, config, "resource").pinned(root))
    return {n: _pin(v, root) for n, v in config.items()} if isinstance(config, Mapping) else config


def _assign(config: dict[str, Any], name: str, value: Any) -> None:
    """Set a value by dotted name; `.low` and `.high` address a range."""
    target: Any = config
    *parents, last = name.split(".")
    for parent in parents:
        if not isinstance(target, dict) or parent not in target:
            known = target if isinstance(target, dict) else ()
            raise ValueError(f"--{name}: there is no {parent!r}; {nearest(parent, known)}")
        target = target[parent]
    if isinstance(target, list) and len(target) == 2 and last in ("low", "high"):
        target[("low", "high").index(last)] = value
    elif isinstance(target, dict):
        target[last] = value
        if last == "weights" and "loader" in target:
            target["sha256"] = None  # that of the file before
    else:
        raise ValueError(f"--{name}: {'.'.join(parents)} is {target!r}, which has no {last!r}")


# -- training ----------------------------------------------------------------------------------------------


class Parts(NamedTuple):
    """What a study is turned into to be run."""

    dataset: TargetSet
    objective: Objective
    optimizer: Any
    initial: TrainState


def make_parts(study: Study, shared: Parts | None = None) -> Parts:
    """Open the data, and make the objective, the optimizer and the state before the first step.

    Args:
        study: What is to be run.
        shared: Those of a study of the same data and pipeline, which are not opened and loaded once more.

    Raises:
        ValueError: For anything that would only show later: an empty split, a term that is not [b].
    """
    dataset = study.data.open() if shared is None else shared.dataset
    for split in (study.data.train, study.data.validation, study.data.test):
        if split is not None:
            dataset.split(split)
    if shared is None:
        objective = make_objective(study)
    else:
        objective = Objective(shared.objective.pipeline, study.objective.weights)
    num_photographs = len(dataset.split(study.data.train).image_ids)
    epoch = None if study.train.replace else Fraction(num_photographs, study.train.batch_size)
    optimizer = make_optimizer(study.optimizer, study.train.num_steps, epoch)
    initial = make_state(objective, optimizer, random.key(study.seed), study.place)
    _check_names(study, dataset)
    return Parts(dataset, objective, optimizer, initial)


def make_objective(study: Study) -> Objective:
    """What a study minimizes.

    Raises:
        ValueError: If a weight is for no term of the pipeline.
    """
    pipeline = study.placed.at("train")
    elsewhere = {t: path for path, n in study.pipeline.items() for t in n.terms if path not in pipeline}
    for name in study.objective.weights:
        if name in elsewhere and name not in pipeline.terms:
            phases = " and ".join(sorted(study.pipeline[elsewhere[name]].phases or ()))
            raise ValueError(
                f"objective.weights: the loss term {name!r} is written by {elsewhere[name]!r}, which runs in "
                f"{phases} only; leave out its phases, or add 'train' to them"
            )
    t = study.train
    return Objective(lighter(pipeline, t.precision, t.channels_last, t.recompute), study.objective.weights)


def _check_names(study: Study, dataset: TargetSet) -> None:
    made = [n for path in study.pipeline.parameterizations for n in study.pipeline[path].stage.config.names]
    if missing := [n for n in dataset.names if n not in made]:
        raise ValueError(
            f"data: the placements ask for the patch {missing[0]!r}, which the pipeline does not make; "
            f"{nearest(missing[0], made)} (or leave it out by data.patches)"
        )
    if tuple(made) != dataset.names:
        raise ValueError(
            f"data.patches {list(dataset.names)} and the patches of the pipeline {made} must be the same, in "
            "one order: quad_patch counts them"
        )
    for path, n in study.pipeline.items():
        names = getattr(n.stage.config, "names", dataset.names)
        if n.stage.definition.fill is not None and names != dataset.names:
            raise ValueError(
                f"pipeline.{path}.names {names} must be the patches of the data {dataset.names}, in that "
                "order; leave it out to have them filled in"
            )


class Measured(NamedTuple):
    """What a validation during training has found.

    Attributes:
        step: Updates made.
        scalars: As they stand in the log, by name.
        errors: Standard errors of them, where they are known.
    """

    step: int
    scalars: dict[str, float]
    errors: dict[str, float]


Training = Generator[Measured | None, bool | None, None]
"""Training that pauses after every validation, before the state is saved; sent True, it ends there as if that
had been the last step. It also pauses, with None, wherever its steps do."""

Steps = Callable[[TrainState, Loader, int], Iterator[tuple[TrainState, StepInfo] | None]]
"""Who takes the steps of a training, as `fit` would: state, loader, number of steps -> the state after each
step and what there is to see of it; None: not yet, ask again."""


def rehearse(study: Study) -> tuple[Parts, dict[str, float]]:
    """Train and validate on a few photographs, and leave nothing.

    Returns:
        The study's parts, and the scalars that a validation would log; none without validation.

    Raises:
        ValueError: For anything wrong in the study.
    """
    with deterministic_algorithms(study.train.deterministic):
        parts = make_parts(study)
        return parts, _rehearse(study, parts)


def train_in(
    folder: str | Path,
    study: Study,
    start: TrainState | None = None,
    until: int | None = None,
    report: Report = _silent,
    *,
    parts: Parts | None = None,
    steps: Steps | None = None,
    ranks: Ranks = ALONE,
) -> Training:
    """Train in a folder of one's own choosing, or go on with what was begun there, pausing at validations.

    Args:
        folder: A run folder; it is made if absent.
        study: What to train; if the folder is there already, the one that it was made from.
        start: The state to begin with; None: the study's own.
        until: Updates after which to end; None: `train.num_steps`, which schedules count on in any case.
        report: Told of progress.
        parts: Those of the study, where they are there already.
        steps: Who takes the steps; None: this study alone, by `fit`.
        ranks: The processes that train together, each of which calls this. Process 0 writes the folder and
            pauses; the others take part in its steps until they are all done, or it ends.

    Raises:
        RunError: As for `resume`.
    """
    parts = parts or make_parts(study)
    digests = _data_digests(study, parts.dataset)
    run = Run(folder)
    if not ranks.rank and not (run.folder / "config.json").is_file():
        environment = describe_environment(study.seed, study.execution(0)) | {"data": digests}
        Run.create_at(folder, study.config, environment | {"processes": ranks.size})
    ranks.check_same("the data", json.dumps(digests).encode())  # and now the folder is there for all
    run = Run.open(folder)
    _check_data(run, digests)
    with nullcontext() if ranks.rank else run.locked(), _recreated(run.execution, study):
        state, facts, resume_step = start or parts.initial, {}, None
        if run.has_checkpoint("last"):
            state, facts = run.load_checkpoint("last", parts.initial)
            resume_step = state.step
        elif (run.folder / "records.jsonl").exists():
            resume_step = state.step
        if ranks.rank:
            _follow(study, parts, state, ranks, until)
        else:
            yield from _train(
                study, parts, run, state, facts, resume_step, report, ranks, until=until, steps=steps
            )


def train(study: Study, report: Report = _silent) -> Run:
    """Train, and leave a run folder.

    Started by torchrun, or in the workers of Ray Train, all processes train one patch together, and process 0
    writes the folder; see `fpatch.parallel`.

    Returns:
        The run, with `last`, `best` and numbered checkpoints.

    Raises:
        ValueError: For anything wrong in the study, before the folder is made; and if a loss is not finite,
            with the term, the row and its sample, after the state before it was saved.
        ConnectionError: If another process of the run has ended.
    """
    with joined(device=study.device) as ranks, deterministic_algorithms(study.train.deterministic):
        ranks.check_same("the study", json.dumps(study.config).encode())
        parts = make_parts(study)
        _loader(study, parts, ranks)  # refuses a batch that is too small for all
        _rehearse(study, parts)
        if ranks.rank:
            run = Run(ranks.tell(""))
            _follow(study, parts, parts.initial, ranks)
            return run
        environment = describe_environment(study.seed, study.execution(0))
        environment |= {"data": _data_digests(study, parts.dataset), "processes": ranks.size}
        run = Run.create(study.log.runs, study.name, study.config, environment)
        ranks.tell(str(run.folder))
        with run.locked():
            _finish(_train(study, parts, run, parts.initial, {}, None, report, ranks))
    return run


def resume(folder: str | Path, report: Report = _silent, resources: Mapping[str, Any] | None = None) -> Run:
    """Go on with a run that was stopped, from its last checkpoint; its patch will be the uninterrupted one's.

    Raises:
        RunError: If the folder is incomplete, of another version, or held by another process, or if the data
            are not those that it was started with.
    """
    run, study = open_run(folder, resources)
    with joined(device=study.device) as ranks:
        parts = make_parts(study)
        _check_data(run, _data_digests(study, parts.dataset))
        held = nullcontext() if ranks.rank else run.locked()
        with held, _recreated(run.execution, study) as differences:
            if ranks.size != run.processes:
                differences.append(f"processes: {run.processes} was recorded, {ranks.size} is here")
            for what in differences:
                _logger.warning("the patch will not be that of an uninterrupted run bit for bit: %s", what)
            state, facts = parts.initial, {}
            if run.has_checkpoint("last"):
                state, facts = run.load_checkpoint("last", parts.initial)
            if ranks.rank:
                _follow(study, parts, state, ranks)
            else:
                _finish(_train(study, parts, run, state, facts, state.step, report, ranks))
    return run


def _finish(training: Training) -> None:
    for _ in training:
        pass


@contextmanager
def _recreated(recorded: Execution, study: Study) -> Iterator[list[str]]:
    """Run as recorded, as far as this process can; yields what is not the same, a sentence each."""
    here = describe_device(study.place)
    with recorded.recreated(here) as differences, deterministic_algorithms(study.train.deterministic):
        yield differences


def _data_digests(study: Study, dataset: TargetSet) -> dict[str, str]:
    """What a resumed run should find again: both tables to the byte, the photographs by name and size."""
    tables = {"placements": study.data.placements, "objects": study.data.objects}
    digests = {name: file_digest(path) for name, path in tables.items() if path is not None}
    sizes = "\n".join(f"{path.name} {path.stat().st_size}" for path in dataset.paths)
    return digests | {"photographs": hashlib.sha256(sizes.encode()).hexdigest()}


def _check_data(run: Run, found: Mapping[str, str]) -> None:
    """Refuse other tables; a photograph may have been repaired."""
    recorded = run.read_json("environment.json", "data")["data"]
    changed = [name for name in found if recorded.get(name) != found[name]]
    if changed == ["photographs"]:
        _logger.warning("%s: photographs have changed since it was started: so will the patch", run.folder)
    elif changed:
        raise RunError(
            f"{run.folder}: the {changed[0]} of the data have changed since the run was started; restore "
            "them to resume it, or train again"
        )


def open_run(folder: str | Path, resources: Mapping[str, Any] | None = None) -> tuple[Run, Study]:
    """A run folder, and the study that it was made from."""
    run = Run.open(folder)
    try:
        return run, study_from_config(run.read_json("config.json"), run.folder, resources)
    except ValueError as error:
        raise RunError(f"{run.folder}/config.json: {error}") from error


def _rehearse(study: Study, parts: Parts) -> dict[str, float]:
    """Train and validate on a few photographs: what is wrong shows before a folder is made.

    Returns:
        The scalars of the validation.

    Raises:
        ValueError: If a loss term is not one finite number per row, or there is no scalar that picks the best
            checkpoint.
    """
    key = random.fold_in(parts.initial.key, "rehearsal")
    dataset = parts.dataset.split(study.data.train)
    batch = dataset.batch(dataset.image_ids[:3], device=study.place)
    sample = parts.objective.pipeline.sample(key, batch)
    with torch.no_grad():
        loss = parts.objective(parts.initial.params, *place((sample, batch), study.place))
    rows = len(batch["image_id"])
    if all(isinstance(t, torch.Tensor) and t.shape == (rows,) for t in loss.terms.values()):
        info = StepInfo(loss.value, loss.terms, torch.zeros(()), sample, dict(batch))
        if (bad := find_bad_row(info, parts.dataset.paths)) is not None:
            raise ValueError(f"before training, on the first photographs: {bad}")
    check_terms(loss.terms, rows)
    if study.data.validation is None:
        return {}
    _check_metric(study, "validation")
    dataset = parts.dataset.split(study.data.validation)
    few = dataset.select(dataset.image_ids[:2])
    pipeline, pictures = study.placed.at("validation"), study.evaluate.pictures
    result = evaluate(pipeline, parts.initial.params, few, key, block=2, pictures=pictures)
    known = scalars(result, study.evaluate.metric)
    if study.evaluate.best not in known:
        raise ValueError(
            f"evaluate.best: no scalar {study.evaluate.best!r}; {nearest(study.evaluate.best, known)}"
        )
    return known


def _check_metric(study: Study, phase: str) -> None:
    metric, known = study.evaluate.metric, metric_names(study.pipeline.at(phase))
    if metric not in known:
        raise ValueError(
            f"evaluate.metric: no stage in phase {phase!r} writes {metric!r}; {nearest(metric, known)}; add "
            'one such as metrics.detection_hit, phases = ["eval"], or train with data.validation = false'
        )


def _loader(study: Study, parts: Parts, ranks: Ranks = ALONE) -> Loader:
    dataset, key = parts.dataset.split(study.data.train), random.fold_in(parts.initial.key, "data")
    return Loader(dataset, key, study.train.batch_size, study.train.replace, study.place, ranks)


def _make_step(study: Study, parts: Parts, ranks: Ranks = ALONE, processes: int = 1) -> Step:
    return make_step(
        parts.objective,
        parts.optimizer,
        transform=study.objective.transform,
        compile=study.train.compile,
        micro_batch=study.train.micro_batch,
        rho=study.train.rho,
        ranks=ranks,
        processes=processes,
    )


def _together(
    steps: Iterator[tuple[TrainState, StepInfo]], study: Study, state: TrainState, ranks: Ranks
) -> Iterator[tuple[TrainState, StepInfo]]:
    """The same steps; at the start and at every checkpoint all processes must hold the same state."""
    ranks.check_same(f"the state at step {state.step}", state_bytes(state))
    for after, info in steps:
        if after.step == study.train.num_steps or after.step % study.train.checkpoint_every == 0:
            ranks.check_same(f"the state at step {after.step}", state_bytes(after))
        yield after, info


def _follow(study: Study, parts: Parts, state: TrainState, ranks: Ranks, until: int | None = None) -> None:
    """Take part in the steps of process 0, and stop where it stops."""
    num_steps = study.train.num_steps if until is None else until
    steps = fit(state, _make_step(study, parts, ranks), _loader(study, parts, ranks), num_steps)
    for after, info in _together(steps, study, state, ranks):
        if (bad := find_bad_row(info, parts.dataset.paths)) is not None:
            raise ValueError(f"update {after.step}: {bad}")


def _train(
    study: Study,
    parts: Parts,
    run: Run,
    state: TrainState,
    facts: dict[str, Any],
    resume_step: int | None,
    report: Report,
    ranks: Ranks = ALONE,
    until: int | None = None,
    steps: Steps | None = None,
) -> Training:
    settings = study.train
    num_steps = settings.num_steps if until is None else until
    log = _open_log(study, run, resume_step)
    finished = False
    try:
        _describe(study, parts.dataset, log)
        if state.step == 0 or not run.has_checkpoint("last"):
            _checkpoint(run, log, state, facts)
        loader = _loader(study, parts, ranks)
        if steps is None:
            own = fit(state, _make_step(study, parts, ranks), loader, num_steps)
            taken = _profiled(_together(own, study, state, ranks), study, run)
        else:
            taken = steps(state, loader, num_steps)
        for one in taken:
            if one is None:
                yield None
                continue
            after, info = one
            if (bad := find_bad_row(info, parts.dataset.paths)) is not None:
                _checkpoint(run, log, state, facts)
                raise ValueError(f"update {state.step + 1}: {bad}; the state before it is kept")
            state = after
            log.scalars(state.step, _step_scalars(info))
            report("training", state.step, num_steps, f"loss {float(info.loss):.4f}")
            at_end = state.step == num_steps
            if study.data.validation is not None and (at_end or state.step % study.evaluate.every == 0):
                facts, measured = _validate(study, parts, run, log, state, facts, report)
                at_end = bool((yield measured)) or at_end
            if at_end or state.step % settings.checkpoint_every == 0:
                _checkpoint(run, log, state, facts)
            if at_end:
                break
        if study.data.validation is None:
            run.save_checkpoint("best", state, **facts)
        best, _ = run.load_checkpoint("best", parts.initial)
        run.write_patches(make_patches(study.placed.at("test"), best.params))
        log.artifacts(["config.json", "environment.json", "patch", "checkpoints/last.safetensors"])
        finished = True
    except BaseException as error:
        error.add_note(f"what was done is kept; go on with: fpatch resume {run.folder}")
        raise
    finally:
        log.close(finished=finished)


def _checkpoint(run: Run, log: Log, state: TrainState, facts: Mapping[str, Any]) -> None:
    """Records first, then the state they lead to, then their commit: right whenever it is cut off."""
    log.flush()
    run.save_checkpoint(f"step-{state.step:08d}", state, **facts)
    run.save_checkpoint("last", state, **facts)
    log.commit(state.step)


def _step_scalars(info: StepInfo) -> dict[str, float]:
    terms = {f"train/{name}": float(term.mean()) for name, term in info.terms.items()}
    return {"train/loss": float(info.loss), **terms, "train/grad_norm": float(info.grad_norm)}


def _validate(
    study: Study, parts: Parts, run: Run, log: Log, state: TrainState, facts: dict[str, Any], report: Report
) -> tuple[dict[str, Any], Measured]:
    """Evaluate on the validation split, log it, and keep the best checkpoint; returns the new facts, too."""
    assert study.data.validation is not None
    dataset = parts.dataset.split(study.data.validation)
    result = _evaluate(study, state, dataset, "validation", report)
    run.save_evaluation(f"validation-{state.step:08d}", result, study.execution(study.evaluate.block))
    found = scalars(result, study.evaluate.metric)
    log.scalars(state.step, {f"validation/{n}": v for n, v in found.items()})
    diagnosis = _diagnose_first_block(study, state, dataset, result.table, "validation")
    log_diagnostics(study, state, diagnosis, dataset.class_names, log, "validation")
    value = found[study.evaluate.best]
    if not facts or math.isnan(facts["best"]) or value > facts["best"]:
        facts = {"best": value, "best_step": state.step}
        run.save_checkpoint("best", state, **facts)
    errors = standard_errors(result, study.evaluate.metric)
    return facts, Measured(state.step, found, errors)


def evaluation_key(study: Study, split: str) -> torch.Tensor:
    """What the samples of a split are drawn from; it does not depend on the step of training."""
    return random.fold_in(random.fold_in(random.key(study.seed), "evaluate"), split)


def _evaluate(study: Study, state: TrainState, dataset: TargetSet, split: str, report: Report) -> Evaluation:
    return evaluate(
        study.placed.at(split),
        state.params,
        dataset,
        evaluation_key(study, split),
        num_draws=study.evaluate.num_draws,
        block=study.evaluate.block,
        pictures=study.evaluate.pictures,
        progress=lambda done, total: report(f"evaluating ({split})", done, total, ""),
    )


def _open_log(study: Study, run: Run, resume_step: int | None) -> Log:
    return open_log(
        run.folder,
        tensorboard=study.log.tensorboard,
        mlflow=study.log.mlflow,
        experiment=study.log.experiment,
        resume_step=resume_step,
    )


def _describe(study: Study, dataset: TargetSet, log: Log) -> None:
    log.params(flatten(study.config))
    log.tags({"fpatch": __version__, "study": study.name})
    source = study.data.placements
    log.dataset(Path(source).stem, file_digest(source)[:16], source, num_photographs=len(dataset))
    log.text(0, {"description": describe(study)})


def describe(study: Study) -> str:
    """The study in Markdown: a line per stage (a stage may give its own), and a diagram of training."""
    lines = [f"# {study.name}", ""]
    for path, n in study.pipeline.items():
        d = n.stage.definition
        phases = "" if n.phases is None else f" *({', '.join(sorted(n.phases))})*"
        lines.append(f"- **{path}**: {d.describe(n.stage.config) if d.describe else repr(n.stage)}{phases}")
    weights = ", ".join(f"{w:g} {n}" for n, w in study.objective.weights.items())
    lines += ["", f"Minimizes {weights} with {study.optimizer.name} for {study.train.num_steps} steps.", ""]
    return "\n".join([*lines, "```mermaid", study.pipeline.mermaid("train"), "```"])


def _profiled(
    steps: Iterator[tuple[TrainState, StepInfo]], study: Study, run: Run
) -> Iterator[tuple[TrainState, StepInfo]]:
    """The same steps, some of them recorded for TensorBoard's profile tab, after two to warm up."""
    if study.log.profile_steps:
        yield from islice(steps, 2)
        handler = torch.profiler.tensorboard_trace_handler(str(run.path("tensorboard/x").parent))
        with torch.profiler.profile(on_trace_ready=handler, record_shapes=True, acc_events=True):
            for i in range(2, 2 + study.log.profile_steps):
                with torch.profiler.record_function(f"ProfilerStep#{i}"):  # the name that the tab looks for
                    taken = list(islice(steps, 1))
                yield from taken
    yield from steps


# -- looking at it -----------------------------------------------------------------------------------------


def log_diagnostics(
    study: Study, state: TrainState, diagnosis: Diagnosis, names: Sequence[str], log: Log, table: str
) -> None:
    """What every stage has to show, and a figure of what the victim says, under the name of the table."""
    for name, value in diagnosis.shown.items():
        full = f"{table}/{name}"
        if value.ndim == 3:
            log.images(state.step, {full: value})
        elif value.ndim == 0:
            log.scalars(state.step, {full: float(value)})
        else:
            log.histograms(state.step, {full: value})
    log.images(state.step, {f"{table}/control and patched": make_figure(study, diagnosis, names)})


def _diagnose_first_block(
    study: Study, state: TrainState, dataset: TargetSet, table: Mapping[str, np.ndarray], phase: str
) -> Diagnosis:
    """The first block of an evaluation, looked at closely."""
    rows = slice(0, study.evaluate.block)
    sample, batch = logged_rows(dataset, table, rows, study.place)
    return diagnose(study.placed.at(phase), state.params, sample, batch, phase)


def _picture_effects(
    study: Study, state: TrainState, dataset: TargetSet, table: Mapping[str, np.ndarray], phase: str
) -> torch.Tensor:
    """Control and patched images of the rows that the patch changed most, and of those it changed least."""
    effect = effects(table, study.evaluate.metric)
    order = np.argsort(-effect, kind="stable")
    few = min(_PICTURED, len(order) // 2) or 1
    rows = np.concatenate([order[:few], order[few:][-few:]])
    sample, batch = logged_rows(dataset, table, rows, study.place)
    diagnosis = diagnose(study.placed.at(phase), state.params, sample, batch, phase)
    captions = [f"patch: takes {effect[row]:.2f} of the score" for row in rows]
    return make_figure(study, diagnosis, dataset.class_names, captions)


def make_figure(
    study: Study, diagnosis: Diagnosis, class_names: Sequence[str], captions: Sequence[str] = ("patch",) * 4
) -> torch.Tensor:
    """Control and patched images side by side, with what the victim says of them; a row per caption."""

    def panel(values: Mapping[str, Any], i: int, caption: str) -> Panel:
        final = values.get("detections", {}).get("final")
        if final is not None:
            truth = values["boxes"][i][values["box_valid"][i]] if "boxes" in values else None
            return Panel(values["image"][i], caption, {n: v[i] for n, v in final.items()}, truth)
        if "confidence" in values:
            caption += f": {float(values['confidence'][i]):.2f} for the true class"
        return Panel(values["image"][i], caption)

    rows = [
        [panel(diagnosis.without, i, "no patch"), panel(diagnosis.patched, i, caption)]
        for i, caption in enumerate(captions[: len(diagnosis.patched["image"])])
    ]
    return side_by_side(rows, class_names, study.evaluate.score)


# -- evaluation and replay ---------------------------------------------------------------------------------


def evaluate_run(
    folder: str | Path,
    split: Literal["test", "validation"] = "test",
    checkpoint: str = "best",
    report: Report = _silent,
    resources: Mapping[str, Any] | None = None,
) -> tuple[Run, Success]:
    """Measure a run's patch on held-out photographs, and add the table, figures and rates to its folder.

    Args:
        folder: The run.
        split: Which split of the study's data.
        checkpoint: Name of a checkpoint.
        report: Told of progress.
        resources: Live objects by "path/setting" of the pipeline.
    """
    run, study = open_run(folder, resources)
    parts = make_parts(study)
    _check_metric(study, split)
    dataset = parts.dataset.split(split_name(study, split))
    with run.locked(), deterministic_algorithms(study.train.deterministic):
        state, _ = run.load_checkpoint(checkpoint, parts.initial)
        last, _ = run.load_checkpoint("last", parts.initial)
        result = _evaluate(study, state, dataset, split, report)
        table = table_name(split, checkpoint)
        run.save_evaluation(table, result, study.execution(study.evaluate.block))
        rates = success(result.table, study.evaluate.metric)
        facts = {"checkpoint": checkpoint, "step": state.step, **_summary(study, result, rates)}
        run.write_json(f"tables/{table}.summary.json", facts)
        log = _open_log(study, run, last.step)
        try:
            found = scalars(result, study.evaluate.metric)
            log.scalars(last.step, {f"{table}/{n}": v for n, v in found.items()})
            diagnosis = _diagnose_first_block(study, state, dataset, result.table, split)
            log_diagnostics(study, last, diagnosis, dataset.class_names, log, table)
            run.write_image(f"figures/{table}.png", make_figure(study, diagnosis, dataset.class_names))
            figure = _picture_effects(study, state, dataset, result.table, split)
            run.write_image(f"figures/{table}-effects.png", figure)
            log.images(last.step, {f"{table}/largest and smallest effects": figure})
            files = (f"tables/{table}.parquet", f"tables/{table}.csv", f"figures/{table}.png")
            log.artifacts([*files, f"figures/{table}-effects.png"])
            log.commit(last.step)
        finally:
            log.close(finished=last.step == study.train.num_steps)
    return run, rates


class Trained(NamedTuple):
    """What a run has to be measured with.

    Attributes:
        run: Its folder.
        study: What it was made from.
        pipeline: Of the phase that is called as the split.
        params: Of a checkpoint.
        dataset: The split's photographs.
    """

    run: Run
    study: Study
    pipeline: Pipeline
    params: Params
    dataset: TargetSet


def load_trained(
    folder: str | Path,
    split: Literal["test", "validation"] = "test",
    checkpoint: str = "best",
    resources: Mapping[str, Any] | None = None,
) -> Trained:
    """A run's patch, and the photographs and the pipeline to measure it with."""
    run, study = open_run(folder, resources)
    parts = make_parts(study)
    _check_metric(study, split)
    state, _ = run.load_checkpoint(checkpoint, parts.initial)
    dataset = parts.dataset.split(split_name(study, split))
    return Trained(run, study, study.placed.at(split), state.params, dataset)


def split_name(study: Study, split: str) -> str:
    """What the study's data call a split.

    Raises:
        ValueError: If the study has none.
    """
    name = study.data.test if split == "test" else study.data.validation
    if name is None:
        raise ValueError("the study has no validation split; take the test split")
    return name


def table_name(split: str, checkpoint: str) -> str:
    """What the evaluation of a checkpoint is called in tables and logs: "test", "test-last" and the like."""
    return split if (split, checkpoint) == ("test", "best") else f"{split}-{checkpoint}"


def _summary(study: Study, result: Evaluation, rates: Success) -> dict[str, Any]:
    """What a person asks of an evaluation, as JSON."""
    objects = of_objects(result.objects, study.evaluate.metric)
    more = {} if objects is None else {"objects": objects.to_json()}
    return rates.to_json() | more | {"summaries": result.summaries}


class StepReplay(NamedTuple):
    """A training batch, rerun.

    Attributes:
        step: The update.
        start: The checkpoint that it started from.
        scalars: Logged and rerun value of every scalar of the step.
        info: Samples and terms of the batch.
        environment: What is not as recorded, a sentence each.
    """

    step: int
    start: int
    scalars: dict[str, tuple[float, float]]
    info: StepInfo
    environment: list[str]

    @property
    def identical(self) -> bool:
        """Whether every value is the logged one."""
        return all(a == b or (np.isnan(a) and np.isnan(b)) for a, b in self.scalars.values())


def replay_run(
    folder: str | Path,
    rows: slice | None = None,
    table: str = "test",
    report: Report = _silent,
    resources: Mapping[str, Any] | None = None,
) -> tuple[Replay, list[str]]:
    """Rerun evaluated rows from their logged samples, in the recorded execution.

    Returns:
        What came out, and what of the environment is not as recorded, a sentence each.
    """
    run, study = open_run(folder, resources)
    logged, recorded = run.load_table(table), run.load_execution(table)
    split = table.partition("-")[0]
    dataset = study.data.open().split(split_name(study, split))
    chosen = range(len(logged["image_id"]))[rows or slice(None)]
    if not chosen:
        raise ValueError(
            f"replay --rows: none of these; the table has rows 0 to {len(logged['image_id']) - 1}"
        )
    with _recreated(recorded, study) as differences:
        result = replay(
            study.placed.at(split),
            place(run.load_conditions(table), study.place),
            dataset,
            logged,
            chosen,
            block=recorded.block,
            progress=lambda done, total: report("replaying", done, total, ""),
        )
    return result, differences


def replay_step(folder: str | Path, number: int, resources: Mapping[str, Any] | None = None) -> StepReplay:
    """Rerun a training update from the nearest checkpoint before it, and compare its logged scalars.

    Args:
        folder: The run.
        number: The update, from 1 to the last that was logged.
        resources: Live objects by "path/setting" of the pipeline.

    Raises:
        ValueError: If there is no record of that update.
    """
    run, study = open_run(folder, resources)
    parts = make_parts(study)
    logged = _logged_scalars(run, number)
    start = max((s for s in run.checkpoint_steps() if s < number), default=None)
    if start is None:
        raise RunError(f"replay --step: {run.folder} has no checkpoint before update {number}; restore one")
    state, _ = run.load_checkpoint(f"step-{start:08d}", parts.initial)
    step = _make_step(study, parts, processes=run.processes)
    with _recreated(run.execution, study) as differences:
        *_, (_, info) = fit(state, step, _loader(study, parts), number)
    found = _step_scalars(info)
    return StepReplay(number, start, {n: (logged[n], found[n]) for n in found}, info, differences)


def _logged_scalars(run: Run, step: int) -> dict[str, float]:
    from fpatch.log import Records

    records = Records(run.folder)
    try:
        for record in records:
            if record["kind"] == "scalars" and record["step"] == step and "train/loss" in record["values"]:
                return {n: float(v) for n, v in record["values"].items()}
    finally:
        records.close()
    raise ValueError(f"replay --step: {run.folder} has no record of update {step}; they count from 1")

"""The sections of a study: frozen settings that check themselves."""

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from fpatch.core.checks import check_count, check_number
from fpatch.core.errors import Errors
from fpatch.core.inputs import expand_home
from fpatch.core.names import check_distinct
from fpatch.core.resource import Resource, resolve
from fpatch.core.settings import checked_settings
from fpatch.data import TargetSet, image_file, targets
from fpatch.data.classes import read_classes
from fpatch.data.csv_tables import read_labels
from fpatch.data.targets import MOST_SIDE
from fpatch.evaluation.conditions import check_control_name
from fpatch.optim.compiled import COMPILE_MODES

MOST_ROWS = 10**6
"""The most rows of a batch or block, and the most draws of an image."""

_MOST_WEIGHT = 1e12  # the squares of its gradients still are float32


@checked_settings
@dataclass(frozen=True)
class DataConfig:
    """The images and their tables; see `fpatch.data.targets`.

    Attributes:
        placements: CSV file of the placements of patches.
        objects: CSV file of the objects in the images, or None.
        size: (height, width) of the letterboxed scenes, in pixels.
        root: The folder of relative image paths; None: that of each CSV file.
        patches: The patches to use; None: all in the CSV file.
        classes: The names of the classes, by label; a text file with a name per line; or the number of
            classes without names. None: in the order of the CSV file.
        outside_frac: The allowed distance of a corner outside the image, as a fraction of its side.
        resident: Keep decoded scenes in memory ("host") or on the device ("device"), or decode at every use
            ("disk").
        train: The split to train on.
        validation: The split that picks the best checkpoint. None (false in TOML): no validation, and the
            last checkpoint is the best.
        test: The split held out for `fpatch evaluate`.

    Example:
        >>> from fpatch.study.settings import DataConfig
        >>> data = DataConfig("placements.csv", size=(480, 640), validation=None)
        >>> data.train, data.validation, data.test
        ('train', None, 'test')
    """

    placements: str
    size: tuple[int, int] = field(metadata={"form": "[height, width]"})
    objects: str | None = None
    root: str | None = None
    patches: tuple[str, ...] | None = None
    classes: tuple[str, ...] | str | int | None = None
    outside_frac: float = 0.0
    resident: Literal["device", "host", "disk"] = "host"
    train: str = "train"
    validation: str | None = "validation"
    test: str = "test"

    def __post_init__(self) -> None:
        errors = Errors()
        for side in self.size:
            errors.check(check_count, "data.size", side, 1, MOST_SIDE)
        errors.check(check_number, "data.outside_frac", self.outside_frac, 0.0, 10.0)
        if isinstance(self.classes, tuple | int):
            errors.check(read_classes, "data.classes", self.classes)
        errors.raise_all()

    def open(self) -> TargetSet:
        """Read the CSV files; images are read at their first use."""
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

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes in the order of their labels, as `open` counts them; none without an objects file."""
        if self.classes is not None:
            return read_classes("data.classes", self.classes)
        return () if self.objects is None else read_labels(Path(self.objects))

    def pinned(self, root: Path) -> "DataConfig":
        """Return the settings with names of classes and absolute paths; relative ones start at `root`."""
        paths = {n: getattr(self, n) for n in ("placements", "objects", "root")}
        found: dict[str, Any] = {n: _placed(root, n, p) for n, p in paths.items() if p is not None}
        if isinstance(self.classes, str):
            found["classes"] = read_classes("data.classes", _placed(root, "classes", self.classes))
        return dataclasses.replace(self, **found)


def _placed(root: Path, name: str, path: str) -> str:
    """Return an absolute path, which starts at `root`."""
    if not path or "\0" in path:
        raise ValueError(f"data.{name} must be a path, got {path!r}")
    return os.path.realpath(root / expand_home(f"data.{name}", path))


@checked_settings
@dataclass(frozen=True)
class ObjectiveConfig:
    """The objective of training: a weighted sum of loss terms.

    Attributes:
        weights: The weight of each loss term, by name.
        transform: The method of differentiation; see `fpatch.value_and_grad`.
        wrt: The patches, and the nodes or groups with networks, that are trained; None: all that can be.

    Example:
        >>> from fpatch.study.settings import ObjectiveConfig
        >>> ObjectiveConfig({"vanish": 1.0, "total_variation": 0.1}).transform
        'autograd'
    """

    weights: Mapping[str, float]
    transform: Literal["autograd", "func"] = "autograd"
    wrt: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        for name, weight in self.weights.items():
            check_number(f"objective.weights.{name}", weight, -_MOST_WEIGHT, _MOST_WEIGHT)


@checked_settings
@dataclass(frozen=True)
class TrainConfig:
    """The length of training, and how its steps are computed.

    Attributes:
        num_steps: The number of updates.
        batch_size: Rows per update.
        micro_batch: Rows held in memory at a time; their gradients add up to that of the batch. None: all.
        rho: The distance to the ascent point of a sharpness-aware step, which needs a second pass; 0: none.
            See `fpatch.make_step`.
        compile: Compile steps: true, or a mode of `torch.compile`. Evaluations and replays of rows always run
            uncompiled.
        precision: The precision of the victims in training; see `fpatch.infer.lighter`.
        channels_last: Lay out the victims' tensors channels last in training.
        recompute: Keep fewer activations of the victims, and compute them again in the backward pass.
        deterministic: Use only operations that give the same bits every time, in evaluations and replays too.
            It is slower on a GPU, and changes nothing on a CPU.
        local_statistics: Let networks that are trained take statistics over micro-batches, or over the rows
            of a process; the step then differs from that of the whole batch.
        replace: Draw images with replacement instead of by epochs.
        checkpoint_every: Steps between numbered checkpoints, from which `replay --step` starts.

    Example:
        >>> from fpatch.study.settings import TrainConfig
        >>> TrainConfig(batch_size=64, micro_batch=16).num_steps
        500
        >>> try:
        ...     TrainConfig(batch_size=0)
        ... except ValueError as error:
        ...     print(error)
        train.batch_size must be at least 1, got 0
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
    local_statistics: bool = False
    replace: bool = False
    checkpoint_every: int = 50

    def __post_init__(self) -> None:
        errors = Errors()
        errors.check(check_count, "train.num_steps", self.num_steps)
        errors.check(check_count, "train.batch_size", self.batch_size, 1, MOST_ROWS)
        if self.micro_batch is not None:
            errors.check(check_count, "train.micro_batch", self.micro_batch, 1, MOST_ROWS)
        errors.check(check_number, "train.rho", self.rho, 0.0)
        errors.check(check_count, "train.checkpoint_every", self.checkpoint_every)
        if self.compile not in (False, True, *COMPILE_MODES):
            errors.add(f"train.compile must be true, false or one of {COMPILE_MODES}, got {self.compile!r}")
        errors.raise_all()


@checked_settings
@dataclass(frozen=True)
class EvaluateConfig:
    """The measurement of the patch, or of the networks of a study without a patch.

    Attributes:
        every: Steps between evaluations on the validation split.
        num_draws: Samples per image.
        block: Rows that run together, one condition per block.
        metric: The boolean metric whose failure is a success of the patch.
        best: The scalar of the validation that picks the best checkpoint; higher is better. Of equal values
            the one with the larger `success/drop/patch`, the mean score lost, is better, then the later one.
            In a study that makes no patch the default is "right", the share of rows where `metric` is true.
        score: Figures draw detections from this score on.
        controls: Further control patches by name: image files, stretched to every patch.
        portable: Measure finished runs by kernels that give the same bits on every x86-64 processor; see
            `fpatch.runtime.portable`. It is slower. Validations during training run natively.

    Example:
        >>> from fpatch.study.settings import EvaluateConfig
        >>> config = EvaluateConfig(num_draws=4, controls={"poster": "poster.png"})
        >>> config.metric, config.best, config.block
        ('found', 'success/patch', 16)
    """

    every: int = 100
    num_draws: int = 1
    block: int = 16
    metric: str = "found"
    best: str = "success/patch"
    score: float = 0.5
    controls: Mapping[str, str | Resource] = field(default_factory=dict)
    portable: bool = False

    def __post_init__(self) -> None:
        errors = Errors()
        errors.check(check_count, "evaluate.every", self.every)
        errors.check(check_count, "evaluate.num_draws", self.num_draws, 1, MOST_ROWS)
        errors.check(check_count, "evaluate.block", self.block, 1, MOST_ROWS)
        errors.check(check_number, "evaluate.score", self.score, 0.0, 1.0)
        for name in self.controls:
            errors.check(check_control_name, "evaluate.controls", name)
        errors.check(check_distinct, "evaluate.controls", self.controls)
        errors.raise_all()

    def pinned(self, root: Path) -> "EvaluateConfig":
        """Return the settings with digests of the controls' files; relative paths start at `root`."""
        found = {
            n: (Resource(image_file.name, c) if isinstance(c, str) else c).pinned(root)
            for n, c in self.controls.items()
        }
        return dataclasses.replace(self, controls=found)

    @property
    def pictures(self) -> dict[str, torch.Tensor]:
        """The images of the controls, [3, h, w] in 0..1."""
        made = {n: image_file(c) if isinstance(c, str) else c for n, c in self.controls.items()}
        return {name: resolve(control) for name, control in made.items()}


@checked_settings
@dataclass(frozen=True)
class LogConfig:
    """The destinations of records; `records.jsonl` in the run folder is always written.

    Attributes:
        runs: The folder of run folders.
        tensorboard: Write event files of TensorBoard.
        mlflow: A tracking URI. True: that of the environment variable `MLFLOW_TRACKING_URI`, or else a local
            SQLite file beside the runs. False: none.
        experiment: The name of the experiment in MLflow. `MLFLOW_EXPERIMENT_NAME` replaces the default.
        profile_steps: Steps that torch.profiler records, from the third on, for TensorBoard's profile tab.

    Example:
        >>> from fpatch.study.settings import LogConfig
        >>> LogConfig(mlflow="sqlite:///runs/mlflow.db").tensorboard
        True
        >>> try:
        ...     LogConfig(mlflow="mlflow.db")
        ... except ValueError as error:
        ...     print(error)
        log.mlflow must be true, false, or like sqlite:///FILE or http://HOST:PORT, got 'mlflow.db'
    """

    runs: str = "runs"
    tensorboard: bool = True
    mlflow: bool | str = True
    experiment: str = "fpatch"
    profile_steps: int = 0

    def __post_init__(self) -> None:
        errors = Errors()
        if isinstance(self.mlflow, str) and "://" not in self.mlflow:
            form = "sqlite:///FILE or http://HOST:PORT"
            errors.add(f"log.mlflow must be true, false, or like {form}, got {self.mlflow!r}")
        if "://" in self.runs:
            errors.add(
                f"log.runs must be a folder, local or on a network file system, got {self.runs!r}; mount the "
                "bucket of an object store, or copy finished runs to it; for a sweep, set sweep.storage"
            )
        errors.check(check_count, "log.profile_steps", self.profile_steps, 0)
        if not self.runs.strip() or "\0" in self.runs:
            errors.add(f"log.runs must name a folder, got {self.runs!r:.80}")
        errors.raise_all()
        if self.runs.startswith("~"):
            object.__setattr__(self, "runs", str(expand_home("log.runs", self.runs)))

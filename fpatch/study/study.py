"""A study: all settings of a run in one frozen value."""

import dataclasses
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from fpatch.core.checks import check_kind
from fpatch.core.names import check_name
from fpatch.core.schema import encode
from fpatch.core.settings import checked_settings
from fpatch.evaluation.rates import RIGHT
from fpatch.graph.pipeline import Pipeline
from fpatch.optim.optimizer import Optimizer
from fpatch.runtime.device import check_device, describe_device, find_device
from fpatch.runtime.execution import Execution
from fpatch.study.settings import DataConfig, EvaluateConfig, LogConfig, ObjectiveConfig, TrainConfig

_SECTIONS: dict[str, tuple[type, str]] = {
    "name": (str, "it names the run folder"),
    "data": (DataConfig, "give the files, which the study reads by itself"),
    "pipeline": (Pipeline, "make it by fpatch.pipeline({...})"),
    "objective": (ObjectiveConfig, "give the weights by term"),
    "device": (str, "such as 'cpu' or 'cuda:1'"),
    "optimizer": (Optimizer, "give the settings fpatch.Optimizer(...); the study makes the optimizer"),
    "train": (TrainConfig, "give its settings"),
    "evaluate": (EvaluateConfig, "give its settings"),
    "log": (LogConfig, "give its settings"),
}
"""The type of each section, and the way out in an error."""


@checked_settings
@dataclass(frozen=True)
class Study:
    """All settings of a run.

    Attributes:
        name: The name of the run folder.
        data: The images and their tables.
        pipeline: The stages, for all phases.
        objective: The loss terms to minimize.
        seed: The seed of the root key.
        device: The device: "cpu", "cuda" or one GPU such as "cuda:1"; "auto" is a GPU if there is one.
            Samples are drawn on the host, and are the same on every device.
        optimizer: The optimizer of the patch, or of the networks.
        train: The length of training, and how its steps are computed.
        evaluate: The measurement of the patch, or of the networks. Without a patch in the pipeline, the
            default of `best` is "right".
        log: The destinations of records.

    Example:
        >>> from fpatch import Study, create, implant, losses, pipeline
        >>> from fpatch.study.settings import DataConfig, ObjectiveConfig
        >>> stages = {"pixels": create.pixels({"tag": (3, 8, 8)}), "implant": implant.warp()}
        >>> stages["smooth"] = losses.total_variation()
        >>> objective = ObjectiveConfig({"total_variation": 1.0})
        >>> study = Study("tag", DataConfig("placements.csv", (48, 64)), pipeline(stages), objective)
        >>> study.config["optimizer"]["name"], study.seed
        ('adam', 0)
    """

    name: str
    data: DataConfig
    pipeline: Pipeline
    objective: ObjectiveConfig
    seed: int = 0
    device: str = "auto"
    optimizer: Optimizer = field(default_factory=Optimizer)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    log: LogConfig = field(default_factory=LogConfig)

    def __post_init__(self) -> None:
        for section, (kind, way_out) in _SECTIONS.items():
            check_kind(section, getattr(self, section), kind, way_out)
        check_name("name", self.name)
        check_device("device", self.device)
        _ = self.numbered
        if not self.makes_patch and self.evaluate.best == EvaluateConfig.best:  # which it cannot mean
            object.__setattr__(self, "evaluate", dataclasses.replace(self.evaluate, best=RIGHT))

    @property
    def makes_patch(self) -> bool:
        """Whether the pipeline makes a patch; if not, it trains networks alone."""
        return bool(self.pipeline.parameterizations)

    @property
    def trained(self) -> str:
        """The word for what is trained: "patch" or "network"."""
        return "patch" if self.makes_patch else "network"

    @cached_property
    def place(self) -> torch.device:
        """The device of the study on this machine.

        Raises:
            ValueError: If the study names a GPU that this machine lacks.
        """
        return find_device(self.device)

    @cached_property
    def numbered(self) -> Pipeline:
        """The pipeline with the numbers of classes in place of their names.

        Raises:
            ValueError: If a setting names a class that the data do not name.
        """
        named = [(path, n.stage.named_classes) for path, n in self.pipeline.items() if n.stage.named_classes]
        if not named:
            return self.pipeline
        names = self.data.class_names
        if not names:
            path, settings = named[0]
            setting, name = next(iter(settings.items()))
            raise ValueError(
                f"pipeline.{path}.{setting} is the class {name!r}, but the data name no classes; give "
                "data.classes in the order of the victim's labels, or the victim's number"
            )
        return self.pipeline.with_classes(names)

    @cached_property
    def placed(self) -> Pipeline:
        """The pipeline that runs: with numbers of classes, and its networks on the device of the study."""
        return self.numbered if self.place.type == "cpu" else self.numbered.to(self.place)

    def execution(self, block: int) -> Execution:
        """Return the execution of the study in this process, with blocks of `block` rows."""
        return Execution.current(block, describe_device(self.place))

    @property
    def config(self) -> dict[str, Any]:
        """The study as JSON values, from which `study_from_config` makes the same study."""
        sections = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {n: v.config if isinstance(v, Pipeline) else encode(v) for n, v in sections.items()}

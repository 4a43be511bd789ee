"""fpatch: train, measure and replay physical adversarial patches.

The names here are loaded when they are first used, so that `import fpatch` costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

from fpatch.core.version import __version__

_NAMES = {
    "Node": "graph.node",
    "Objective": "optim.objective",
    "Optimizer": "optim.optimizer",
    "Pipeline": "graph.pipeline",
    "Range": "core.types",
    "Resource": "core.resource",
    "Run": "runs.folder",
    "Stage": "graph.stage",
    "Study": "study.study",
    "TrainState": "optim.step",
    "build": "graph.build",
    "control": "graph.samples",
    "define": "graph.stage",
    "define_loader": "core.resource",
    "deterministic": "graph.stage",
    "evaluate": "evaluation.evaluation",
    "evaluate_run": "runs.evaluating",
    "fit": "optim.loop",
    "from_columns": "graph.samples",
    "keep_freed_memory": "runtime.memory",
    "load_study": "study.config",
    "make_optimizer": "optim.optimizer",
    "make_population_step": "optim.population",
    "make_state": "optim.step",
    "make_step": "optim.step",
    "node": "graph.node",
    "override": "graph.samples",
    "pipeline": "graph.pipeline",
    "replay": "evaluation.replaying",
    "replay_run": "runs.replaying",
    "resume": "runs.training",
    "row_keys": "graph.keys",
    "resume_sweep": "tune",
    "success": "evaluation.rates",
    "sweep": "tune",
    "to_columns": "graph.samples",
    "train": "runs.training",
    "value_and_grad": "optim.gradient",
}
_MODULES = (
    *(
        "analysis",
        "compose",
        "create",
        "data",
        "defend",
        "graph",
        "implant",
        "infer",
        "losses",
        "metrics",
        "random",
        "tune",
    ),
    "viz",
)

__all__ = [
    "Node",
    "Objective",
    "Optimizer",
    "Pipeline",
    "Range",
    "Resource",
    "Run",
    "Stage",
    "Study",
    "TrainState",
    "__version__",
    "analysis",
    "build",
    "compose",
    "control",
    "create",
    "data",
    "defend",
    "define",
    "define_loader",
    "deterministic",
    "evaluate",
    "evaluate_run",
    "fit",
    "from_columns",
    "graph",
    "implant",
    "infer",
    "keep_freed_memory",
    "load_study",
    "losses",
    "make_optimizer",
    "make_population_step",
    "make_state",
    "make_step",
    "metrics",
    "node",
    "override",
    "pipeline",
    "random",
    "replay",
    "replay_run",
    "resume",
    "resume_sweep",
    "row_keys",
    "success",
    "sweep",
    "to_columns",
    "train",
    "tune",
    "value_and_grad",
    "viz",
]

if TYPE_CHECKING:
    from fpatch import (
        analysis,
        compose,
        create,
        data,
        defend,
        graph,
        implant,
        infer,
        losses,
        metrics,
        random,
        tune,
        viz,
    )
    from fpatch.core.resource import Resource, define_loader
    from fpatch.core.types import Range
    from fpatch.evaluation.evaluation import evaluate
    from fpatch.evaluation.rates import success
    from fpatch.evaluation.replaying import replay
    from fpatch.graph.build import build
    from fpatch.graph.keys import row_keys
    from fpatch.graph.node import Node, node
    from fpatch.graph.pipeline import Pipeline, pipeline
    from fpatch.graph.samples import control, from_columns, override, to_columns
    from fpatch.graph.stage import Stage, define, deterministic
    from fpatch.optim.gradient import value_and_grad
    from fpatch.optim.loop import fit
    from fpatch.optim.objective import Objective
    from fpatch.optim.optimizer import Optimizer, make_optimizer
    from fpatch.optim.population import make_population_step
    from fpatch.optim.step import TrainState, make_state, make_step
    from fpatch.runs.evaluating import evaluate_run
    from fpatch.runs.folder import Run
    from fpatch.runs.replaying import replay_run
    from fpatch.runs.training import resume, train
    from fpatch.runtime.memory import keep_freed_memory
    from fpatch.study.config import load_study
    from fpatch.study.study import Study
    from fpatch.tune import resume_sweep, sweep


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(importlib.import_module(f"fpatch.{_NAMES[name]}"), name)
    if name in _MODULES:
        return importlib.import_module(f"fpatch.{name}")
    raise AttributeError(f"module 'fpatch' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__

"""fpatch: train, measure and replay physical adversarial patches.

The names here are loaded when they are first used, so that `import fpatch` costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_NAMES = {
    "Node": "pipeline",
    "Objective": "objective",
    "Optimizer": "optim",
    "Pipeline": "pipeline",
    "Range": "types",
    "Resource": "resource",
    "Run": "runs",
    "Stage": "stage",
    "Study": "study",
    "TrainState": "train",
    "build": "config",
    "control": "pipeline",
    "define": "stage",
    "define_loader": "resource",
    "deterministic": "stage",
    "evaluate": "evaluate",
    "fit": "train",
    "from_columns": "columns",
    "load_study": "study",
    "make_optimizer": "optim",
    "make_state": "train",
    "make_step": "train",
    "node": "pipeline",
    "override": "columns",
    "pipeline": "pipeline",
    "row_keys": "stage",
    "success": "success",
    "to_columns": "columns",
}
_MODULES = ("compose", "create", "data", "implant", "infer", "losses", "metrics", "random", "replay", "train", "viz")

__all__ = ["__version__", *sorted((*_NAMES, *_MODULES))]  # noqa: PLE0604

if TYPE_CHECKING:
    from fpatch import compose, create, data, implant, infer, losses, metrics, random, replay, train, viz
    from fpatch.columns import from_columns, override, to_columns
    from fpatch.config import build
    from fpatch.evaluate import evaluate
    from fpatch.objective import Objective
    from fpatch.optim import Optimizer, make_optimizer
    from fpatch.pipeline import Node, Pipeline, control, node, pipeline
    from fpatch.resource import Resource, define_loader
    from fpatch.runs import Run
    from fpatch.stage import Stage, define, deterministic, row_keys
    from fpatch.study import Study, load_study
    from fpatch.success import success
    from fpatch.train import TrainState, fit, make_state, make_step
    from fpatch.types import Range


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(importlib.import_module(f"fpatch.{_NAMES[name]}"), name)
    if name in _MODULES:
        return importlib.import_module(f"fpatch.{name}")
    raise AttributeError(f"module 'fpatch' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__

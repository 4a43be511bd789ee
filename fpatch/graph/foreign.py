"""Objects of other libraries in the place of a stage: each is refused with the stage that takes it."""

from typing import Any

from torch import nn

from fpatch.core.resource import Loader, Resource
from fpatch.graph.stage import Definition

_VICTIM = (
    "a victim is infer.classifier(model), infer.detector(model), infer.torchvision_detector(model) or "
    "infer.yolo(model, format=...); any other network is graph.module(model), wired by node(...)"
)


def find_stage(part: Any) -> str | None:
    """Say what a part of a pipeline is that is no stage, and which stage takes it; None for another part.

    Example:
        >>> import torch
        >>> from fpatch.graph.foreign import find_stage
        >>> find_stage(torch.nn.Linear(3, 2)).partition(";")[0]
        'a network, Linear; a victim is infer.classifier(model), infer.detector(model), ...'
    """
    name, library = _names(part)
    if isinstance(part, Definition):
        return f"{part.name}, which makes a stage; call it: {part.name}(...)"
    if isinstance(part, (Loader, Resource)):
        return f"{part}, which makes a network or an image; give it to a stage, as infer.classifier(model)"
    if isinstance(part, str):
        return f"the string {part!r}; call the factory of a stage, or give a config to fpatch.build"
    if library == "kornia":
        return f"kornia's {name}; give it to compose.augmentation, as an object or by its name and arguments"
    if library == "torchvision" and ".transforms" in _module(part):
        return (
            f"torchvision's {name}, which draws from a global generator; take a stage of fpatch.compose, or "
            "compose.augmentation with the name of kornia's"
        )
    if library == "torchmetrics":
        return f"torchmetrics' {name}; give it to metrics.torchmetric({name}(...))"
    if isinstance(part, type):
        return f"the class {name}; give an object of it to a stage"
    if isinstance(part, nn.Module) and _module(part).startswith("torch.nn.modules.loss"):
        return (
            f"torch's {name}; a loss is a function (values, patch_params) -> {{term: [b]}}, which may call it"
        )
    if isinstance(part, nn.Module):
        return f"a network, {name}; {_VICTIM}"
    return None


def _names(part: Any) -> tuple[str, str]:
    kind = part if isinstance(part, type) else type(part)
    return kind.__name__, _module(part).partition(".")[0]


def _module(part: Any) -> str:
    return (part if isinstance(part, type) else type(part)).__module__

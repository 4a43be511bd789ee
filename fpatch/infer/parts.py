"""Parts of networks by name, for `graph.module`: a normalization, a backbone, a head, features of a layer.

model = {loader = "infer.backbone", arguments = {architecture = "resnet18", seed = 0}}
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fpatch import random
from fpatch.core.checks import check_number, nearest
from fpatch.core.resource import define_loader
from fpatch.infer.torchvision_model import load_model

_HEADS = ("fc", "classifier", "heads", "head")
"""The names of the last part in torchvision's classifiers."""


class Normalizer(nn.Module):
    """Images minus a mean, divided by a standard deviation, per channel."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean)[:, None, None])
        self.register_buffer("std", torch.tensor(std)[:, None, None])

    def forward(self, images: Tensor) -> Tensor:
        """Return [b, c, h, w] of images [b, c, h, w]."""
        return (images - self.mean) / self.std


def load_normalizer(mean: Sequence[float], std: Sequence[float]) -> nn.Module:
    """Make a normalization of images by mean and standard deviation per channel.

    Args:
        mean: A number per channel.
        std: A number above 0 per channel.

    Raises:
        ValueError: If they have different lengths, or a standard deviation is not above 0.

    Example:
        >>> import torch
        >>> from fpatch import infer
        >>> part = infer.normalizer(mean=[0.5], std=[0.25]).value
        >>> part(torch.ones(1, 1, 1, 1)).item()
        2.0
    """
    if len(mean) != len(std):
        raise ValueError(f"normalizer: mean and std must have one number per channel, got {mean} and {std}")
    for value in std:
        check_number("normalizer(std)", value, 1e-12)
    return Normalizer(mean, std).eval()


def load_head(num_features: int, num_classes: int, dropout: float = 0.0, seed: int = 0) -> nn.Module:
    """Make the head of a classifier: dropout and a linear layer, features [b, f] -> logits [b, c].

    Weights and biases are uniform within 1 / sqrt(f), as torch's are, and drawn from `seed`.

    Args:
        num_features: f.
        num_classes: c.
        dropout: The share of the features that is dropped in training.
        seed: The seed of the weights.

    Raises:
        ValueError: If a number is out of its range.

    Example:
        >>> import torch
        >>> from fpatch import infer
        >>> infer.head(num_features=8, num_classes=3, seed=1).value(torch.zeros(2, 8)).shape
        torch.Size([2, 3])
    """
    check_number("head(num_features)", num_features, 1)
    check_number("head(num_classes)", num_classes, 1)
    check_number("head(dropout)", dropout, 0.0, 1.0)
    linear, bound = nn.Linear(num_features, num_classes), 1 / math.sqrt(num_features)
    with torch.no_grad():
        for name, parameter in linear.named_parameters():
            key = random.fold_in(random.key(seed), name)
            parameter.copy_(random.uniform(key, tuple(parameter.shape), -bound, bound))
    return nn.Sequential(nn.Dropout(dropout), linear).eval()


def load_backbone(
    weights: str | Path | None = None,
    *,
    architecture: str,
    layer: str | None = None,
    download: str | None = None,
    seed: int | None = None,
    normalize: bool = True,
    **arguments: Any,
) -> nn.Module:
    """Make a classifier of torchvision without its head, or up to a named layer; images -> features.

    Args:
        weights: A file, as for `infer.torchvision_model`.
        architecture: The library's name of the network, such as "resnet18".
        layer: The layer whose output are the features, such as "layer4" or "layer4.1.relu"; None: all but
            the head, features [b, f].
        download: The name of published weights, as for `infer.torchvision_model`.
        seed: The seed of an untrained network.
        normalize: Whether images are normalized first, as for `infer.torchvision_model`.
        **arguments: Arguments of the library's builder.

    Raises:
        ValueError: As for `infer.torchvision_model`, and if there is no such layer, with the nearest.

    Example:
        >>> import torch
        >>> from fpatch import infer
        >>> part = infer.backbone(architecture="resnet18", seed=0, normalize=False).value
        >>> part(torch.zeros(1, 3, 64, 64)).shape
        torch.Size([1, 512])
    """
    sources = {"download": download, "seed": seed, "normalize": normalize}
    model = load_model(weights, architecture=architecture, **sources, **arguments)
    network: Any = model.model if normalize else model
    if layer is not None:
        network = features_at(network, layer)
    else:
        name = next((name for name in _HEADS if hasattr(network, name)), None)
        if name is None:
            raise ValueError(f"backbone: {architecture} has no head that is known; name a layer")
        setattr(network, name, nn.Identity().eval())  # else a trained backbone kept its layers as they are
    if not normalize:
        return network
    model.model = network
    return model


class _Features(nn.Module):
    """A network that answers one tensor in the place of a mapping of one."""

    def __init__(self, extractor: nn.Module) -> None:
        super().__init__()
        self.extractor = extractor

    def forward(self, images: Tensor) -> Tensor:
        return self.extractor(images)["features"]


def features_at(model: nn.Module, layer: str) -> nn.Module:
    """Cut a network after a layer: a network that answers what the layer does.

    What comes after the layer is left out. Weights are shared with the network.

    Args:
        model: A network that `torch.fx` can trace.
        layer: The name of a module in it, or of a node in its graph.

    Raises:
        ValueError: If there is no such layer, with the nearest, or the network cannot be traced.

    Example:
        >>> import torch
        >>> from fpatch.infer import features_at
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 5), torch.nn.ReLU()).eval()
        >>> features_at(model, "1")(torch.zeros(2, 3, 2, 2)).shape
        torch.Size([2, 5])
    """
    from torchvision.models import feature_extraction

    try:
        names = feature_extraction.get_graph_node_names(model)
    except Exception as error:
        raise ValueError(
            f"features_at: torch.fx cannot trace {type(model).__name__} ({error}); return the features from "
            "its forward"
        ) from error
    known = dict.fromkeys(part for name in names[1] for part in _prefixes(name))
    if layer not in known:
        raise ValueError(f"features_at: no layer {layer!r}; {nearest(layer, known)}")
    found = feature_extraction.create_feature_extractor(model, {layer: "features"})
    return _Features(found).train(model.training)


def _prefixes(name: str) -> list[str]:
    """The names of a node of a graph and of the modules that it lies in."""
    parts = name.split(".")
    return [".".join(parts[:i]) for i in range(1, len(parts) + 1)]


normalizer = define_loader("normalizer", load_normalizer)
head = define_loader("head", load_head)
backbone = define_loader("backbone", load_backbone)

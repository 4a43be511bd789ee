"""Detectors and classifiers of torchvision by name, for `infer.torchvision_detector` and `infer.classifier`.

model = {loader = "infer.torchvision_model", weights = "my.safetensors",
         arguments = {architecture = "fasterrcnn_resnet50_fpn", num_classes = 4}}
"""

import inspect
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fpatch.core.checks import nearest
from fpatch.core.files import file_digest
from fpatch.core.resource import define_loader

if TYPE_CHECKING:
    from torchvision.models import WeightsEnum  # importing torchvision takes longer than importing torch


class _Normalized(nn.Module):
    """A classifier behind the normalization of its training."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(mean)[:, None, None])
        self.register_buffer("std", torch.tensor(std)[:, None, None])

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [b, c] of images [b, 3, h, w] in 0..1."""
        return self.model((images - self.mean) / self.std)


def load_model(
    weights: str | Path | None = None,
    *,
    architecture: str,
    download: str | None = None,
    seed: int | None = None,
    normalize: bool = True,
    **arguments: Any,
) -> nn.Module:
    """Make a network of torchvision in evaluation mode, with the weights of one source.

    Args:
        weights: A file with a state dict: .safetensors, or .pt or .pth (read with `weights_only=True`). A
            file that torchvision publishes is recognized by its digest. It is built as the library does,
            which sets a few things beside the weights.
        architecture: The library's name of the network, such as `fasterrcnn_resnet50_fpn` or `resnet18`.
        download: The name of published weights, such as "COCO_V1" or "DEFAULT". They come from the folder of
            `torch.hub`, or else from the network, and are checked by hash.
        seed: The seed of an untrained network.
        normalize: For classifiers: whether the images are normalized before the network, by the mean and
            standard deviation of the published weights (of the default weights, for another file). Images
            are not resized: the network sees `data.size`. Detectors normalize and resize themselves.
        **arguments: Arguments of the library's builder: `num_classes`, `min_size`, ... Nothing is downloaded
            for the backbone.

    Raises:
        ValueError: If not exactly one source is given, a name or an argument is unknown, or the file does not
            fit.
        OSError: If the download fails; the error says where to put the file by hand.

    Example:
        >>> from fpatch import infer
        >>> model = infer.torchvision_model(architecture="squeezenet1_1", seed=0, num_classes=3)
        >>> model.arguments  # what a study file holds; `model.value` is the network
        {'architecture': 'squeezenet1_1', 'seed': 0, 'num_classes': 3}
    """
    from torchvision import models
    from torchvision.models import detection

    is_detector = architecture in models.list_models(module=detection)
    known = [*models.list_models(module=models), *models.list_models(module=detection)]
    if architecture not in known:
        raise ValueError(
            f"architecture {architecture!r} is none of torchvision's; {nearest(architecture, known)}"
        )
    if is_detector and not normalize:
        raise ValueError("normalize=False: detectors normalize their images; give image_mean and image_std")
    if [weights, download, seed].count(None) != 2:
        raise ValueError(
            f"{architecture}: its weights come from one source: a file (weights), download = 'DEFAULT', or, "
            "for an untrained network, a seed"
        )
    published = models.get_model_weights(architecture)
    with torch.random.fork_rng(devices=[]):
        if weights is not None:
            model, source = _from_file(Path(weights), architecture, published, arguments)
        elif download is not None:
            model, source = _from_network(download, architecture, published, arguments)
        else:
            # the builder draws from no other generator, which is forked above
            torch.default_generator.manual_seed(seed)  # type: ignore[arg-type]
            model, source = _build(architecture, arguments), None
    _refuse_unknown(architecture, model, arguments)
    if normalize and not is_detector:
        preset = (source or published["DEFAULT"]).transforms()
        model = _Normalized(model, preset.mean, preset.std)
    return model.eval()


def _build(architecture: str, arguments: dict[str, Any], source: "WeightsEnum | None" = None) -> nn.Module:
    """Build the library's own network, without weights or with published ones."""
    from torchvision import models

    builder = models.get_model_builder(architecture)
    if "weights_backbone" in inspect.signature(builder).parameters:
        arguments = {"weights_backbone": None, **arguments}
    try:
        return builder(weights=source, progress=False, **arguments)
    except TypeError as error:
        raise ValueError(f"{architecture} with {arguments}: {error}") from error


def _from_network(
    name: str, architecture: str, published: "type[WeightsEnum]", arguments: dict[str, Any]
) -> "tuple[nn.Module, WeightsEnum]":
    """Make a network with published weights, by their name."""
    if name not in published.__members__:
        raise ValueError(
            f"download {name!r}: no such weights of {architecture}; known: {', '.join(published.__members__)}"
        )
    source = published[name]
    try:
        source.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except OSError as error:
        path = Path(torch.hub.get_dir(), "checkpoints", Path(source.url).name)
        raise OSError(
            f"{architecture}: the weights {source.name} cannot be downloaded ({error}); fetch {source.url} "
            f"elsewhere and put it at {path}, or anywhere and give weights = its path instead of download"
        ) from error
    path = Path(torch.hub.get_dir(), "checkpoints", Path(source.url).name)
    # torch.hub does not check a file that was there before
    if not file_digest(path).startswith(path.stem.rpartition("-")[2]):
        raise ValueError(f"{path} is not the file that torchvision published; delete it")
    return _build(architecture, arguments, source), source


def _from_file(
    path: Path, architecture: str, published: "type[WeightsEnum]", arguments: dict[str, Any]
) -> "tuple[nn.Module, WeightsEnum | None]":
    """Make a network with the weights of a file; a published file is built as the library does."""
    state = _read_state(path)
    digest = file_digest(path)
    source = next((w for w in published if digest.startswith(Path(w.url).stem.rpartition("-")[2])), None)
    if source is not None:
        with _hub_of(path, Path(source.url).name):
            return _build(architecture, arguments, source), source
    model = _build(architecture, arguments)
    try:
        missing, unexpected = model.load_state_dict(state, strict=False)
    except RuntimeError as error:  # sizes
        problems = [line.strip() for line in str(error).splitlines()[1:]]
    else:
        problems = [f"{key} is missing" for key in missing]
        problems += [f"{key} is not in the network" for key in unexpected]
    if problems:
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ValueError(
            f"{path} does not fit {architecture} with {arguments}: {'; '.join(problems[:3])}{more}; give the "
            "architecture, num_classes and other arguments that it was trained with"
        )
    return model, None


def _read_state(path: Path) -> dict[str, Tensor]:
    """Read a state dict without running code from the file."""
    if path.suffix not in (".safetensors", ".pt", ".pth"):
        raise ValueError(f"{path}: weights must be a .safetensors, .pt or .pth file")
    state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        holds = ", ".join(map(str, state)) if isinstance(state, dict) else type(state).__name__
        raise ValueError(f"{path} must hold a state dict, but holds {holds}; save model.state_dict() alone")
    return state


@contextmanager
def _hub_of(path: Path, name: str) -> Iterator[None]:
    """Set the folder of `torch.hub`, the only place where the library looks, to one that holds a file."""
    before = torch.hub.get_dir()
    with tempfile.TemporaryDirectory() as folder:
        there = Path(folder, "checkpoints", name)
        there.parent.mkdir()
        there.symlink_to(path.resolve())
        torch.hub.set_dir(folder)
        try:
            yield
        finally:
            torch.hub.set_dir(before)


def _refuse_unknown(architecture: str, model: nn.Module, arguments: dict[str, Any]) -> None:
    """Refuse arguments that nothing reads: the transform of a detector accepts any name."""
    from torchvision import models

    transform = getattr(model, "transform", None)
    functions: list[Callable[..., Any]] = [models.get_model_builder(architecture)]
    functions += [c.__init__ for m in (model, transform) for c in type(m).__mro__ if m is not None]
    names = {name for function in functions for name in inspect.signature(function).parameters}
    unknown = [name for name in arguments if name not in names]
    if unknown:
        raise ValueError(
            f"{architecture} has no argument {unknown[0]!r}; {nearest(unknown[0], names - {'self'})}"
        )


torchvision_model = define_loader("torchvision_model", load_model)

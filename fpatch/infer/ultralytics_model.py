"""Networks of Ultralytics, which are licensed under the AGPL-3.0: its terms bind their users.

fpatch neither contains nor needs that package; `pip install 'fpatch[ultralytics]'` adds it. Its settings keep
it offline and stop it from installing packages. Its import changes the whole process: `torch.save`,
`PIL.Image.open`, print options, OpenCV's threads, warnings, environment variables. These changes are undone.
The package keeps its settings file in its own folder (`YOLO_CONFIG_DIR`).
"""

import copy
import importlib
import os
import pickle
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch._tensor_str import PRINT_OPTS

from fpatch.core.resource import define_loader
from fpatch.infer._ultralytics_description import read_description

_QUIET = {"YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false", "YOLO_VERBOSE": "false"}
"""Environment variables for the import of Ultralytics: no telemetry, no pip, no banners."""

_CONVERT = (
    "import torch; c = torch.load('{name}', 'cpu', weights_only=False); "
    "torch.save((c.get('ema') or c['model']).float().state_dict(), '{stem}-state.pt')"
)


def _load_ultralytics(
    weights: str | Path | None = None,
    *,
    architecture: str,
    num_classes: int | None = None,
    end2end: bool = False,
    seed: int = 0,
) -> nn.Module:
    """Make a detection network in evaluation mode, for `infer.yolo`; licensed under the AGPL-3.0.

    The networks answer in format "v8". With `end2end`, networks with a second, one-to-one head (v10, v26)
    answer in format "v10", as Ultralytics' own `predict(nms=False)` does.

    Args:
        weights: A state dict, .safetensors or a .pt that holds nothing else; None: untrained.
        architecture: The name of a description that ships with Ultralytics, such as "yolo11n.yaml", or the
            path of one. The digest of a file is recorded beside that of the weights. A safe loader parses it,
            and it may hold known layers only.
        num_classes: The number of classes; None: that of the architecture (80).
        end2end: Whether the one-to-one head answers, which needs no suppression.
        seed: The seed of the untrained network's weights.

    Raises:
        ImportError: If Ultralytics is not installed.
        ValueError: If the architecture is unknown, holds anything but known layers, or has no one-to-one
            head, the file is a pickled checkpoint, or the weights belong to another network.

    Example:
        >>> from fpatch import infer
        >>> model = infer.ultralytics_model(architecture="yolo11n.yaml", num_classes=4, seed=1)
        >>> infer.yolo(model, format="v8", num_classes=4).config.model.arguments
        {'architecture': 'yolo11n.yaml', 'num_classes': 4, 'seed': 1}
    """
    detection_model, shipped = _import_detection_model()
    description = read_description(architecture, shipped)
    with torch.random.fork_rng(devices=[]), _default_activation_kept():
        torch.default_generator.manual_seed(seed)  # the network draws from no other; forked above
        model = detection_model(description, nc=num_classes, verbose=False)
    if weights is not None:
        state = _read_state(Path(weights))
        try:
            model.load_state_dict(state)
        except RuntimeError as error:
            classes = "its own" if num_classes is None else num_classes
            raise ValueError(
                f"these are not the weights of {architecture} with {classes} classes "
                f"(num_classes): {str(error).splitlines()[1].strip()}"
            ) from error
    head = model.model[-1]
    if end2end and not hasattr(head, "one2one_cv2"):
        raise ValueError(f"ultralytics_model(end2end=True): {architecture} has no one-to-one head")
    head.end2end = end2end
    head.dynamic = True  # new anchors for each batch, never those of a call in another mode
    return copy.deepcopy(model).eval()  # all networks share one activation module and its mode


def _read_state(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a state dict, by name; no code in the file is run."""
    if path.suffix == ".safetensors":
        return load_file(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        state = None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        command = _CONVERT.format(name=path.name, stem=path.stem)
        raise ValueError(
            "it must hold a state dict of tensors only; a pickled checkpoint can run any code when it is "
            f'loaded. If you trust it, convert it where it lies: python -c "{command}"'
        )
    return state


def _import_detection_model() -> tuple[Any, Path]:
    """Import Ultralytics' class of detection networks; return it with the folder of its descriptions."""
    try:
        with process_unchanged():
            tasks = importlib.import_module("ultralytics.nn.tasks")
            return tasks.DetectionModel, Path(str(tasks.__file__)).parents[1] / "cfg" / "models"
    except ImportError as error:
        raise ImportError(
            f"ultralytics_model needs Ultralytics (AGPL-3.0): pip install 'fpatch[ultralytics]' ({error})"
        ) from error


@contextmanager
def _default_activation_kept() -> Iterator[None]:
    """Undo the change that a description with an `activation` makes to all networks built after it.

    Ultralytics stores that activation in the class of its convolutions. Version 8.4.113 leaves it there.
    """
    from ultralytics.nn.modules.conv import Conv

    before = Conv.default_act
    try:
        yield
    finally:
        Conv.default_act = before


@contextmanager
def process_unchanged() -> Iterator[None]:
    """Undo the changes that an import of Ultralytics makes to the process."""
    if "ultralytics" in sys.modules:
        yield
        return
    import cv2

    environment, threads, numpy_options = dict(os.environ), cv2.getNumThreads(), np.get_printoptions()
    save, image_open = torch.save, Image.open
    torch_options = vars(PRINT_OPTS).copy()
    os.environ.update(_QUIET)
    try:
        with warnings.catch_warnings():
            yield
    finally:
        os.environ.clear()
        os.environ.update(environment)
        cv2.setNumThreads(threads)
        torch.save, Image.open = save, image_open
        np.set_printoptions(**numpy_options)
        vars(PRINT_OPTS).update(torch_options)


ultralytics_model = define_loader("ultralytics_model", _load_ultralytics)

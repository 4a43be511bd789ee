"""The likely mistake behind an error inside a stage, in words: what was given, and the way out."""

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from fpatch.core.checks import nearest

_IMAGES = ("scene", "image")
_UNSAID = (KeyError, IndexError, TypeError, AttributeError, RuntimeError, NotImplementedError)
"""Errors of Python and torch; a ValueError speaks for itself."""


def explain(
    error: Exception,
    definition: Any,
    patch_params: Any,
    values: Mapping[str, Any],
    sample: Mapping[str, Any] | None = None,
) -> str | None:
    """Explain an error of a stage by its inputs; None if they tell nothing.

    Args:
        error: The error.
        definition: The contract of the stage.
        patch_params: What was given as the parameters.
        values: The values that it read.
        sample: What it drew.

    Example:
        >>> from fpatch import create
        >>> from fpatch.graph.mistakes import explain
        >>> explain(KeyError("hood"), create.pixels, {"hod": None}, {})
        "create.pixels: patch_params lacks 'hood' (did you mean 'hod'?); pipeline.init(key) makes them"
    """
    name = definition.name
    if not isinstance(error, _UNSAID) or isinstance(error, torch.OutOfMemoryError):
        return None
    if not isinstance(patch_params, Mapping):
        got = describe(patch_params)
        way = "give its .params" if hasattr(patch_params, "params") else "pipeline.init(key) makes them"
        return f"{name}: patch_params must be {{patch: tensor}}, got {got}; {way}"
    key = error.args[0] if isinstance(error, KeyError) and error.args else None
    if key is not None and definition.init is not None and key not in patch_params:
        known = nearest(str(key), patch_params)
        return f"{name}: patch_params lacks {key!r} ({known}); pipeline.init(key) makes them"
    of_patches = definition.weights is None and not isinstance(patch_params, NoParams)
    for patch, value in patch_params.items() if of_patches else ():
        if not isinstance(value, Tensor) or value.dtype != torch.float32:
            way = "take it .float()" if isinstance(value, Tensor) else "pipeline.init(key) makes them"
            return f"{name}: patch_params[{patch!r}] must be a float32 tensor, got {describe(value)}; {way}"
    for image in _IMAGES:
        if isinstance(value := values.get(image), Tensor) and (found := find_image(value)):
            return f"{name}: {image} must be float32 [b, 3, h, w] in 0..1, got {found}"
    drawn, rows = _count_rows(sample or {}), _count_rows({n: values.get(n) for n in (*_IMAGES, "quads")})
    if drawn and rows and drawn != rows:
        return (
            f"{name}: the sample has {min(drawn)} rows, and the batch {min(rows)}; draw it for this batch: "
            "pipeline.sample(key, batch)"
        )
    return None


def _count_rows(tensors: Mapping[str, Any]) -> set[int]:
    """The lengths of tensors with an axis of rows."""
    return {len(value) for value in tensors.values() if isinstance(value, Tensor) and value.ndim}


_ORIGIN = {
    **dict.fromkeys(("boxes", "box_valid", "labels", "target"), "the data lack objects; give data.objects"),
    **dict.fromkeys(("quads", "quad_valid", "quad_patch"), "it is a placement, which the data lack"),
    "patch": "add a stage of create before it, such as create.pixels",
    "image": "add a stage of implant before it, such as implant.warp",
    "detections": "add a detector before it, such as infer.detector",
    "logits": "add infer.classifier before it",
    "phase": "choose one: pipeline.at('train')",
}
"""The ways to the values that most pipelines have."""


def describe_missing(name: str, values: Mapping[str, Any]) -> str:
    """Say that a value is missing, and where it comes from.

    Example:
        >>> from fpatch.graph.mistakes import describe_missing
        >>> describe_missing("boxes", {"scene": None})
        'which is not there; the data lack objects; give data.objects'
        >>> describe_missing("imgae", {"image": None})
        "which is not there; did you mean 'image'?"
    """
    is_typo = bool(difflib.get_close_matches(name, list(values), n=1, cutoff=0.85))
    way_out = nearest(name, values) if is_typo or name not in _ORIGIN else _ORIGIN[name]
    return f"which is not there; {way_out}"


def find_image(value: Tensor) -> str | None:
    """Describe a tensor that has not the type and axes of images, with the way out; None for images."""
    got = describe(value)
    if value.ndim == 5:
        return f"{got}; the frames of a video are rows of a batch: flatten(0, 1)"
    if value.ndim == 3:
        return f"{got}; add the axis of rows: [None]"
    if value.dtype == torch.uint8:
        return f"{got}; convert it with .float() / 255"
    if value.dtype != torch.float32:
        return f"{got}; convert it with .float()"
    return f"{got}; give 4 axes" if value.ndim != 4 else None


def describe(value: Any) -> str:
    """The type of a value, and the shape of a tensor, for errors."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    if isinstance(value, Mapping):
        return f"a mapping of {', '.join(map(repr, list(value)[:5])) or 'nothing'}"
    return f"a {type(value).__name__}"


def check_mapping(what: str, value: Any, way_out: str) -> None:
    """Check that a value is a mapping.

    Raises:
        ValueError: If it is not.
    """
    if not isinstance(value, Mapping):
        raise ValueError(f"{what} must be a mapping, got {describe(value)}; {way_out}")


_BY_ROW = ("image", "logits", "scene")
"""Values with an axis of rows, which a row less would spread over the others."""


def check_rows(name: str, written: Mapping[str, Any], read: Mapping[str, Any]) -> None:
    """Check that images and logits are tensors with as many rows as what a stage read.

    Raises:
        ValueError: If they are not.

    Example:
        >>> import torch
        >>> from fpatch.graph.mistakes import check_rows
        >>> check_rows("crop", {"image": torch.zeros(1, 3, 8, 8)}, {"image": torch.zeros(2, 3, 8, 8)})
        Traceback (most recent call last):
        ValueError: crop: what apply writes as 'image' must have the 2 rows of the batch, got float32 ...
    """
    if torch.compiler.is_compiling():  # an exported graph has any number of rows
        return
    rows = _count_rows({n: read.get(n) for n in (*_BY_ROW, "quads", "boxes", "image_id")})
    for own in (own for own in _BY_ROW if own in written and rows):
        value = written[own]
        if not isinstance(value, Tensor) or not value.ndim or len(value) not in rows:
            what = f"{name}: what apply writes as {own!r} must have the {min(rows)} rows of the batch"
            raise ValueError(f"{what}, got {describe(value)}")


def swapped(names: tuple[str, ...]) -> bool:
    """Return whether the names of a function's arguments tell another order than that of the call."""
    params, batch = ("patch_params", "params"), ("values", "batch")
    if len(names) == 2:
        return names[0] in params or names[1] in batch
    return names[0] in batch or names[-1] in params


def check_device(what: str, device: Any) -> torch.device:
    """Return a device; refuse a type, which a network of another library takes there.

    Raises:
        ValueError: For anything that names no device.

    Example:
        >>> import torch
        >>> from fpatch.graph.mistakes import check_device
        >>> check_device("pipeline.to", torch.float64)
        Traceback (most recent call last):
        ValueError: pipeline.to takes a device, got torch.float64; stages compute in float32, and ...
    """
    if isinstance(device, torch.dtype):
        raise ValueError(
            f"{what} takes a device, got {device}; stages compute in float32, and victims of a training in "
            "the type of train.precision"
        )
    try:
        return torch.device(device)
    except (TypeError, RuntimeError) as error:
        raise ValueError(f"{what} takes a device, such as 'cpu' or 'cuda', got {device!r}") from error


SHOWN = frozenset(_IMAGES)
"""Names of images: what reaches them past `patch` no control could take out."""


class NoParams(Mapping[str, Tensor]):
    """Patch parameters for a node that writes an image: reading them is an error."""

    def __init__(self, stage: object) -> None:
        """Name the stage."""
        self._stage = stage

    def __getitem__(self, name: str) -> Tensor:
        raise ValueError(
            f"{self._stage!r} writes an image and reads the patch parameters, so no control could take the "
            "patch out; make `patch` from them, and bring it into the image by a stage of fpatch.implant"
        )

    def __iter__(self) -> Iterator[str]:
        yield str(self[""])

    def __len__(self) -> int:
        return 0

"""Edit samples, and convert them to flat columns of a table and back without loss.

A field `angle_deg` [b] of node `tilt` is the column `tilt/angle_deg`. A field [b, 2, 4] is eight
columns, `tilt/x/0/0` to `tilt/x/1/3`. Samples hold float32, int64 and bool only, which JSON holds exactly.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fpatch.core.checks import check_kind, nearest
from fpatch.core.types import Batch, Sample
from fpatch.graph.keys import fold_path
from fpatch.graph.node import Node, stream_path


def draw_nodes(nodes: Mapping[str, Node], keys: Tensor, batch: Batch) -> dict[str, dict[str, Tensor]]:
    """Draw the samples of nodes from row keys [b, 2].

    Raises:
        ValueError: If the batch lacks a name that a node samples from.
    """
    sample: dict[str, dict[str, Tensor]] = {}
    for path, n in nodes.items():
        if not n.stage.definition.fields:
            continue
        try:
            sample[path] = n.stage.sample(fold_path(keys, stream_path(path, n)), n.inputs(batch))
        except KeyError as error:
            name = n.reads.get(error.args[0], error.args[0])
            raise ValueError(
                f"node {path!r} samples from {name!r}, which the batch lacks; {nearest(name, batch)}"
            ) from error
    return sample


def to_columns(sample: Sample) -> dict[str, np.ndarray]:
    """Flatten a sample into a dict of 1-D arrays of length b.

    Example:
        >>> import torch, fpatch
        >>> fpatch.to_columns({"tilt": {"on": torch.tensor([True]), "at": torch.tensor([[3, 4]])}})
        {'tilt/on': array([ True]), 'tilt/at/0': array([3]), 'tilt/at/1': array([4])}
    """
    columns: dict[str, np.ndarray] = {}
    check_kind("sample", sample, Mapping, "draw one by pipeline.sample(key, batch)")
    for name, value in sample.items():
        check_kind(f"sample[{name!r}]", value, (Mapping, Tensor), "draw one by pipeline.sample(key, batch)")
        if isinstance(value, Mapping):
            columns |= {f"{name}/{path}": column for path, column in to_columns(value).items()}
            continue
        array = value.detach().cpu().numpy()
        for index in np.ndindex(array.shape[1:]):
            columns["/".join([name, *map(str, index)])] = array[(slice(None), *index)]
    return columns


def from_columns(columns: Mapping[str, Any], device: torch.device | str | None = None) -> dict[str, Any]:
    """Restore a sample from columns: the exact inverse of `to_columns`.

    Args:
        columns: Lists or 1-D arrays of one length, by `node/field` or `node/field/index`.
        device: The device of the tensors; None for the default.

    Raises:
        ValueError: If the columns of a field leave a gap, have different lengths or hold something other than
            numbers and booleans.

    Example:
        >>> import fpatch
        >>> fpatch.from_columns({"tilt/on": [True], "tilt/at/0": [3], "tilt/at/1": [4]})
        {'tilt': {'on': tensor([True]), 'at': tensor([[3, 4]])}}
    """
    fields: dict[str, dict[tuple[int, ...], np.ndarray]] = {}
    for path, column in columns.items():
        name, index = _split(path)
        fields.setdefault(name, {})[index] = _as_array(path, column)
    sample: dict[str, Any] = {}
    for name, parts in fields.items():
        shape = tuple(np.max(list(parts), axis=0) + 1) if () not in parts else ()
        lengths = {len(c) for c in parts.values()}
        if len(parts) != int(np.prod(shape)) or len(lengths) != 1:
            raise ValueError(
                f"columns of {name!r}: found {len(parts)} of {int(np.prod(shape))}, with lengths "
                f"{sorted(lengths)}; give every column of the field, all of one length"
            )
        stacked = np.stack([parts[i] for i in np.ndindex(shape)], axis=1).reshape(-1, *shape)
        node, _, field = name.rpartition("/")
        (sample.setdefault(node, {}) if node else sample)[field] = torch.tensor(stacked, device=device)
    return sample


def override(sample: Sample, values: Mapping[str, Any]) -> dict[str, Any]:
    """Replace values of a sample, for a counterfactual.

    Args:
        sample: The sample of a stage or a pipeline.
        values: By path, `tilt/angle_deg` (or `implant/opacity/0` for a part of a field): one number, b
            numbers, or a tensor of the field's shape.

    Raises:
        ValueError: For an unknown path (with the nearest), a wrong length, or a value that the field's type
            cannot hold.

    Example:
        >>> import torch, fpatch
        >>> fpatch.override({"dim": {"stops": torch.tensor([0.5, -1.0])}}, {"dim/stops": 0.0})
        {'dim': {'stops': tensor([0., 0.])}}
    """
    check_kind("override(values)", values, Mapping, "give {path: value}")
    columns = to_columns(sample)
    for path, value in values.items():
        targets = [c for c in columns if c == path or _is_part(c, path)]
        if not targets:
            fields = {_split(c)[0] for c in columns}
            raise ValueError(f"override: no sampled value {path!r}; {nearest(path, fields)}")
        array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
        if array.ndim > 1 and array[0].size != len(targets):
            raise ValueError(
                f"override: {path!r} has {len(targets)} numbers per row, got shape {list(array.shape)}"
            )
        for column in targets:
            index = tuple(map(int, column[len(path) :].strip("/").split("/"))) if column != path else ()
            part = array[(slice(None), *index)] if array.ndim > 1 and array.ndim == 1 + len(index) else array
            columns[column] = _cast(path, part, columns[column])
    device = next((v.device for v in _tensors(sample)), None)
    return from_columns(columns, device)


def _cast(path: str, value: np.ndarray, like: np.ndarray) -> np.ndarray:
    try:
        given = np.broadcast_to(value, like.shape)
    except ValueError:
        shape = list(value.shape)
        raise ValueError(f"override: {path!r} takes one value or {len(like)}, got shape {shape}") from None
    try:
        with np.errstate(invalid="ignore", over="ignore"):
            cast = given.astype(like.dtype)
        exact = like.dtype != np.float32
        held = np.array_equal(cast, given) if exact else np.array_equal(np.isinf(cast), np.isinf(given))
    except (TypeError, ValueError, OverflowError):  # no number, or one of too many digits
        held = False
    if not held:
        raise ValueError(f"override: {path!r} holds {like.dtype} values, got {value.tolist()!r}")
    return cast


def _as_array(path: str, column: Any) -> np.ndarray:
    array = column.detach().cpu().numpy() if isinstance(column, Tensor) else np.asarray(column)
    kinds = {"f": np.float32, "i": np.int64, "u": np.int64, "b": np.bool_}
    if array.ndim != 1 or array.dtype.kind not in kinds:
        raise ValueError(f"column {path!r} must be a 1-D list of numbers or booleans, got {column!r}")
    return array.astype(kinds[array.dtype.kind])


def _is_part(column: str, path: str) -> bool:
    return column.startswith(f"{path}/") and column[len(path) + 1 :].replace("/", "").isdigit()


def _split(column: str) -> tuple[str, tuple[int, ...]]:
    """The path of a column's field, and its index in the field."""
    segments, index = column.split("/"), []
    while len(segments) > 1 and segments[-1].isdigit():
        index.insert(0, int(segments.pop()))
    return "/".join(segments), tuple(index)


def _tensors(sample: Sample) -> list[Tensor]:
    return [t for v in sample.values() for t in (_tensors(v) if isinstance(v, Mapping) else [v])]


def control(sample: Sample) -> dict[str, dict[str, Tensor]]:
    """Set every opacity of a sample to 0: the same images, cameras and noise without a patch.

    Example:
        >>> import torch, fpatch
        >>> sample = {"implant": {"opacity": torch.ones(1, 2)}, "dim": {"stops": torch.tensor([0.5])}}
        >>> fpatch.control(sample)
        {'implant': {'opacity': tensor([[0., 0.]])}, 'dim': {'stops': tensor([0.5000])}}
    """
    for what in (sample, *(sample.values() if isinstance(sample, Mapping) else ())):
        check_kind("control(sample)", what, Mapping, "draw one by pipeline.sample(key, batch)")
    return {
        path: {field: torch.zeros_like(v) if field == "opacity" else v for field, v in fields.items()}
        for path, fields in sample.items()
    }

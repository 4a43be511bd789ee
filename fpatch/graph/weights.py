"""The parameters of a pipeline in a folder: one file of tensors for each node that has some."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fpatch.core.checks import nearest
from fpatch.core.files import check_writable, write_atomic
from fpatch.core.tree import tensor_bytes
from fpatch.core.types import Params
from fpatch.graph.node import Node
from fpatch.graph.parameters import owns_weights, weights_at

_SUFFIX = ".safetensors"


class Loaded(NamedTuple):
    """The parameters read from a folder.

    Attributes:
        params: All parameters of the pipeline.
        fresh: The nodes without a file, whose parameters begin anew.
        unused: The files of no node, relative to the folder.
    """

    params: dict[str, Tensor]
    fresh: tuple[str, ...]
    unused: tuple[str, ...]


def save_params(nodes: Mapping[str, Node], folder: str | Path, params: Params) -> tuple[Path, ...]:
    """Write the parameters of each node to `folder/<path>.safetensors`.

    Returns:
        The files.

    Raises:
        ValueError: If parameters of a node are missing.
        OSError: If a file cannot be written.
    """
    root = check_writable("save(folder)", folder)
    files = []
    for path, own in _own(nodes, params).items():
        file = root / f"{path}{_SUFFIX}"
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, tensor_bytes(own, {"node": path, "stage": nodes[path].stage.definition.name}))
        files.append(file)
    return tuple(files)


def load_params(nodes: Mapping[str, Node], folder: str | Path, fresh: Params) -> Loaded:
    """Read the parameters of each node from `folder/<path>.safetensors`.

    Args:
        nodes: The nodes of the pipeline.
        folder: The folder.
        fresh: Parameters for the nodes without a file, and the form of all others.

    Raises:
        ValueError: If the folder has no file of a node, or a file is broken or lacks a name, has an unknown
            one or one of another shape or type.
    """
    root = Path(folder)
    if not root.is_dir():
        raise ValueError(f"load(folder): there is no folder {str(root)!r}")
    expected = _own(nodes, fresh)
    there = {p.relative_to(root).as_posix().removesuffix(_SUFFIX) for p in root.rglob(f"*{_SUFFIX}")}
    if not there & set(expected):
        known = nearest(next(iter(sorted(there)), ""), expected)
        raise ValueError(f"load(folder): {root} holds weights of no node; {known}")
    params = dict(fresh)
    for path in expected.keys() & there:
        params |= _read(root / f"{path}{_SUFFIX}", path, nodes[path], expected[path])
    return Loaded(
        params,
        tuple(path for path in expected if path not in there),
        tuple(f"{name}{_SUFFIX}" for name in sorted(there - expected.keys())),
    )


def _own(nodes: Mapping[str, Node], params: Params) -> dict[str, dict[str, Tensor]]:
    """The parameters of each node that has some, by its own names."""
    found: dict[str, dict[str, Tensor]] = {}
    for path, n in nodes.items():
        d = n.stage.definition
        if d.init is not None:
            if lost := [name for name in n.stage.config.names if name not in params]:
                raise ValueError(
                    f"node {path!r}: the parameters lack {lost[0]!r}; {nearest(lost[0], params)}"
                )
            found[path] = {name: params[name] for name in n.stage.config.names}
        elif owns_weights(path, n):
            found[path] = dict(weights_at(path, params))
            if not found[path]:
                raise ValueError(f"node {path!r}: the parameters hold no weights of its network")
    return found


def _read(file: Path, path: str, n: Node, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Read the parameters of a node, by their names in the pipeline."""
    try:
        found = load_file(file)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} cannot be read ({error}); restore it, or leave it out") from error
    for name, value in expected.items():
        if name not in found:
            raise ValueError(f"{file}: {name!r} of node {path!r} is missing; {nearest(name, found)}")
        own = found[name]
        if own.shape != value.shape or own.dtype != value.dtype:
            raise ValueError(
                f"{file}: {name!r} of node {path!r} must be {value.dtype} {list(value.shape)}, got "
                f"{own.dtype} {list(own.shape)}; it is of another network"
            )
        found[name] = own.to(value.device)
    if unknown := [name for name in found if name not in expected]:
        raise ValueError(f"{file}: node {path!r} has no {unknown[0]!r}; {nearest(unknown[0], expected)}")
    prefix = "" if n.stage.definition.init is not None else f"{path}/"
    return {f"{prefix}{name}": value for name, value in found.items()}

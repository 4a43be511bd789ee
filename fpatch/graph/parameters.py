"""The parameters of a pipeline: those of patches by name, and the weights of networks as `path/name`."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from fpatch.core.checks import nearest
from fpatch.core.plain import plain_torch
from fpatch.core.types import Params
from fpatch.graph.keys import fold_path
from fpatch.graph.mistakes import SHOWN, NoParams, explain
from fpatch.graph.node import Node

BUFFERS = "buffers"
"""The name by which a network's node writes its next buffers; the pipeline's name is `path/buffers`."""


def buffers_name(path: str) -> str:
    """The pipeline's name of the next buffers of the network of a node."""
    return f"{path}/{BUFFERS}"


class RowParams(Mapping[str, Tensor]):
    """Parameters of members [p, ...] repeated for each row, [p * b, ...], when they are read."""

    def __init__(self, members: Params, num_rows: int) -> None:
        """Hold the parameters of members with `num_rows` rows each."""
        self.members, self.num_rows = members, num_rows

    def __getitem__(self, name: str) -> Tensor:
        return self.members[name].repeat_interleave(self.num_rows, 0)

    def __iter__(self) -> Iterator[str]:
        return iter(self.members)

    def __len__(self) -> int:
        return len(self.members)


def weights_path(path: str, n: Node) -> str:
    """The path under which the weights of a node stand: its own, or that of the node whose it shares."""
    return getattr(n.stage.config, "share", None) or path


def owns_weights(path: str, n: Node) -> bool:
    """Return whether a node has weights of its own, and shares those of no other."""
    return n.stage.definition.weights is not None and weights_path(path, n) == path


def patches_in(params: Params) -> Params:
    """The parameters of patches, without weights of networks.

    Example:
        >>> import torch
        >>> from fpatch.graph.parameters import patches_in
        >>> list(patches_in({"hood": torch.zeros(1), "net/weight": torch.zeros(1)}))
        ['hood']
    """
    if isinstance(params, NoParams) or not isinstance(params, Mapping):
        return params
    names = {name: name for name in params if "/" not in name}
    return params if len(names) == len(params) else _pick(params, names)


def weights_at(path: str, params: Params) -> Params:
    """The weights under a path, by the names in their network.

    Example:
        >>> import torch
        >>> from fpatch.graph.parameters import weights_at
        >>> list(weights_at("a/net", {"hood": torch.zeros(1), "a/net/0.bias": torch.zeros(1)}))
        ['0.bias']
    """
    return _pick(params, {name: name[len(path) + 1 :] for name in params if name.startswith(f"{path}/")})


def own_params(path: str, n: Node, params: Params, patches: Params) -> Params:
    """The parameters that a node is handed: its weights, or those of the patches.

    Args:
        path: The path of the node.
        n: The node.
        params: All parameters.
        patches: Those of the patches.
    """
    if n.stage.definition.weights is not None:
        return weights_at(weights_path(path, n), params)
    return patches


def hidden_params(nodes: Mapping[str, Node]) -> dict[str, NoParams]:
    """Return the parameters of nodes that write an image and have no weights: none that can be read."""
    shown = {p: n for p, n in nodes.items() if SHOWN & {*n.writes.values()}}
    return {p: NoParams(n.stage) for p, n in shown.items() if n.stage.definition.weights is None}


def _pick(params: Params, names: Mapping[str, str]) -> Params:
    """These parameters, under other names."""
    if isinstance(params, RowParams):
        return RowParams(_pick(params.members, names), params.num_rows)
    return {new: params[old] for old, new in names.items()}


def init_params(nodes: Mapping[str, Node], key: Tensor) -> dict[str, Tensor]:
    """Return fresh parameters of parameterizations and networks, each from `fold_in(key, path)`.

    Raises:
        ValueError: If two parameterizations make a patch of one name.
    """
    params: dict[str, Tensor] = {}
    for path, n in nodes.items():
        d = n.stage.definition
        if d.weights is not None and owns_weights(path, n):
            own = d.weights.init(n.stage.config, fold_path(key, path))
            params |= {f"{path}/{name}": value for name, value in own.items()}
        if d.init is None:
            continue
        with plain_torch():
            made = d.init(n.stage.config, fold_path(key, path))
        if clash := set(params) & set(made):
            raise ValueError(f"{path}: an earlier node also makes the patch {min(clash)!r}; rename one")
        params |= made
    return params


def names_of_buffers(nodes: Mapping[str, Node]) -> tuple[str, ...]:
    """Return the pipeline's names of the buffers that networks in training write."""
    return tuple(dict.fromkeys(n.writes[BUFFERS] for n in nodes.values() if BUFFERS in n.writes))


def next_buffers(nodes: Mapping[str, Node], values: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the buffers that networks wrote, under the names of the parameters."""
    whole = {name.removesuffix(BUFFERS): values[name] for name in names_of_buffers(nodes)}
    return {f"{prefix}{name}": x for prefix, buffers in whole.items() for name, x in buffers.items()}


def frozen_nodes(nodes: Mapping[str, Node], params: Params) -> dict[str, Node]:
    """Return the nodes with weights, whose networks hold those of these parameters as constants.

    Raises:
        ValueError: If weights are missing, or have another shape.
    """
    made: dict[str, Node] = {}
    for path, n in nodes.items():
        d = n.stage.definition
        if d.weights is not None:
            own = weights_at(weights_path(path, n), params)
            made[path] = dataclasses.replace(n, stage=d.configured(d.weights.freeze(n.stage.config, own)))
    return made


def trainable_names(nodes: Mapping[str, Node], wrt: Sequence[str] | None) -> tuple[str, ...]:
    """Return the names of the parameters that can be trained.

    Args:
        nodes: The nodes.
        wrt: Names of patches or weights, and paths of nodes or groups; None: all.

    Raises:
        ValueError: If there is nothing of a name; it names the nearest.
    """
    names: list[str] = []
    for path, n in nodes.items():
        d = n.stage.definition
        if d.init is not None:
            names += n.stage.config.names
        if d.weights is not None and owns_weights(path, n):
            names += [f"{path}/{name}" for name in d.weights.trained(n.stage.config)]
    if wrt is None:
        return tuple(names)
    if isinstance(wrt, str):
        raise ValueError(f"wrt must be a list of names, got {wrt!r}; write [{wrt!r}]")
    if not wrt:
        raise ValueError(f"wrt is empty, and nothing would be trained; leave it out, or name some of {names}")
    chosen = [name for name in names if any(_inside(name, part) for part in wrt)]
    for part in wrt:
        if not any(_inside(name, part) for name in names):
            known = {name.rpartition("/")[0] or name for name in names}
            raise ValueError(f"wrt: nothing that is trained is called {part!r}; {nearest(part, known)}")
        if part in names and any(name.startswith(f"{part}/") for name in names):
            raise ValueError(
                f"wrt: {part!r} is a patch, and also a node or group with a network; rename one of them"
            )
    return tuple(chosen)


def _inside(name: str, part: str) -> bool:
    return name == part or name.startswith(f"{part}/")


def project_params(nodes: Mapping[str, Node], params: Params) -> dict[str, Tensor]:
    """Return the parameters that every parameterization allows and that are nearest to the given ones.

    Raises:
        ValueError: If the parameters of a patch are missing.
    """
    projected = dict(params)
    for n in nodes.values():
        if n.stage.definition.project is not None:
            try:
                projected |= n.stage.definition.project(n.stage.config, projected)
            except KeyError as error:
                raise ValueError(explain(error, n.stage.definition, params, {})) from error
    return projected

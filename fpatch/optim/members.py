"""A user's code and trained networks in a population: each call sees one member, as in a run of its own.

Stages of fpatch keep their rows apart, so that all members run at once; one that mixes rows sees those of
its member. A function may do what it likes with a patch [c, h, w], such as sum it. One run of a member tells
which shapes it expects. A trained network is called with the weights of its member.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import optree
import torch
from torch import Tensor

from fpatch.core.tree import take_rows
from fpatch.core.types import Batch, Params, Sample, Values
from fpatch.graph.functions import Function
from fpatch.graph.mistakes import NoParams
from fpatch.graph.node import Node
from fpatch.graph.parameters import BUFFERS, RowParams
from fpatch.graph.pipeline import Pipeline
from fpatch.graph.stage import Stage


class _Watched(Mapping[str, Tensor]):
    """Parameters that tell whether they were read."""

    def __init__(self, params: Params) -> None:
        self._params, self.read = params, False

    def __getitem__(self, name: str) -> Tensor:
        self.read = True
        return self._params[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._params)

    def __len__(self) -> int:
        return len(self._params)


class Alone:
    """The shapes that nodes of a user's own read in a run of one member.

    Attributes:
        shapes: The shapes of the leaves of what each node reads, by path.
        readers: The nodes that read the parameters.
        num_rows: The rows of a member.
    """

    def __init__(self, pipeline: Pipeline, want: Sequence[str]) -> None:
        """Watch the nodes of a pipeline that make the wanted values."""
        self.shapes: dict[str, list[torch.Size]] = {}
        self.readers: set[str] = set()
        self.num_rows = 0
        own = {path: n for path, n in pipeline.items() if _is_own(n)}
        self._watched = pipeline | {path: _replace(n, partial(self._watch, path)) for path, n in own.items()}
        self._want, self._looked, self._any = tuple(want), set[Any](), bool(own)

    def look(self, members: Params, sample: Sample, batch: Batch, count: int) -> None:
        """Run the first of `count` members, unless rows of these shapes were seen."""
        form = tuple((name, value.shape) for name, value in batch.items())
        if not self._any or self._looked == {form}:
            return
        self.num_rows = len(batch["image_id"]) // count
        rows = slice(0, self.num_rows)
        params = {name: value[0].detach() for name, value in members.items()}
        with torch.no_grad():
            self._watched.apply(params, take_rows(sample, rows), take_rows(dict(batch), rows), self._want)
        self._looked = {form}

    def _watch(
        self,
        path: str,
        apply: Callable[..., Any],
        config: Any,
        patch_params: Params,
        sample: Sample,
        values: Values,
    ) -> Any:
        self.shapes[path] = [leaf.shape for leaf in optree.tree_leaves(_tensors(values))]  # type: ignore[arg-type]
        params: Any = patch_params if isinstance(patch_params, NoParams) else _Watched(patch_params)
        answer = apply(config, params, sample, values)
        self.readers |= {path} if isinstance(params, _Watched) and params.read else set()
        return answer


def by_member(nodes: Pipeline, alone: Alone, count: int, in_rows: bool) -> Pipeline:
    """Return nodes of which those of a user's own are called once per member.

    A stage is not if it reads rows alone, each of which it keeps to itself as all stages do.

    Args:
        nodes: The nodes.
        alone: The shapes that they read in a run of one member.
        count: The number of members.
        in_rows: Whether they run on rows [p * b, ...], not on members [p, ...].
    """
    changed = {
        path: _replace(n, partial(_apply, alone, path, count, in_rows, n.stage.definition.traits.mixes_rows))
        for path, n in nodes.items()
        if _is_own(n)
    }
    return nodes | changed if changed else nodes


def _is_own(n: Node) -> bool:
    """Return whether a node is called per member: a user's own, but for victims and losses of patches.

    A network that is trained is too, and so is a stage that mixes rows.
    """
    d = n.stage.definition
    by_row = d.role == "victim" or d.traits.of_patch or d.module.split(".")[0] == "fpatch"
    mixes = d.weights is not None or d.traits.mixes_rows
    return isinstance(n.stage.config, Function) or mixes or not by_row


def _replace(n: Node, around: Callable[..., Any]) -> Node:
    """Return a node whose `apply` is `around(apply, ...)`."""
    apply = partial(around, n.stage.definition.apply)
    return dataclasses.replace(
        n, stage=Stage(dataclasses.replace(n.stage.definition, apply=apply), n.stage.config)
    )


def _apply(
    alone: Alone,
    path: str,
    count: int,
    in_rows: bool,
    mixes_rows: bool,
    apply: Callable[..., Any],
    config: Any,
    patch_params: Params,
    sample: Sample,
    values: Values,
) -> Any:
    """Call a node for each member, and join the rows."""
    size = alone.num_rows if in_rows else 1
    leaves, tree = optree.tree_flatten(_tensors(values))  # type: ignore[arg-type]
    read = list(zip(leaves, alone.shapes[path], strict=True))
    in_rows_alone = all(leaf.ndim == len(shape) for leaf, shape in read) and path not in alone.readers
    if in_rows_alone and not mixes_rows and not isinstance(config, Function):
        return apply(config, patch_params, sample, values)

    def member(i: int) -> Any:
        params: Params = patch_params
        if not isinstance(patch_params, NoParams):
            members = patch_params.members if isinstance(patch_params, RowParams) else patch_params
            params = {name: value[i] for name, value in members.items()}
        rows = slice(i * size, (i + 1) * size)
        own = [_own(leaf, shape, rows, count, path) for leaf, shape in read]
        given = {**values, **optree.tree_unflatten(tree, own)}
        answer = apply(config, params, take_rows(dict(sample), rows), given)
        return _in_rows(answer, size)

    return optree.tree_map(lambda *parts: torch.cat(parts), *(member(i) for i in range(count)))


def _tensors(values: Values) -> Values:
    """The values without the name of the phase."""
    return {name: value for name, value in values.items() if not isinstance(value, str)}


def _own(leaf: Tensor, shape: torch.Size, rows: slice, count: int, path: str) -> Tensor:
    """Return the part of a value that a member reads: its rows, its patch, or what all members share.

    Args:
        leaf: The value of all members.
        shape: Its shape in a run of one member.
        rows: The rows of the member.
        count: The number of members.
        path: The node that reads it.
    """
    size = rows.stop - rows.start
    if leaf.ndim == len(shape) + 1:
        return leaf[rows.start]  # without rows in a run of one member
    if leaf.shape == shape and count > 1:
        return leaf
    if leaf.ndim == len(shape) and leaf.ndim and len(leaf) == count * size:
        return leaf[rows]
    raise ValueError(
        f"population: node {path!r} reads a value of shape {list(leaf.shape)}, which is {list(shape)} for "
        "one member; write values with an axis of rows [b, ...], or train members apart"
    )


def _in_rows(answer: Any, num_rows: int) -> Any:
    """Return what a node wrote with a value that has no rows, such as a patch [c, h, w], in each row."""
    written = dict(answer[0] if isinstance(answer, tuple) else answer)

    def spread(name: str, x: Tensor) -> Tensor:
        has_none = name == BUFFERS or (name == "patch" and x.ndim == 3)
        has_rows = x.ndim > 0 and len(x) == num_rows and not has_none
        return x if has_rows else x.expand(num_rows, *x.shape)

    made = {name: optree.tree_map(partial(spread, name), value) for name, value in written.items()}
    return (made, dict(answer[1])) if isinstance(answer, tuple) else made

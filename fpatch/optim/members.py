"""Plain functions and networks in a population: each call sees one member: its rows, parameters and patch."""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import optree
import torch
from torch import Tensor

from fpatch.core.types import Params, Sample, Values
from fpatch.graph.functions import Function
from fpatch.graph.parameters import BUFFERS, RowParams
from fpatch.graph.pipeline import Pipeline
from fpatch.graph.stage import Stage


def by_member(of_rows: Pipeline, of_members: Pipeline, count: int) -> Pipeline:
    """Return the nodes of rows with each plain function, and each trained network, called once per member.

    On a CPU a loop over networks was faster than `torch.func.vmap`, which makes grouped convolutions.

    Args:
        of_rows: The nodes that run once per row.
        of_members: The nodes that run once per member; a patch from them is one for all rows of a member.
        count: The number of members.
    """
    shared = {name for n in of_members.values() for name in n.writes.values()}
    changed = {}
    for path, n in of_rows.items():
        if isinstance(n.stage.config, Function) or n.stage.definition.weights is not None:
            alike = frozenset(own for own, name in n.reads.items() if name in shared)
            apply = partial(_apply, n.stage.definition.apply, count, alike)
            definition = dataclasses.replace(n.stage.definition, apply=apply)
            changed[path] = dataclasses.replace(n, stage=Stage(definition, n.stage.config))
        shared -= set(n.writes.values())
    return of_rows | changed if changed else of_rows


def _apply(
    apply: Callable[..., Any],
    count: int,
    alike: frozenset[str],
    config: Any,
    patch_params: Params,
    sample: Sample,
    values: Values,
) -> Any:
    """Call a function for each member, and join the rows."""
    of_rows = {name: value for name, value in values.items() if name != BUFFERS}
    rows = next(len(leaf) for leaf in optree.tree_leaves((sample, of_rows)) if leaf.ndim != 3)  # type: ignore[arg-type]
    size = rows // count

    def own(name: str, leaf: Tensor, i: int) -> Tensor:
        if name == BUFFERS or (name == "patch" and leaf.ndim == 3):
            return leaf[i] if name == BUFFERS else leaf
        return leaf[i * size] if name == "patch" and name in alike else leaf[i * size : (i + 1) * size]

    def member(i: int) -> Any:
        params = patch_params
        if isinstance(params, RowParams):
            params = {name: value[i] for name, value in params.members.items()}
        drawn = optree.tree_map(lambda x: x[i * size : (i + 1) * size], dict(sample))  # type: ignore[arg-type]
        read = {n: optree.tree_map(lambda x, n=n: own(n, x, i), v) for n, v in values.items()}
        return _per_row(apply(config, params, drawn, read), size)

    return optree.tree_map(lambda *parts: torch.cat(parts), *(member(i) for i in range(count)))


def _per_row(answer: Any, num_rows: int) -> Any:
    """Return what a function wrote with a patch [c, h, w] repeated for each row."""
    written = dict(answer[0] if isinstance(answer, tuple) else answer)
    if isinstance(written.get("patch"), Mapping):
        written["patch"] = {
            name: x.expand(num_rows, *x.shape) if x.ndim == 3 else x for name, x in written["patch"].items()
        }
    if BUFFERS in written:
        written[BUFFERS] = {name: x[None] for name, x in written[BUFFERS].items()}
    return (written, dict(answer[1])) if isinstance(answer, tuple) else written

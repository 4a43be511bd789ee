"""The parameters of the parameterizations, the nodes that make a patch from what is trained."""

from collections.abc import Mapping

from torch import Tensor

from fpatch.core.plain import plain_torch
from fpatch.core.types import Params
from fpatch.graph.keys import fold_path
from fpatch.graph.mistakes import explain
from fpatch.graph.node import Node


def init_params(nodes: Mapping[str, Node], key: Tensor) -> dict[str, Tensor]:
    """Return fresh parameters of parameterizations, each from `fold_in(key, path)`.

    Raises:
        ValueError: If two of them make a patch of one name.
    """
    params: dict[str, Tensor] = {}
    for path, n in nodes.items():
        assert n.stage.definition.init is not None
        with plain_torch():
            made = n.stage.definition.init(n.stage.config, fold_path(key, path))
        if clash := set(params) & set(made):
            raise ValueError(f"{path}: an earlier node also makes the patch {min(clash)!r}; rename one")
        params |= made
    return params


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

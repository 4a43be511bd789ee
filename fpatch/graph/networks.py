"""Networks in a pipeline: shared by nodes, as they are in training, and the laws of their wiring."""

import dataclasses
from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from fpatch.core.checks import nearest
from fpatch.core.resource import Resource
from fpatch.graph.declarations import PHASE
from fpatch.graph.node import PHASES, Node, absolute
from fpatch.graph.parameters import BUFFERS, buffers_name, weights_path


def share_networks(nodes: Mapping[str, Node]) -> dict[str, Node]:
    """Give one network to all nodes that share it: by `share`, or by the same trained module.

    Raises:
        ValueError: If `share` names no node with a network above it.
    """
    made, owners = dict(nodes), dict[int, str]()
    for path, n in nodes.items():
        config = n.stage.config
        if n.stage.definition.wire is None or not hasattr(config, "share"):
            continue
        base = config.share
        if base is None and config.trainable:
            base = owners.setdefault(id(config.model), path) if isinstance(config.model, nn.Module) else path
        if base is None or base == path:
            continue
        base = absolute(path, path.rpartition("/")[0], base)
        above = list(nodes)[: list(nodes).index(path)]
        if base not in nodes and isinstance(config.model, nn.Module):
            continue  # a part of a pipeline, without the node that has the weights
        owner = made[base] if base in above else None
        if owner is None or not hasattr(owner.stage.config, "share") or owner.stage.config.share is not None:
            raise ValueError(
                f"node {path!r}: share = {base!r} names no node above it that has a network of its own; "
                f"{nearest(base, above)}"
            )
        own = {"model": owner.stage.config.model, "trainable": owner.stage.config.trainable, "share": base}
        made[path] = dataclasses.replace(
            n, stage=n.stage.definition.configured(dataclasses.replace(config, **own))
        )
    _check_apart(made)
    return made


def _check_apart(nodes: Mapping[str, Node]) -> None:
    """Check that no other network holds a tensor of one that is trained: it would not follow the training.

    Raises:
        ValueError: Naming both nodes and the tensor.
    """
    trained = {weights_path(path, n): path for path, n in nodes.items() if n.stage.definition.weights}
    owners: dict[int, tuple[str, str, str]] = {}
    for path, n in nodes.items() if trained else ():
        owner = weights_path(path, n)
        for name, tensor in ((name, t) for model in _networks(n) for name, t in _tensors(model)):
            first, first_path, first_name = owners.setdefault(id(tensor), (owner, path, name))
            if first != owner and {first, owner} & {*trained}:
                raise ValueError(
                    f"node {path!r}: its {name!r} is also {first_name!r} of node {first_path!r}, and one of "
                    "them is trained: the other would not follow. Give what they share a node of its own and "
                    "trainable=True in every node, or give one of them copy.deepcopy(model)"
                )


def _networks(n: Node) -> list[nn.Module]:
    """The networks in the settings of a node; none is loaded for this alone."""
    values = (getattr(n.stage.config, f.name) for f in dataclasses.fields(n.stage.config))
    held = [vars(v).get("value") if isinstance(v, Resource) else v for v in values]
    return [v for v in held if isinstance(v, nn.Module)]


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a network that a training may change."""
    yield from ((name, p) for name, p in model.named_parameters() if p.requires_grad)
    yield from model.named_buffers()


def choose_phase(nodes: Mapping[str, Node], phase: str) -> dict[str, Node]:
    """Return the nodes alive in a phase; in training, those with weights behave as in training.

    Raises:
        ValueError: If the phase is neither standard nor named by a node, or no node is alive in it.
    """
    known = {*PHASES, *(q for n in nodes.values() for q in n.phases or ())}
    asked = {p: phase if PHASE in n.reads.values() else None for p, n in nodes.items()}
    alive = {
        p: dataclasses.replace(n, phases=None, phase=asked[p]) for p, n in nodes.items() if n.alive(phase)
    }
    if phase == "eval":
        raise ValueError("phase 'eval' means two phases; choose 'validation' or 'test'")
    if not alive or phase not in known:
        others = {q for q in known - {phase} if any(n.alive(q) for n in nodes.values())}
        raise ValueError(f"no node is alive in phase {phase!r}; {nearest(phase, others)}")
    return {path: _learning(path, n, alive) if phase == "train" else n for path, n in alive.items()}


def _learning(path: str, n: Node, alive: Mapping[str, Node]) -> Node:
    """Return a node as it is in training: one with weights also writes its next buffers."""
    d = n.stage.definition
    if d.weights is None:
        return n
    owner = weights_path(path, n)
    if owner not in alive:
        raise ValueError(
            f"phase 'train': node {path!r} shares the network of {owner!r}, which does not run in training; "
            "swap the two, or change their phases"
        )
    stage = d.configured(d.weights.learn(n.stage.config))
    names = {own: buffers_name(owner) for own in (BUFFERS,) if own in stage.definition.writes}
    reads = {own: name for own, name in names.items() if own in stage.definition.optional}
    return dataclasses.replace(n, stage=stage, reads={**n.reads, **reads}, writes={**n.writes, **names})


def check_networks(nodes: Mapping[str, Node]) -> None:
    """Check that networks read and write something, and that those which are trained run in training."""
    for path, n in nodes.items():
        d = n.stage.definition
        if d.wire is None:
            continue
        for verb, names in (("reads", d.reads), ("writes", d.writes)):
            if not names:
                raise ValueError(
                    f"node {path!r} ({d.name}) {verb} nothing; name its values: node(..., {verb}=[...])"
                )
        if d.weights is None:
            continue
        if n.phases is not None and "train" not in n.phases:
            raise ValueError(
                f"node {path!r} is trained, but runs in {' and '.join(sorted(n.phases))} only; add 'train' "
                "to its phases, or leave out trainable"
            )
        if "patch" in n.writes.values() and "patch" not in n.reads.values():
            raise ValueError(
                f"node {path!r} ({d.name}) writes 'patch' from its own weights, which no control could "
                "replace; take create.generator, or another parameterization"
            )

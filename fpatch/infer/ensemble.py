"""Several victims of one patch, each with its own losses and metrics."""

import dataclasses
from collections.abc import Mapping, Sequence, Set

from fpatch.graph.node import Node, node
from fpatch.graph.stage import Stage


def ensemble(
    victims: Mapping[str, Stage | Node] | Sequence[Stage | Node], stages: Mapping[str, Stage | Node]
) -> dict[str, dict[str, Node]]:
    """Make a group of nodes for each victim: the victim, and the stages that read its answers.

    A group writes names of its own: `small` in `victims` writes `victims/small/detections` and the term
    `victims/small/vanish`. `losses.ensemble` joins this term with those of the other groups. Names that no
    stage of the group writes, such as `image` and `boxes`, are read from the pipeline.

        "victims": infer.ensemble(
            {"small": infer.detector(a), "large": infer.detector(b)},
            {"vanish": losses.vanish(), "suppress": node(infer.suppress(), phases={"eval"}), ...},
        ),
        "vanish": losses.ensemble(("victims/small/vanish", "victims/large/vanish"), how="worst"),

    Args:
        victims: The victims by name; a list is numbered from 0. A victim that is a node with phases runs in
            these phases only, and so do its stages: `node(c, phases={"eval"})` is evaluated, not trained on.
        stages: The stages that follow every victim, in order.

    Returns:
        The groups by the victim's name, as a part of a pipeline.

    Raises:
        ValueError: If there is no victim, or one of the stages is called "victim".

    Example:
        >>> import torch
        >>> from fpatch import infer, losses
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 5)).eval()
        >>> groups = infer.ensemble([infer.classifier(model)] * 2, {"loss": losses.misclassify()})
        >>> {name: list(group) for name, group in groups.items()}
        {'0': ['victim', 'loss'], '1': ['victim', 'loss']}
        >>> groups["0"]["loss"].reads["logits"]  # the group's own
        './logits'
    """
    named = victims if isinstance(victims, Mapping) else {str(i): v for i, v in enumerate(victims)}
    if not named:
        raise ValueError("ensemble(victims): there must be at least one")
    if "victim" in stages:
        raise ValueError("ensemble(stages): 'victim' is the name of the victim itself; rename that stage")
    return {name: _group(victim, stages) for name, victim in named.items()}


def _group(victim: Stage | Node, stages: Mapping[str, Stage | Node]) -> dict[str, Node]:
    first = victim if isinstance(victim, Node) else node(victim)
    group: dict[str, Node] = {}
    written: set[str] = set()
    for name, part in {"victim": first, **stages}.items():
        n = part if isinstance(part, Node) else node(part)
        phases = first.phases if n.phases is None else n.phases & (first.phases or n.phases)
        if phases is None or phases:
            reads = _local(n.reads, written)
            written |= set(n.writes.values())
            group[name] = dataclasses.replace(n, phases=phases, reads=reads, writes=_local(n.writes, written))
    return group


def _local(names: Mapping[str, str], written: Set[str]) -> dict[str, str]:
    return {own: f"./{name}" if name in written else name for own, name in names.items()}

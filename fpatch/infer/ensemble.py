"""Several victims of one patch, each with losses and metrics of its own."""

import dataclasses
from collections.abc import Mapping, Sequence, Set

from fpatch.graph.node import Node, node
from fpatch.graph.stage import Stage


def ensemble(
    victims: Mapping[str, Stage | Node] | Sequence[Stage | Node], stages: Mapping[str, Stage | Node]
) -> dict[str, dict[str, Node]]:
    """A group of a pipeline for each victim: the victim, and all that reads its answers.

    What is written in a group belongs to it: the group `small` of `victims` writes
    `victims/small/detections` and the term `victims/small/vanish`, which `losses.ensemble` joins with those
    of the other groups. What no stage of the group writes (`image`, `boxes`) is that of the pipeline.

        "victims": infer.ensemble(
            {"small": infer.detector(a), "large": infer.detector(b)},
            {"vanish": losses.vanish(), "suppress": node(infer.suppress(), phases={"eval"}), ...},
        ),
        "vanish": losses.ensemble(("victims/small/vanish", "victims/large/vanish"), how="worst"),

    Args:
        victims: By name; a list is numbered from 0. A victim that is a node with phases is alive in these
            only, and so are its stages: `node(c, phases={"eval"})` is measured and never trained on.
        stages: What every victim is followed by, in order.

    Raises:
        ValueError: If there is no victim, or one of the stages is called "victim".
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

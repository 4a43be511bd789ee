"""The prose and the Mermaid flowchart of a pipeline."""

import re
from collections.abc import Mapping

from fpatch.graph.names import required_names
from fpatch.graph.node import Node
from fpatch.graph.stage import ALL


def describe(nodes: Mapping[str, Node]) -> str:
    """One line per node: path, stage, reads, writes and phases; `name?` marks an optional read."""
    width = max(map(len, nodes), default=0)
    lines = []
    for path, n in nodes.items():
        phases = "" if n.phases is None else f"  [{', '.join(sorted(n.phases))}]"
        optional = n.stage.definition.optional
        names = (
            "everything" if r == ALL else f"{r}?" if own in optional else r for own, r in n.reads.items()
        )
        reads = ", ".join(names) or "params"
        writes = ", ".join(n.writes.values()) or "nothing"
        lines.append(f"{path:<{width}}  {n.stage!r}: {reads} -> {writes}{phases}")
    return "\n".join(lines)


def mermaid(nodes: Mapping[str, Node]) -> str:
    """A Mermaid flowchart, with a subgraph for every group and the arrows of all phases."""
    ids = {path: f"n{i}" for i, path in enumerate(nodes)}
    groups: dict[str, list[str]] = {}
    for path in nodes:
        groups.setdefault(path.rpartition("/")[0], []).append(path)
    lines = ["flowchart TD"]
    for i, (group, paths) in enumerate(groups.items()):
        lines += [f'  subgraph g{i}["{_label(group)}"]'] if group else []
        lines += [
            f'  {ids[p]}["{_label(p.rpartition("/")[2])}<br/>{_label(nodes[p].stage.definition.name)}"]'
            for p in paths
        ]
        lines += ["  end"] if group else []
    inputs: dict[str, str] = {}
    arrows: dict[str, None] = {}
    for alive in _phases(nodes):
        arrows |= dict.fromkeys(_arrows(alive, ids, inputs))
    lines += [f'  {node_id}(["{_label(name)}"])' for name, node_id in inputs.items()]
    return "\n".join([*lines, *arrows])


def _label(name: str) -> str:
    """Return a name as text of Mermaid, in which quotes end it and angle brackets begin HTML."""
    return re.sub("[^\\w ./*:()+-]", lambda found: f"#{ord(found.group())};", name)


def _phases(nodes: Mapping[str, Node]) -> list[dict[str, Node]]:
    """The nodes of every phase that differs from the earlier ones."""
    phases = sorted({p for n in nodes.values() for p in n.phases or ()}) or ["inference"]
    alive = [{p: n for p, n in nodes.items() if n.alive(phase)} for phase in phases]
    return [nodes for i, nodes in enumerate(alive) if nodes not in alive[:i]]


def _arrows(alive: Mapping[str, Node], ids: Mapping[str, str], inputs: dict[str, str]) -> list[str]:
    """The arrows of one phase; names that the batch must hold are added to `inputs`."""
    last: dict[str, str] = {}
    arrows: list[str] = []
    required = required_names(alive)
    for path, n in alive.items():
        for name in n.reads.values():
            if name in required and name not in last:
                last[name] = inputs.setdefault(name, f"in_{len(inputs)}")
            if name in last:
                arrows.append(f"  {last[name]} -- {_label(name)} --> {ids[path]}")
        last.update({name: ids[path] for name in n.writes.values()})
    return arrows

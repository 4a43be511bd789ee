"""The prose and the Mermaid flowchart of a pipeline.

Convention:
    Groups are nested subgraphs. The shape of a node is its role, and its border says whether its weights are
    trained or frozen. Values of the batch enter, together where the same nodes read them. Values that no node
    reads leave. An arrow carries all values that one node hands to another. The legend lists what occurs.
"""

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal, NamedTuple

from fpatch.graph.names import required_names
from fpatch.graph.node import Node
from fpatch.graph.stage import ALL

_SHAPES = {
    "stage": ("[", "]"),
    "parameterization": ("{{", "}}"),
    "victim": ("[[", "]]"),
    "loss": ("[\\", "/]"),
    "metric": ("[(", ")]"),
    "drawing": ("[/", "/]"),
    "input": ("([", "])"),
    "output": (">", "]"),
}
"""The brackets of a node by its role, in the order of the legend."""

_STYLES = {
    "trained": "fill:#fbe3d3,stroke:#d55e00,stroke-width:3px,color:#222222",
    "frozen": "fill:#dcecf7,stroke:#0072b2,stroke-width:2px,stroke-dasharray:6 4,color:#222222",
}
"""The fill and the border of nodes with weights."""

_LEGEND_COLUMNS = 4
_DEEPEST = 20
"""Groups that are drawn in one another; the names of nodes further in keep the rest of their path."""
_EVERYTHING = "all values so far"


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
    """A Mermaid flowchart of nodes, with the arrows of all phases in which they run.

    Example:
        >>> import fpatch
        >>> from fpatch.graph.diagram import mermaid
        >>> parts = {"camera": {"dim": fpatch.compose.exposure(), "blur": fpatch.compose.blur()}}
        >>> print(mermaid(fpatch.pipeline(parts)).partition("  subgraph legend")[0])
        flowchart TD
          in0(["image"])
          subgraph g0["camera"]
            n0["dim<br/>compose.exposure"]
            n1["blur<br/>compose.blur"]
          end
          out0>"image"]
          in0 --> n0
          n0 -->|"image"| n1
          n1 --> out0
        <BLANKLINE>
    """
    ids = {path: f"n{i}" for i, path in enumerate(nodes)}
    flow = _Flow({}, {}, {})
    for alive in _phases(nodes):
        _follow(alive, flow)
    together: dict[tuple[str, ...], list[str]] = {}
    for name, readers in flow.inputs.items():
        together.setdefault(tuple(sorted(readers)), []).append(name)
    lines = ["flowchart TD"]
    lines += [f"  in{i}{_shape('input', names)}" for i, names in enumerate(together.values())]
    lines += _draw_group(nodes, ids, list(nodes), "", itertools.count())
    lines += [f"  out{i}{_shape('output', names)}" for i, names in enumerate(flow.outputs.values())]
    for i, readers in enumerate(together):
        lines += [f"  in{i} --> {ids[path]}" for path in readers]
    for (source, target), names in flow.arrows.items():
        lines.append(f'  {ids[source]} -->|"{_label(", ".join(names))}"| {ids[target]}')
    lines += [f"  {ids[path]} --> out{i}" for i, path in enumerate(flow.outputs)]
    legend = _draw_legend(nodes, bool(together), bool(flow.outputs))
    return "\n".join([*lines, *legend, *_draw_styles(nodes, ids)])


class _Flow(NamedTuple):
    """The values that nodes hand on.

    Attributes:
        inputs: The readers of each value that the batch must hold.
        arrows: The names of the values by (writer, reader).
        outputs: The names that no node reads, by the path of their writer.
    """

    inputs: dict[str, dict[str, None]]
    arrows: dict[tuple[str, str], dict[str, None]]
    outputs: dict[str, dict[str, None]]


def _follow(alive: Mapping[str, Node], flow: _Flow) -> None:
    """Add the values of one phase."""
    writers: dict[str, str] = {}
    unread: dict[str, str] = {}
    required = required_names(alive)
    for path, n in alive.items():
        for name in n.reads.values():
            if name == ALL:
                flow.inputs.setdefault(_EVERYTHING, {})[path] = None
            elif name in writers:
                flow.arrows.setdefault((writers[name], path), {})[name] = None
                unread.pop(name, None)
            elif name in required:
                flow.inputs.setdefault(name, {})[path] = None
        for name in n.writes.values():
            writers[name] = unread[name] = path
    for name, path in unread.items():
        flow.outputs.setdefault(path, {})[name] = None


def _draw_group(
    nodes: Mapping[str, Node], ids: Mapping[str, str], paths: list[str], group: str, numbers: Iterator[int]
) -> Iterator[str]:
    """Yield the nodes of a group in their order, and its groups where their first nodes stand."""
    indent, drawn = "  " * (group.count("/") + 1), set[str]()
    for path in paths:
        name = path.removeprefix(group)
        first, _, rest = name.partition("/")
        if not rest or group.count("/") == _DEEPEST:
            yield f"{indent}{ids[path]}{_shape(role_of(nodes[path]), _describe(name, nodes[path]))}"
        elif first not in drawn:
            drawn.add(first)
            inner = f"{group}{first}/"
            yield f'{indent}subgraph g{next(numbers)}["{_label(first)}"]'
            yield from _draw_group(nodes, ids, [p for p in paths if p.startswith(inner)], inner, numbers)
            yield f"{indent}end"


def _describe(name: str, n: Node) -> list[str]:
    """Return the lines of a node: its name, its stage, and its phases if it names any."""
    phases = [] if n.phases is None else [f"only {', '.join(sorted(n.phases))}"]
    return [name, n.stage.definition.name, *phases]


def _shape(role: str, lines: Iterable[str]) -> str:
    left, right = _SHAPES[role]
    return f'{left}"{"<br/>".join(map(_label, lines))}"{right}'


def role_of(n: Node) -> str:
    """Return the role of a node in a diagram; one with trained patches is a parameterization.

    Example:
        >>> import fpatch
        >>> from fpatch.graph.diagram import role_of
        >>> role_of(fpatch.node(fpatch.create.pixels({"hood": (3, 8, 8)})))
        'parameterization'
    """
    d = n.stage.definition
    return "parameterization" if d.init is not None else d.role


def weights_of(n: Node) -> Literal["trained", "frozen"] | None:
    """Return whether the weights of a node are trained or frozen; None for a node without weights.

    Patches are trained. A setting `model` is a frozen network, unless the stage declares weights and its
    setting `trainable` is true.

    Example:
        >>> import fpatch, torch
        >>> from fpatch.graph.diagram import weights_of
        >>> weights_of(fpatch.node(fpatch.create.pixels({"hood": (3, 8, 8)})))
        'trained'
        >>> weights_of(fpatch.node(fpatch.infer.classifier(torch.nn.Identity().eval())))
        'frozen'
    """
    d, config = n.stage.definition, n.stage.config
    declared = getattr(d, "weights", None) is not None
    if d.init is not None or (declared and getattr(config, "trainable", False)):
        return "trained"
    return "frozen" if declared or d.role == "victim" or hasattr(config, "model") else None


def _draw_legend(nodes: Mapping[str, Node], has_inputs: bool, has_outputs: bool) -> Iterator[str]:
    """Yield a subgraph, in columns, with a node for every shape and every border that occurs."""
    occurring = {role_of(n) for n in nodes.values()}
    occurring |= {role for role, there in (("input", has_inputs), ("output", has_outputs)) if there}
    weights = {weights_of(n) for n in nodes.values()}
    shown = {role: _shape(role, [role]) for role in _SHAPES if role in occurring}
    shown |= {kind: _shape("stage", [f"{kind} weights"]) for kind in _STYLES if kind in weights}
    yield from ('  subgraph legend["legend"]', "    direction TB")
    yield from (f"    legend_{name}{shape}" for name, shape in shown.items())
    below = list(shown)[_LEGEND_COLUMNS:]
    yield from (f"    legend_{a} ~~~ legend_{b}" for a, b in zip(shown, below, strict=False))
    yield "  end"


def _draw_styles(nodes: Mapping[str, Node], ids: Mapping[str, str]) -> Iterator[str]:
    """Yield the styles of the nodes with weights."""
    for kind, look in _STYLES.items():
        if styled := [ids[path] for path, n in nodes.items() if weights_of(n) == kind]:
            yield f"  classDef {kind} {look}"
            yield f"  class {','.join([*styled, f'legend_{kind}'])} {kind}"


def _label(name: str) -> str:
    """Return a name as text of Mermaid, in which quotes end it and angle brackets begin HTML."""
    return re.sub("[^\\w ,./*:()+-]", lambda found: f"#{ord(found.group())};", name)


def _phases(nodes: Mapping[str, Node]) -> list[dict[str, Node]]:
    """The nodes of every phase that differs from the earlier ones."""
    phases = sorted({p for n in nodes.values() for p in n.phases or ()}) or ["inference"]
    alive = [{p: n for p, n in nodes.items() if n.alive(phase)} for phase in phases]
    return [nodes for i, nodes in enumerate(alive) if nodes not in alive[:i]]

"""Nodes: a stage and its wiring, and how groups of parts become one flat mapping of paths to nodes."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Union

from fpatch.core.checks import nearest
from fpatch.core.schema import encode
from fpatch.core.types import Batch
from fpatch.graph.functions import from_function
from fpatch.graph.stage import ALL, Stage

PHASES = ("train", "validation", "test", "inference", "export")
"""The standard phases; any other string names a phase of one's own."""

Part = Union[Stage, "Node", Callable[..., Any], Mapping[str, Any]]
"""What a pipeline is made of; a mapping is a group of parts."""


@dataclass(frozen=True)
class Node:
    """A stage and its wiring: which names of the pipeline it reads and writes, when, and from which draws.

    Attributes:
        stage: What is computed.
        phases: When it is alive; None for always.
        reads: The stage's own name of each value it reads -> the pipeline's name.
        writes: The stage's own name of each value it writes -> the pipeline's name.
        stream: Replaces the node's name in the derivation of its keys; nodes with one stream share a draw.
    """

    stage: Stage
    phases: frozenset[str] | None
    reads: Mapping[str, str]
    writes: Mapping[str, str]
    stream: str | None = None

    def alive(self, phase: str) -> bool:
        """Whether the node takes part in a phase."""
        return self.phases is None or phase in self.phases

    def inputs(self, values: Batch) -> dict[str, Any]:
        """What the stage is given, under its own names."""
        if self.stage.definition.reads == (ALL,):
            return dict(values)
        return {own: values[name] for own, name in self.reads.items() if name in values}

    @property
    def required(self) -> list[str]:
        """What must be there, as the pipeline names it."""
        return [self.reads[own] for own in self.stage.definition.reads if own != ALL]

    @property
    def terms(self) -> tuple[str, ...]:
        """What a loss node writes, as the pipeline names it."""
        return tuple(self.writes.values()) if self.stage.definition.role == "loss" else ()


def node(
    stage: Stage | Callable[..., Any],
    *,
    phases: Iterable[str] | None = None,
    reads: Sequence[str] | Mapping[str, str] | None = None,
    writes: Sequence[str] | Mapping[str, str] | None = None,
    stream: str | None = None,
) -> Node:
    """Wire a stage into a pipeline; a bare stage means `node(stage)` with the names that it declares.

    Args:
        stage: A stage, or a plain function (see `fpatch.graph.functions.from_function`), for which `writes`
            is required.
        phases: Phases in which it is alive; `"eval"` means validation and test. None: all.
        reads: The pipeline's names of what it reads: a list is positional, a mapping goes by the stage's
            names.
        writes: Likewise for what it writes.
        stream: Name to derive keys from in place of the node's own.

    Raises:
        ValueError: If a list has the wrong length, or a mapping has a name that the stage does not declare.
    """
    if not isinstance(stage, Stage):
        if not callable(stage):
            raise ValueError(f"node(...): expected a stage or a function, got {type(stage).__name__}")
        if isinstance(reads, Mapping) or isinstance(writes, Mapping) or writes is None:
            raise ValueError(
                f"node({getattr(stage, '__name__', stage)!r}): a plain function has no names of its own; "
                "give writes=[...] (and reads=[...], or it is given all values) as lists"
            )
        stage = from_function(stage, None if reads is None else tuple(reads), tuple(writes))
    d = stage.definition
    if phases is not None:
        names = (phases,) if isinstance(phases, str) else tuple(phases)
        phases = frozenset(p for n in names for p in (("validation", "test") if n == "eval" else (n,)))
    return Node(
        stage,
        phases,
        _wire(d.name, "reads", d.reads, tuple(n for n in d.optional if n not in d.reads), reads),
        _wire(d.name, "writes", d.writes, (), writes),
        stream,
    )


def _wire(
    stage: str,
    verb: str,
    declared: tuple[str, ...],
    optional: tuple[str, ...],
    given: Sequence[str] | Mapping[str, str] | None,
) -> dict[str, str]:
    if given is None:
        given = {}
    elif not isinstance(given, Mapping):
        if len(given) != len(declared):
            raise ValueError(
                f"{stage} {verb} {len(declared)} names, {list(declared)}, but {verb}={list(given)} has "
                f"{len(given)}"
            )
        given = dict(zip(declared, given, strict=True))
    for name in given:
        if name not in (*declared, *optional):
            raise ValueError(f"{stage} {verb} no {name!r}; {nearest(name, (*declared, *optional))}")
    return {name: given.get(name, name) for name in (*declared, *optional)}


def flatten(parts: Mapping[str, Part], group: str = "") -> dict[str, Node]:
    """The nodes of nested mappings by path, with names that begin with `./` or `../` made absolute."""
    nodes: dict[str, Node] = {}
    for name, part in parts.items():
        path = f"{group}{name}"
        if not all(name.split("/")) or any(c in name for c in "*."):
            raise ValueError(f"pipeline: {path!r} is no name for a node; leave out '.', '*' and a spare '/'")
        found = flatten(part, f"{path}/") if isinstance(part, Mapping) else {path: _place(path, name, part)}
        if twice := nodes.keys() & found:
            raise ValueError(f"pipeline: there are two nodes {min(twice)!r}; rename one")
        nodes |= found
    return nodes


def _place(path: str, name: str, part: Any) -> Node:
    """The node at a path, from what was written there."""
    if not isinstance(part, Stage | Node):
        if not callable(part):
            raise ValueError(f"pipeline[{path!r}]: expected a stage, node, function or mapping, got {part!r}")
        part = node(part, writes=(name,))
    n = part if isinstance(part, Node) else node(part)
    base = path.rpartition("/")[0]
    return dataclasses.replace(
        n,
        reads={own: _absolute(path, base, name) for own, name in n.reads.items()},
        writes={own: _absolute(path, base, name) for own, name in n.writes.items()},
    )


def _absolute(path: str, base: str, name: str) -> str:
    if not name.startswith(("./", "../")):
        return name
    segments = base.split("/") if base else []
    for segment in name.split("/"):
        if segment == "..":
            if not segments:
                raise ValueError(
                    f"node {path!r}: {name!r} leads above the top of the pipeline; drop one '../'"
                )
            segments.pop()
        elif segment != ".":
            segments.append(segment)
    return "/".join(segments)


def required_names(nodes: Mapping[str, Node]) -> tuple[str, ...]:
    """The names that a batch must hold: nodes read them, and no earlier node writes them."""
    written: set[str] = set()
    needed: dict[str, None] = {}
    for n in nodes.values():
        needed.update({r: None for r in n.required if r not in written})
        written |= {name for own, name in n.writes.items() if own not in n.stage.definition.optional}
    return tuple(needed)


def inside(path: str, group: str) -> bool:
    """Whether a path is this one, or lies in the group of this name."""
    return path == group or path.startswith(f"{group}/")


def stream_path(path: str, n: Node) -> str:
    """The path that a node's keys are derived from."""
    return path if n.stream is None else n.stream


def encode_node(n: Node) -> dict[str, Any]:
    """The JSON values of a node: its stage, its settings, and what of its wiring is not as declared."""
    d = n.stage.definition
    written: dict[str, Any] = {"stage": d.name, **encode(n.stage.config)}
    if n.phases is not None:
        written["phases"] = sorted(n.phases)
    for verb, wiring in (("reads", n.reads), ("writes", n.writes)):
        renamed = {own: name for own, name in wiring.items() if own != name}
        written |= {verb: renamed} if renamed else {}
    return written | ({"stream": n.stream} if n.stream is not None else {})

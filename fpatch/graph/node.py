"""Nodes, a stage with its wiring, and the flat mapping of paths to nodes that groups become."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Union

from fpatch.core.checks import check_kind, nearest
from fpatch.core.names import show
from fpatch.core.schema import encode
from fpatch.core.types import Batch
from fpatch.graph.declarations import PHASE
from fpatch.graph.foreign import find_stage
from fpatch.graph.functions import from_function, is_importable
from fpatch.graph.stage import ALL, Stage

PHASES = ("train", "validation", "test", "inference", "export")
"""The standard phases; any other string is a phase of the user's own."""

Part = Union[Stage, "Node", Callable[..., Any], Mapping[str, Any]]
"""A part of a pipeline; a mapping is a group of parts."""


@dataclass(frozen=True)
class Node:
    """A stage and its wiring: its names in the pipeline, its phases and its stream of keys.

    Attributes:
        stage: The stage.
        phases: The phases in which it is alive; None for all.
        reads: The stage's own name of each value it reads -> the pipeline's name.
        writes: The stage's own name of each value it writes -> the pipeline's name.
        stream: Replaces the node's name in the derivation of its keys; nodes with one stream share a draw.
        phase: The phase that was chosen, for a node that reads `phase`.

    Example:
        >>> import fpatch
        >>> n = fpatch.node(fpatch.compose.exposure(), phases="eval", writes=["dim"])
        >>> n.writes, sorted(n.phases), n.alive("train")
        ({'image': 'dim'}, ['test', 'validation'], False)
    """

    stage: Stage
    phases: frozenset[str] | None
    reads: Mapping[str, str]
    writes: Mapping[str, str]
    stream: str | None = None
    phase: str | None = None

    def alive(self, phase: str) -> bool:
        """Return whether the node runs in a phase."""
        check_kind("phase", phase, str, "name one, such as 'train'")
        return self.phases is None or phase in self.phases

    def inputs(self, values: Batch) -> dict[str, Any]:
        """The values that the stage reads, under its own names."""
        if self.stage.definition.reads == (ALL,):
            return dict(values)
        given = values if self.phase is None else {PHASE: self.phase, **values}
        return {own: given[name] for own, name in self.reads.items() if name in given}

    @property
    def required(self) -> list[str]:
        """The pipeline's names that the node needs."""
        names = [self.reads[own] for own in self.stage.definition.reads if own != ALL]
        return [name for name in names if name != PHASE]

    @property
    def terms(self) -> tuple[str, ...]:
        """The pipeline's names of the terms that a loss node writes."""
        return tuple(self.writes.values()) if self.stage.definition.role == "loss" else ()


def node(
    stage: Stage | Callable[..., Any],
    *,
    phases: Iterable[str] | None = None,
    reads: Sequence[str] | Mapping[str, str] | None = None,
    writes: Sequence[str] | Mapping[str, str] | None = None,
    stream: str | None = None,
) -> Node:
    """Wire a stage into a pipeline; a bare stage means `node(stage)`, with the declared names.

    Args:
        stage: A stage, or a plain function (see `fpatch.graph.functions.from_function`), for which `writes`
            is required.
        phases: Phases in which it is alive; `"eval"` means validation and test. None: all.
        reads: The pipeline's names of the values that it reads: a list in the declared order, or a mapping
            from the stage's names.
        writes: Likewise for the values that it writes.
        stream: The name from which keys are derived, in place of the node's own.

    Raises:
        ValueError: If a list has the wrong length, or a mapping has a name that the stage does not declare.

    Example:
        >>> import fpatch
        >>> night = fpatch.node(fpatch.compose.exposure(), reads={"image": "scene"}, writes=["night"])
        >>> fpatch.pipeline({"night": night})
        night  compose.exposure(stops=(-1.0, 1.0)): scene -> night
    """
    if not isinstance(stage, Stage):
        if (found := find_stage(stage)) or not callable(stage):
            got = found or type(stage).__name__
            raise ValueError(f"node(...): expected a stage or a function, got {got}")
        if isinstance(reads, Mapping) or isinstance(writes, Mapping) or writes is None:
            raise ValueError(
                f"node({getattr(stage, '__name__', stage)!r}): a plain function declares no names; give "
                "writes=[...] as a list, and reads=[...] unless it reads all values"
            )
        stage = from_function(stage, None if reads is None else tuple(reads), tuple(writes))
    if stage.definition.wire is not None:
        declared = (stage.definition.reads, reads), (stage.definition.writes, writes)
        stage = stage.definition.configured(stage.definition.wire(stage.config, reads, writes))
        reads, writes = (names if own or isinstance(names, Mapping) else None for own, names in declared)
    d = stage.definition
    if phases is not None:
        names = (phases,) if isinstance(phases, str) else tuple(phases)
        for name in names:
            check_phase(f"node({d.name}): phases", name)
        phases = frozenset(p for n in names for p in (("validation", "test") if n == "eval" else (n,)))
    return Node(
        stage,
        phases,
        _wire(d.name, "reads", d.reads, tuple(n for n in d.optional if n not in d.reads), reads),
        _wire(d.name, "writes", d.writes, (), writes),
        stream,
    )


def check_phase(field: str, name: str) -> None:
    """Check that a phase is no misspelt one: a phase of the user's own does not look like a standard one.

    Raises:
        ValueError: With the phase that was meant.

    Example:
        >>> from fpatch.graph.node import check_phase
        >>> check_phase("describe --phase", "trian")
        Traceback (most recent call last):
        ValueError: describe --phase: no phase 'trian'; did you mean 'train'? For a phase of your own, take...
    """
    if not isinstance(name, str) or not name.strip() or show(name) != name:
        raise ValueError(f"{field} must be names such as 'train' or 'eval', got {name!r:.80}")
    known = {phase: phase for phase in (*PHASES, "eval")} | _MEANT
    plain = name.strip().casefold()
    found = known.get(plain) or next(iter(get_close_matches(plain, (*PHASES, "eval"), n=1, cutoff=0.8)), None)
    if found is not None and name not in (*PHASES, "eval"):
        raise ValueError(
            f"{field}: no phase {name!r}; did you mean {found!r}? For a phase of your own, take a name that "
            "is less similar"
        )


_MEANT = {
    "training": "train",
    "testing": "test",
    "val": "validation",
    "evaluate": "eval",
    "evaluation": "eval",
}
"""Other words for the standard phases."""


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
    """Flatten nested mappings into nodes by path; names that begin with `./` or `../` become absolute."""
    nodes: dict[str, Node] = {}
    for name, part in parts.items():
        path = f"{group}{name}"
        if not all(name.split("/")) or any(c in name for c in "*.") or show(name) != name:
            raise ValueError(
                f"pipeline: {path!r} is no name of a node; leave out '.', '*', a spare '/' and escapes"
            )
        found = flatten(part, f"{path}/") if isinstance(part, Mapping) else {path: _place(path, name, part)}
        if twice := nodes.keys() & found:
            raise ValueError(f"pipeline: there are two nodes {min(twice)!r}; rename one")
        nodes |= found
    return nodes


def _place(path: str, name: str, part: Any) -> Node:
    """The node of a part, with absolute names."""
    if not isinstance(part, Stage | Node):
        if (found := find_stage(part)) or not callable(part):
            got = found or repr(part)
            raise ValueError(f"pipeline[{path!r}]: expected a stage, node, function or mapping, got {got}")
        part = node(part, writes=(name,))
    n = part if isinstance(part, Node) else node(part)
    base = path.rpartition("/")[0]
    return dataclasses.replace(
        n,
        reads={own: absolute(path, base, name) for own, name in n.reads.items()},
        writes={own: absolute(path, base, name) for own, name in n.writes.items()},
    )


def absolute(path: str, base: str, name: str) -> str:
    """Return the absolute form of a name that a node in the group `base` gives."""
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


def number_nodes(nodes: Mapping[str, Node], names: Sequence[str]) -> dict[str, Node]:
    """Return nodes with the numbers of classes in place of their names, in the order of `names`.

    Raises:
        ValueError: If a setting names another class; the error names the node and the nearest class.
    """
    made = dict(nodes)
    for path, n in nodes.items():
        try:
            made[path] = dataclasses.replace(n, stage=n.stage.with_classes(names))
        except ValueError as error:
            raise ValueError(f"node {path!r}: {error}") from error
    return made


def check_phased(nodes: Mapping[str, Node]) -> None:
    """Check that no node names phases, so that it is known which nodes run.

    Raises:
        ValueError: Naming the first such node.
    """
    for path, n in nodes.items():
        if n.phases is not None:
            raise ValueError(f"node {path!r} names phases; choose a phase first: pipeline.at('train')")


def slice_paths(paths: tuple[str, ...], part: slice) -> tuple[str, ...]:
    """Return the paths of a slice by numbers, or by paths, both ends included.

    Raises:
        KeyError: If there is no node of a path.
        ValueError: If the first node stands below the last.
    """
    numbers: list[int | None] = []
    for end, after in (part.start, 0), (part.stop, 1):
        if isinstance(end, str) and end not in paths:
            raise KeyError(f"no node {end!r}; {nearest(end, paths)}")
        numbers.append(paths.index(end) + after if isinstance(end, str) else end)
    first, last = numbers
    if isinstance(part.start, str) and isinstance(part.stop, str) and first >= last:  # type: ignore[operator]
        raise ValueError(f"the node {part.start!r} stands below {part.stop!r}; swap the two")
    return paths[first : last : part.step]


def inside(path: str, group: str) -> bool:
    """Return whether a path is this one, or lies in the group of this name."""
    return path == group or path.startswith(f"{group}/")


def stream_path(path: str, n: Node) -> str:
    """The path from which a node's keys are derived."""
    return path if n.stream is None else n.stream


def encode_node(n: Node) -> dict[str, Any]:
    """The JSON values of a node: its stage, its settings, and the wiring that differs from the declared."""
    d = n.stage.definition
    named = is_importable(n.stage.config)
    written: dict[str, Any] = {"stage": d.name, **({} if named else encode(n.stage.config))}
    if n.phases is not None:
        written["phases"] = sorted(n.phases)
    if named:
        names = {} if d.reads == (ALL,) else {"reads": list(n.reads.values())}
        return written | names | {"writes": list(n.writes.values())} | _stream(n)
    for verb, wiring in (("reads", n.reads), ("writes", n.writes)):
        renamed = {own: name for own, name in wiring.items() if own != name}
        written |= {verb: renamed} if renamed else {}
    return written | _stream(n)


def _stream(n: Node) -> dict[str, str]:
    return {} if n.stream is None else {"stream": n.stream}

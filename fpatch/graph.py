"""Pipelines: named graphs of stages, and the only code that runs them.

The way of the data is one function, `Pipeline.apply`: params -> patch -> image -> detections -> losses. It is
the same for training, evaluation, control and replay, which differ in the sample that they hand in.
"""

import dataclasses
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Union

import torch
from torch import Tensor

from fpatch import random
from fpatch.checks import nearest
from fpatch.patches import check_only
from fpatch.schema import encode
from fpatch.stage import ALL, Stage, from_function, row_keys
from fpatch.types import Batch, Params, Sample, Values

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
        stage: A stage, or a plain function (see `fpatch.stage.from_function`), for which `writes` is
            required.
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


class Pipeline(Mapping[str, Node]):
    """An immutable mapping of paths to nodes, which run in the order written.

    `pipeline(patch_params, key, batch) -> (out, sample)` has the form of a stage. A pipeline whose nodes name
    phases runs after `at(phase)`, which picks the nodes once.
    """

    def __init__(self, nodes: Mapping[str, Node], phase: str | None = None) -> None:
        self._given, self._nodes = dict(nodes), _filled(dict(nodes))
        self._phase = phase
        self._needed: dict[tuple[tuple[str, ...], tuple[str, ...]], tuple[str, ...]] = {}
        _check_streams(self._nodes)
        phases = {p for n in self._nodes.values() for p in n.phases or ()}
        for p in (*PHASES, *sorted(phases - set(PHASES))) if phase is None else (phase,):
            _check_phase(self._nodes, p)

    # -- the graph as a mapping ---------------------------------------------------------------------------

    def __getitem__(self, path: str) -> Node:
        if path not in self._nodes:
            raise KeyError(f"no node {path!r}; {nearest(path, self._nodes)}")
        return self._nodes[path]

    def __iter__(self) -> Iterator[str]:
        return iter(self._nodes)

    def __len__(self) -> int:
        return len(self._nodes)

    def __or__(self, other: Mapping[str, Part]) -> "Pipeline":
        """Replace nodes in their place, and append new ones."""
        return Pipeline({**self._nodes, **_flatten(other, "")}, self._phase)

    def without(self, *paths: str) -> "Pipeline":
        """The same without these nodes, or groups of nodes; the draws of the others do not change."""
        for path in paths:
            if not any(_inside(p, path) for p in self):
                raise KeyError(f"no node {path!r}; {nearest(path, self)}")
        kept = {p: n for p, n in self.items() if not any(_inside(p, path) for path in paths)}
        return Pipeline(kept, self._phase)

    def upto(self, path: str) -> "Pipeline":
        """The nodes up to and including this one."""
        order = list(self)
        return Pipeline({p: self[p] for p in order[: order.index(self._known(path)) + 1]}, self._phase)

    def since(self, path: str) -> "Pipeline":
        """The nodes from this one on; what the earlier ones wrote becomes input."""
        order = list(self)
        return Pipeline({p: self[p] for p in order[order.index(self._known(path)) :]}, self._phase)

    def at(self, phase: str) -> "Pipeline":
        """The nodes alive in a phase.

        Raises:
            ValueError: If it is no standard phase and no node names it, or if no node is alive in it.
        """
        known = {*PHASES, *(q for n in self.values() for q in n.phases or ())}
        alive = {p: dataclasses.replace(n, phases=None) for p, n in self.items() if n.alive(phase)}
        if phase == "eval":
            raise ValueError("'eval' stands for two phases; choose 'validation' or 'test'")
        if not alive or phase not in known:
            raise ValueError(f"no node is made for phase {phase!r}; {nearest(phase, known)}")
        return Pipeline(alive, phase)

    def to(self, device: torch.device | str) -> "Pipeline":
        """The same with copies of its networks on a device, to run there: see `fpatch.stage.Stage.to`."""
        moved = {p: dataclasses.replace(n, stage=n.stage.to(device)) for p, n in self.items()}
        return Pipeline(moved, self._phase)

    def required(self, phase: str | None = None) -> tuple[str, ...]:
        """Names that must be in the batch: read, and written by no earlier node."""
        written: set[str] = set()
        needed: dict[str, None] = {}
        for n in (self if phase is None else self.at(phase)).values():
            needed.update({r: None for r in _required_reads(n) if r not in written})
            written |= {name for own, name in n.writes.items() if own not in n.stage.definition.optional}
        return tuple(needed)

    @property
    def terms(self) -> tuple[str, ...]:
        """Names of the loss terms that the nodes write."""
        return tuple(t for n in self.values() for t in n.terms)

    @property
    def summaries(self) -> tuple[str, ...]:
        """Paths of the metrics that gather rows; see `fpatch.stage.Summary`."""
        return tuple(p for p, n in self.items() if n.stage.definition.summary is not None)

    @property
    def parameterizations(self) -> tuple[str, ...]:
        """Paths of the nodes that read the patch parameters into a patch."""
        return tuple(p for p, n in self.items() if n.stage.definition.init is not None)

    # -- what is trained ----------------------------------------------------------------------------------

    def init(self, key: Tensor) -> dict[str, Tensor]:
        """Fresh parameters of all parameterizations, each from `fold_in(key, path)`."""
        params: dict[str, Tensor] = {}
        for path in self.parameterizations:
            stage = self[path].stage
            assert stage.definition.init is not None
            made = stage.definition.init(stage.config, fold_path(key, path))
            if clash := set(params) & set(made):
                raise ValueError(
                    f"{path}: the patch {min(clash)!r} is made by an earlier node too; rename one"
                )
            params |= made
        return params

    def project(self, params: Params) -> dict[str, Tensor]:
        """The nearest parameters that every parameterization allows."""
        projected = dict(params)
        for path in self.parameterizations:
            stage = self[path].stage
            if stage.definition.project is not None:
                projected |= stage.definition.project(stage.config, projected)
        return projected

    # -- running ------------------------------------------------------------------------------------------

    def __call__(
        self, patch_params: Params, key: Tensor, batch: Batch, want: Sequence[str] | None = None
    ) -> tuple[Values, Sample]:
        """`sample`, then `apply`."""
        sample = self.sample(key, batch)
        return self.apply(patch_params, sample, batch, want), sample

    def sample(self, key: Tensor, batch: Batch) -> dict[str, dict[str, Tensor]]:
        """Draw for every node, from a key [2] or from row keys [b, 2].

        A node `a/b` draws from `fold_in(fold_in(row_keys, "a"), "b")`.

        Returns:
            `{path: {field: [b, ...]}}`, with an entry for every node that draws.
        """
        self._check_ready()
        keys = row_keys(key, batch)
        drawing = {path: n for path, n in self.items() if n.stage.definition.fields}
        sample = {}
        for path, n in drawing.items():
            try:
                sample[path] = n.stage.sample(fold_path(keys, stream_path(path, n)), n.inputs(batch))
            except KeyError as error:
                name = n.reads.get(error.args[0], error.args[0])
                raise ValueError(
                    f"node {path!r} draws for {name!r}, which the batch lacks; {nearest(name, batch)}"
                ) from error
        return sample

    def apply(
        self, patch_params: Params, sample: Sample, batch: Batch, want: Sequence[str] | None = None
    ) -> Values:
        """Run the nodes on a sample already held, from `sample`, edited, or read from a log.

        Args:
            patch_params: What is trained.
            sample: `{path: {field: [b, ...]}}`.
            batch: Named tensors [b, ...].
            want: Names to return; nodes that they do not need are not run. None for all.
        """
        values = dict(batch)
        for _, _, written in self._run(patch_params, sample, values, want):
            values.update(written)
        return values if want is None else self._pick(values, want)

    def observe(
        self, patch_params: Params, sample: Sample, batch: Batch, want: Sequence[str]
    ) -> tuple[Values, dict[str, Values]]:
        """`apply`, and beside it what every metric with a summary reads, by path, under its own names."""
        values, seen = dict(batch), {}
        for path, n, written in self._run(patch_params, sample, values, want, self.summaries):
            if path in self.summaries:
                seen[path] = n.inputs(values)
            values.update(written)
        return self._pick(values, want), seen

    def _pick(self, values: Values, want: Sequence[str]) -> Values:
        missing = [name for name in want if name not in values]
        if missing:
            known = {*values, *(name for n in self.values() for name in n.writes.values())}
            raise ValueError(f"want={list(want)}: no value {missing[0]!r}; {nearest(missing[0], known)}")
        return {name: values[name] for name in want}

    def trace(self, patch_params: Params, sample: Sample, batch: Batch) -> dict[str, dict[str, Any]]:
        """What each node wrote, `{path: {name: value}}`."""
        values, trace = dict(batch), {}
        for path, _, written in self._run(patch_params, sample, values, None):
            values.update(written)
            trace[path] = written
        return trace

    def _run(
        self,
        patch_params: Params,
        sample: Sample,
        values: Values,
        want: Sequence[str] | None,
        paths: tuple[str, ...] = (),
    ) -> Iterator[tuple[str, Node, dict[str, Any]]]:
        self._check_ready()
        for path in self if want is None else self._need(tuple(want), paths):
            n = self[path]
            if path not in sample and n.stage.definition.fields:
                raise ValueError(f"sample has no entry for the node {path!r}; {nearest(path, sample)}")
            try:
                own = n.stage.written(patch_params, sample.get(path, {}), n.inputs(values))
            except (ValueError, TypeError, RuntimeError, KeyError) as error:
                error.add_note(f"in node {path!r}: {n.stage!r}")
                raise
            yield path, n, {n.writes[name]: value for name, value in own.items()}

    def _need(self, want: tuple[str, ...], paths: tuple[str, ...] = ()) -> tuple[str, ...]:
        """Paths of the nodes that the wanted names, and these nodes themselves, need, in order."""
        if (want, paths) not in self._needed:
            needed, open_names = [], set(want)
            for path, n in reversed(list(self.items())):
                if path in paths or open_names & set(n.writes.values()) or ALL in open_names:
                    needed.append(path)
                    open_names |= set(n.reads.values())
            self._needed[want, paths] = tuple(reversed(needed))
        return self._needed[want, paths]

    # -- talking about it ---------------------------------------------------------------------------------

    @property
    def config(self) -> dict[str, Any]:
        """JSON values from which `fpatch.build` makes the same pipeline."""
        return {path: _encode_node(n) for path, n in self.items()}

    @property
    def given_config(self) -> dict[str, Any]:
        """The same as it was given: settings that follow from the patches are still None where they were."""
        return {path: _encode_node(n) for path, n in self._given.items()}

    def describe(self) -> str:
        """One line per node: path, stage, what it reads (`name?`: if it is there) and writes, phases."""
        width = max(map(len, self), default=0)
        lines = []
        for path, n in self.items():
            phases = "" if n.phases is None else f"  [{', '.join(sorted(n.phases))}]"
            optional = n.stage.definition.optional
            names = (
                "everything" if r == ALL else f"{r}?" if own in optional else r for own, r in n.reads.items()
            )
            reads = ", ".join(names) or "params"
            writes = ", ".join(n.writes.values()) or "nothing"
            lines.append(f"{path:<{width}}  {n.stage!r}: {reads} -> {writes}{phases}")
        return "\n".join(lines)

    __repr__ = describe

    def mermaid(self, phase: str | None = None) -> str:
        """A Mermaid flowchart of a phase, with a subgraph for every group."""
        pipeline = self if phase is None else self.at(phase)
        ids = {path: f"n{i}" for i, path in enumerate(pipeline)}
        groups: dict[str, list[str]] = {}
        for path in pipeline:
            groups.setdefault(path.rpartition("/")[0], []).append(path)
        lines = ["flowchart TD"]
        for i, (group, paths) in enumerate(groups.items()):
            lines += [f'  subgraph g{i}["{group}"]'] if group else []
            lines += [
                f'  {ids[p]}["{p.rpartition("/")[2]}<br/>{pipeline[p].stage.definition.name}"]' for p in paths
            ]
            lines += ["  end"] if group else []
        inputs: dict[str, str] = {}
        arrows: dict[str, None] = {}
        for alive in pipeline._alive():
            last: dict[str, str] = {}
            required = Pipeline(alive, phase).required() if alive else ()
            for path, n in alive.items():
                for name in n.reads.values():
                    if name in required and name not in last:
                        last[name] = inputs.setdefault(name, f"in_{len(inputs)}")
                    if name in last:
                        arrows[f"  {last[name]} -- {name} --> {ids[path]}"] = None
                last.update({name: ids[path] for name in n.writes.values()})
        lines += [f'  {node_id}(["{name}"])' for name, node_id in inputs.items()]
        return "\n".join([*lines, *arrows])

    def _alive(self) -> list[dict[str, Node]]:
        """The nodes of every phase that differs from the ones before."""
        phases = sorted({p for n in self.values() for p in n.phases or ()}) or ["inference"]
        alive = [{p: n for p, n in self.items() if n.alive(phase)} for phase in phases]
        return [nodes for i, nodes in enumerate(alive) if nodes not in alive[:i]]

    def _known(self, path: str) -> str:
        self[path]
        return path

    def _check_ready(self) -> None:
        phased = [p for p, n in self.items() if n.phases is not None]
        if phased:
            raise ValueError(f"node {phased[0]!r} names phases; choose one first: pipeline.at('train')")


def pipeline(parts: Mapping[str, Part]) -> Pipeline:
    """Make a pipeline of stages, nodes, plain functions and nested mappings, which run in the order written.

    Names are global; `./x` in a group `a` is `a/x`, and `../x` is `x` one level up.

    Raises:
        ValueError: With both nodes, if a node reads what only a later one writes, two nodes write one name
            and the second does not read it, a geometric stage would leave boxes behind, or the patch could
            reach the image past any control.
    """
    return Pipeline(_flatten(parts, ""))


def fold_path(keys: Tensor, path: str) -> Tensor:
    """Fold a path into keys, once per segment."""
    for segment in path.split("/"):
        keys = random.fold_in(keys, segment)
    return keys


def stream_path(path: str, n: Node) -> str:
    """The path that a node's keys are derived from."""
    return path if n.stream is None else n.stream


def control(sample: Sample) -> dict[str, dict[str, Tensor]]:
    """The same sample with every opacity 0: same photographs, cameras and noise, and no patch."""
    return {
        path: {field: torch.zeros_like(v) if field == "opacity" else v for field, v in fields.items()}
        for path, fields in sample.items()
    }


def _flatten(parts: Mapping[str, Part], group: str) -> dict[str, Node]:
    nodes: dict[str, Node] = {}
    for name, part in parts.items():
        path = f"{group}{name}"
        if not name or any(c in name for c in "*."):
            raise ValueError(f"pipeline: {path!r} is no name for a node; leave out '.' and '*'")
        if isinstance(part, Mapping):
            nodes |= _flatten(part, f"{path}/")
            continue
        if not isinstance(part, (Stage, Node)):
            if not callable(part):
                raise ValueError(
                    f"pipeline[{path!r}]: expected a stage, node, function or mapping, got {part!r}"
                )
            part = node(part, writes=(name,))
        n = part if isinstance(part, Node) else node(part)
        base = path.rpartition("/")[0]
        nodes[path] = dataclasses.replace(
            n,
            reads={own: _absolute(path, base, name) for own, name in n.reads.items()},
            writes={own: _absolute(path, base, name) for own, name in n.writes.items()},
        )
    return nodes


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


def _inside(path: str, group: str) -> bool:
    return path == group or path.startswith(f"{group}/")


def _required_reads(n: Node) -> list[str]:
    return [n.reads[own] for own in n.stage.definition.reads if own != ALL]


def _encode_node(n: Node) -> dict[str, Any]:
    d = n.stage.definition
    written: dict[str, Any] = {"stage": d.name, **encode(n.stage.config)}
    if n.phases is not None:
        written["phases"] = sorted(n.phases)
    for verb, wiring in (("reads", n.reads), ("writes", n.writes)):
        renamed = {own: name for own, name in wiring.items() if own != name}
        written |= {verb: renamed} if renamed else {}
    return written | ({"stream": n.stream} if n.stream is not None else {})


def _filled(nodes: dict[str, Node]) -> dict[str, Node]:
    """Settings left None that follow from the names of the patches; `only` must be among them."""
    names = tuple(
        name for n in nodes.values() if n.stage.definition.init is not None for name in n.stage.config.names
    )
    if not names:
        return nodes
    for path, n in nodes.items():
        check_only(f"{n.stage.definition.name}(only)", getattr(n.stage.config, "only", None), names)
        if n.stage.definition.fill is not None:
            config = n.stage.definition.fill(n.stage.config, names)
            nodes[path] = dataclasses.replace(n, stage=n.stage.definition.configured(config))
    return nodes


def _check_streams(nodes: Mapping[str, Node]) -> None:
    seen: dict[tuple[int, ...], tuple[str, str]] = {}
    for path, n in nodes.items():
        stream = stream_path(path, n)
        crc = tuple(zlib.crc32(s.encode()) for s in stream.split("/"))
        other, other_stream = seen.setdefault(crc, (path, stream))
        if other_stream != stream:
            raise ValueError(f"nodes {other!r} and {path!r} have one crc32 and would share draws; rename one")
        group = next((p for p in nodes if p != path and _inside(path, p)), None)
        if group is not None:
            raise ValueError(
                f"nodes {group!r} and {path!r}: one is inside the other, and their draws could be the same; "
                f"rename {group!r}"
            )


def _check_phase(nodes: Mapping[str, Node], phase: str) -> None:
    """The laws of wiring, for the nodes alive in one phase."""
    alive = {p: n for p, n in nodes.items() if n.alive(phase)}
    writers: dict[str, str] = {}
    carries_patch: dict[str, str] = {"patch": "the patch"}
    for index, (path, n) in enumerate(alive.items()):
        d = n.stage.definition
        later = [(p, m) for p, m in list(alive.items())[index + 1 :]]
        for name in n.reads.values():
            maker = next(
                (p for p, m in later if name in m.writes.values() and name not in m.reads.values()), None
            )
            if name not in writers and maker is not None:
                raise ValueError(
                    f"phase {phase!r}: node {path!r} reads {name!r}, which only the later node {maker!r} "
                    f"writes; move {path!r} below {maker!r}"
                )
        for name in n.writes.values():
            if name in writers and name not in n.reads.values():
                raise ValueError(
                    f"phase {phase!r}: nodes {writers[name]!r} and {path!r} both write {name!r}, and the "
                    f"second does not read it; rename one with node(..., writes=...) or drop one"
                )
        _check_control(phase, path, n, carries_patch)
        if d.geometric:
            _check_moved(phase, path, n, later, writers)
        for name in {"patch", "image"} & set(n.reads.values()) & set(writers):
            if not d.gradient and phase == "train":
                raise ValueError(
                    f"phase 'train': node {path!r} passes no gradient on to {name!r} of {writers[name]!r}; "
                    'take it out of training (phases = ["eval"] in TOML, node(..., phases="eval") in '
                    "Python), or choose a differentiable stage"
                )
        writers.update(dict.fromkeys(n.writes.values(), path))


def _check_control(phase: str, path: str, n: Node, carries: dict[str, str]) -> None:
    """Whatever brings the patch into a picture must be able to leave it out."""
    d = n.stage.definition
    source = next((carries[r] for r in n.reads.values() if r in carries), None)
    if source is None and ALL in n.reads.values() and d.role == "stage":
        source = "all values, the patch among them,"
    if source is None or "opacity" in d.fields:
        return
    for name in n.writes.values():
        if name in ("image", "scene"):
            raise ValueError(
                f"phase {phase!r}: node {path!r} ({d.name}) reads {source} and writes {name!r}, so that no "
                "control could take the patch out; declare `opacity` [b, k] in its sample and honor it"
            )
        carries[name] = f"{name!r}, made from the patch,"


def _check_moved(
    phase: str, path: str, n: Node, later: list[tuple[str, Node]], writers: Mapping[str, str]
) -> None:
    """A stage that moves pixels must move the corners and boxes that somebody reads after it."""
    moved = n.writes.values()
    if "scene" in moved and "image" in writers and "image" not in moved:
        raise ValueError(
            f"phase {phase!r}: node {path!r} ({n.stage.definition.name}) moves 'scene', of which "
            f"{writers['image']!r} has made 'image' before; move {path!r} above it, or have it "
            "move the image: node(..., reads={'scene': 'image'}, writes={'scene': 'image'})"
        )
    for name in ("quads", "boxes"):
        reader = next((p for p, m in later if name in m.reads.values()), None)
        if reader is not None and name not in n.writes.values():
            raise ValueError(
                f"phase {phase!r}: node {path!r} ({n.stage.definition.name}) moves the pixels but not "
                f"{name!r}, which {reader!r} reads; use a stage that moves both, or put it after {reader!r}"
            )

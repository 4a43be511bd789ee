"""The laws of wiring, checked when a pipeline is made, and settings derived from the patches."""

import dataclasses
import zlib
from collections.abc import Mapping

from fpatch.core.names import check_distinct
from fpatch.graph.declarations import PHASE
from fpatch.graph.drawings import check_drawn
from fpatch.graph.networks import check_networks
from fpatch.graph.node import PHASES, Node, inside, stream_path
from fpatch.graph.shapes import check_forms
from fpatch.graph.stage import ALL
from fpatch.ops.detections import MAKERS
from fpatch.ops.patches import check_only


def fill_settings(nodes: Mapping[str, Node]) -> dict[str, Node]:
    """Fill the settings left None that are derived from the names of the patches.

    Raises:
        ValueError: If `only` of a stage names an unknown patch, or two patches would be one file.
    """
    names = tuple(
        name for n in nodes.values() if n.stage.definition.init is not None for name in n.stage.config.names
    )
    made = dict(nodes)
    if not names:
        return made
    check_distinct("pipeline: the patches of the parameterizations", dict.fromkeys(names))
    for path, n in nodes.items():
        check_only(f"{n.stage.definition.name}(only)", getattr(n.stage.config, "only", None), names)
        if n.stage.definition.fill is not None:
            config = n.stage.definition.fill(n.stage.config, names)
            made[path] = dataclasses.replace(n, stage=n.stage.definition.configured(config))
    return made


def check_wiring(nodes: Mapping[str, Node], phase: str | None = None) -> None:
    """Check that no nodes share draws, and that the laws of wiring hold in a phase, or in all for None.

    Raises:
        ValueError: With both nodes; see `fpatch.pipeline`.
    """
    check_distinct("pipeline", nodes)
    _check_streams(nodes)
    for path, n in nodes.items():
        if PHASE in n.writes.values():
            raise ValueError(f"node {path!r} writes {PHASE!r}, the name of the phase; rename what it writes")
    check_networks(nodes)
    named = {p for n in nodes.values() for p in n.phases or ()}
    for p in (*PHASES, *sorted(named - set(PHASES))) if phase is None else (phase,):
        _check_phase(nodes, p)
        check_forms({path: n for path, n in nodes.items() if n.alive(p)}, p)


def _check_streams(nodes: Mapping[str, Node]) -> None:
    seen: dict[tuple[int, ...], tuple[str, str]] = {}
    for path, n in nodes.items():
        stream = stream_path(path, n)
        crc = tuple(zlib.crc32(s.encode()) for s in stream.split("/"))
        other, other_stream = seen.setdefault(crc, (path, stream))
        if other_stream != stream:
            raise ValueError(
                f"nodes {other!r} and {path!r} have the same crc32 and would share draws; rename one"
            )
        group = next((p for p in nodes if p != path and inside(path, p)), None)
        if group is not None:
            raise ValueError(
                f"nodes {group!r} and {path!r}: one is inside the other, and their draws could be the same; "
                f"rename {group!r}"
            )


def _check_phase(nodes: Mapping[str, Node], phase: str) -> None:
    """Check the laws of wiring for the nodes alive in one phase."""
    alive = {p: n for p, n in nodes.items() if n.alive(phase)}
    writers: dict[str, str] = {}
    entries: dict[str, frozenset[str]] = {}
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
        _check_entries(nodes, phase, path, entries, writers)
        check_drawn(phase, path, n, alive, writers)
        if d.traits.geometric:
            _check_moved(phase, path, n, later, writers)
        for name in {"patch", "image"} & set(n.reads.values()) & set(writers):
            if not d.traits.gradient and d.role != "drawing" and phase == "train":
                raise ValueError(
                    f"phase 'train': node {path!r} passes no gradient on to {name!r} of {writers[name]!r}; "
                    'take it out of training (phases = ["eval"] in TOML, node(..., phases="eval") in '
                    "Python), or choose a differentiable stage"
                )
        writers.update(dict.fromkeys(n.writes.values(), path))


def _check_control(phase: str, path: str, n: Node, carries: dict[str, str]) -> None:
    """Check that a node which brings the patch into an image declares an opacity."""
    d = n.stage.definition
    source = next((carries[r] for r in n.reads.values() if r in carries), None)
    if source is None and ALL in n.reads.values() and d.role == "stage":
        source = "all values, including the patch,"
    if source is None or "opacity" in d.fields:
        return
    for name in n.writes.values():
        if name in ("image", "scene"):
            raise ValueError(
                f"phase {phase!r}: node {path!r} ({d.name}) reads {source} and writes {name!r}, so no "
                "control could take the patch out; declare `opacity` [b, k] in its sample, and apply it"
            )
        carries[name] = f"{name!r}, made from the patch,"


def _check_entries(
    nodes: Mapping[str, Node],
    phase: str,
    path: str,
    entries: dict[str, frozenset[str]],
    writers: Mapping[str, str],
) -> None:
    """Check that the entries which a node needs are there, and add those that it gives.

    Args:
        nodes: All nodes, by path.
        phase: The phase.
        path: The node.
        entries: The known entries of each value so far, by the pipeline's names; it is updated.
        writers: The last writer of each value so far.
    """
    n = nodes[path]
    traits = n.stage.definition.traits
    # in training a metric is skipped, and where suppression is too, nothing asks for it
    for needed in traits.needs if phase in ("validation", "test") else ():
        own, _, entry = needed.partition("/")
        name = n.reads[own]
        givers = [p for p, m in nodes.items() if entry in _given(m).get(name, ())]
        if entry not in entries.get(name, {entry}):
            there = " and ".join(map(repr, sorted(entries[name])))
            way_out = _way_to(entry, path, givers, nodes, phase)
            raise ValueError(
                f"phase {phase!r}: node {path!r} ({n.stage.definition.name}) needs the entry {entry!r} of "
                f"{name!r}, but {writers[name]!r} leaves only {there}; {way_out}"
            )
    given = _given(n)
    for own, name in n.writes.items():
        if name not in given:
            entries.pop(name, None)  # any
        elif own not in n.stage.definition.reads:
            entries[name] = given[name]
        elif n.reads[own] in entries:
            entries[name] = entries[n.reads[own]] | given[name]


def _given(n: Node) -> dict[str, frozenset[str]]:
    """The entries that a node adds, by the pipeline's name of their value."""
    added: dict[str, frozenset[str]] = {}
    for path in n.stage.definition.traits.gives:
        own, _, entry = path.partition("/")
        added[n.writes[own]] = added.get(n.writes[own], frozenset()) | {entry}
    return added


def _way_to(entry: str, path: str, givers: list[str], nodes: Mapping[str, Node], phase: str) -> str:
    """The change that brings a missing entry to a node."""
    if not givers:
        return MAKERS.get(entry, "add the stage that makes it")
    if not nodes[givers[0]].alive(phase):
        return f"{givers[0]!r} makes it, in other phases; add {phase!r} to them"
    return f"move {path!r} below {givers[0]!r}, which makes it"


def _check_moved(
    phase: str, path: str, n: Node, later: list[tuple[str, Node]], writers: Mapping[str, str]
) -> None:
    """Check that a geometric stage moves the corners and boxes that later nodes read."""
    moved = n.writes.values()
    if "scene" in moved and "image" in writers and "image" not in moved:
        raise ValueError(
            f"phase {phase!r}: node {path!r} ({n.stage.definition.name}) moves 'scene', but "
            f"{writers['image']!r} has already made 'image' from it; move {path!r} above, or wire it "
            "to the image: node(..., reads={'scene': 'image'}, writes={'scene': 'image'})"
        )
    for name in ("quads", "boxes"):
        reader = next((p for p, m in later if name in m.reads.values()), None)
        if reader is not None and name not in n.writes.values():
            raise ValueError(
                f"phase {phase!r}: node {path!r} ({n.stage.definition.name}) moves the pixels but not "
                f"{name!r}, which {reader!r} reads; use a stage that moves both, or put it after {reader!r}"
            )

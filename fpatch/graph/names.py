"""The names of values: those that nodes require, leave and need for others."""

from collections.abc import Iterable, Mapping, Sequence

from fpatch.core.checks import nearest
from fpatch.core.types import Values
from fpatch.graph.node import Node
from fpatch.graph.stage import ALL


def required_names(nodes: Mapping[str, Node]) -> tuple[str, ...]:
    """The names that a batch must hold: nodes read them, and no earlier node writes them."""
    written: set[str] = set()
    needed: dict[str, None] = {}
    for n in nodes.values():
        needed.update({r: None for r in n.required if r not in written})
        written |= {name for own, name in n.writes.items() if own not in n.stage.definition.optional}
    return tuple(needed)


def available_names(nodes: Mapping[str, Node], given: Iterable[str]) -> set[str]:
    """The names that exist after the nodes ran on these; an optional one is written only where it is read."""
    names = set(given)
    for n in nodes.values():
        optional = n.stage.definition.optional
        names |= {name for own, name in n.writes.items() if own not in optional or n.reads.get(own) in names}
    return names


def needed_paths(nodes: Mapping[str, Node], want: Iterable[str], paths: Sequence[str]) -> tuple[str, ...]:
    """Return the paths of these nodes and of all that they and the wanted names need, in order."""
    needed, open_names = [], set(want)
    for path, n in reversed(list(nodes.items())):
        if path in paths or open_names & set(n.writes.values()) or ALL in open_names:
            needed.append(path)
            open_names |= set(n.reads.values())
    return tuple(reversed(needed))


def pick_values(nodes: Mapping[str, Node], values: Values, want: Sequence[str]) -> Values:
    """Return the wanted values of those that the nodes left.

    Raises:
        ValueError: If there is no value of a wanted name; the error names the nearest one.
    """
    missing = [name for name in want if name not in values]
    if missing:
        known = available_names(nodes, values)
        raise ValueError(f"want={list(want)}: no value {missing[0]!r}; {nearest(missing[0], known)}")
    return {name: values[name] for name in want}


def output_names(nodes: Mapping[str, Node]) -> tuple[str, ...]:
    """The names that nodes write and no later node reads, in order."""
    last: dict[str, None] = {}
    for n in nodes.values():
        for name in n.reads.values():
            last.pop(name, None)
        last |= dict.fromkeys(n.writes.values())
    return tuple(last)

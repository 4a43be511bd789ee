"""The law of drawings: what they write is for people, and reaches no victim, loss or metric."""

from collections.abc import Mapping

from fpatch.graph.node import Node


def check_drawn(
    phase: str, path: str, n: Node, alive: Mapping[str, Node], writers: Mapping[str, str]
) -> None:
    """Check that only drawings read what a drawing writes: pictures have no gradient.

    Args:
        phase: The phase.
        path: The path of a node.
        n: The node.
        alive: The nodes of the phase.
        writers: The last writer of each value so far.

    Raises:
        ValueError: With both nodes, if another node reads a picture, or a drawing writes an image.
    """
    if n.stage.definition.role == "drawing":
        if found := {"image", "scene"} & set(n.writes.values()):
            raise ValueError(
                f"phase {phase!r}: the drawing {path!r} writes {min(found)!r}, which a victim would see; "
                "name the picture otherwise: node(..., writes=['picture'])"
            )
        return
    for name in n.reads.values():
        if name in writers and alive[writers[name]].stage.definition.role == "drawing":
            raise ValueError(
                f"phase {phase!r}: node {path!r} reads {name!r}, which the drawing {writers[name]!r} writes "
                "for people; read what the drawing reads"
            )

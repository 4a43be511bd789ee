"""Networks that an objective trains: what must hold of them before the first step."""

from collections.abc import Mapping, Sequence

from fpatch.graph.names import needed_paths
from fpatch.graph.parameters import weights_path
from fpatch.graph.pipeline import Pipeline


def check_networks(pipeline: Pipeline, weights: Mapping[str, float], trained: Sequence[str]) -> None:
    """Check that the networks of an objective learn, and that a weighted term depends on each.

    Args:
        pipeline: The pipeline of training.
        weights: Weights by term.
        trained: The names of the parameters that the objective trains.

    Raises:
        ValueError: If the pipeline has no phase, or no weighted term reads what a network makes.
    """
    needed = needed_paths(pipeline, [name for name, weight in weights.items() if weight], ())
    used = {weights_path(path, pipeline[path]) for path in needed}
    for path, n in pipeline.items():
        if n.stage.definition.weights is None:
            continue
        if not n.stage.config.learning:
            raise ValueError(
                f"objective: the network of node {path!r} does not behave as in training; choose the phase "
                "first: pipeline.at('train')"
            )
        owner = weights_path(path, n)
        if owner not in used and any(name.startswith(f"{owner}/") for name in trained):
            raise ValueError(
                f"objective: no weighted loss reads what node {path!r} makes, so that its weights would not "
                "change; add a loss, or leave the node out of wrt"
            )


def check_statistics(pipeline: Pipeline, local: bool, in_parts: bool) -> None:
    """Check that statistics of a batch are not taken over a part of it, unless that is asked for.

    Raises:
        ValueError: Naming the node.
    """
    mixing = [path for path, n in pipeline.items() if n.stage.definition.traits.mixes_rows]
    if mixing and in_parts and not local:
        raise ValueError(
            f"node {mixing[0]!r} takes statistics over the rows of a batch, and micro-batches or several "
            "processes see only a part of them: the step would differ from that of the whole batch. "
            "Set train.local_statistics = true to accept that, or leave out micro_batch and processes"
        )

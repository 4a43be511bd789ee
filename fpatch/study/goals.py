"""The goals of losses and metrics: do they ask the same question?

A targeted loss that an untargeted metric measures gives a rate of another question, and the other way round.
A stage declares the settings that are its goal by `define(classes=...)`.
"""

from collections.abc import Iterator, Mapping

from fpatch.evaluation.columns import OBJECT, split_group
from fpatch.evaluation.conditions import NONE, PATCH
from fpatch.evaluation.rates import SCORES
from fpatch.graph.node import Node
from fpatch.graph.pipeline import Pipeline
from fpatch.study.study import Study

Goal = int | str | None


def judge_goals(study: Study) -> Iterator[tuple[str, str]]:
    """Yield a metric's node and a sentence for each weighted loss whose goal is not that of the metric.

    Stages of the user's own count only if they declare a goal: they may aim at a class without a setting.

    Example:
        >>> import tempfile
        >>> from fpatch.demo.tiny import tiny_study
        >>> from fpatch.study.goals import judge_goals
        >>> study = tiny_study(tempfile.mkdtemp(), {"pipeline.misclassify.target": "nothing"})
        >>> for node, sentence in judge_goals(study):
        ...     print(node, sentence.rpartition("; ")[2])
        hit set pipeline.hit.goal = 'nothing'
    """
    if not study.makes_patch:
        return
    aims, metrics = _find_aims(study), _find_metrics(study)
    by_number = any(isinstance(goal, int) for goal in (*aims.values(), *metrics.values()))
    names = study.data.class_names if by_number else ()

    def named(goal: Goal) -> str | None:
        if isinstance(goal, int) and goal < len(names):
            goal = names[goal]
        return None if goal is None else repr(goal)

    for path, goal in metrics.items():
        aimed = {loss: named(aim) for loss, aim in _of_victim(study, path, aims).items()}
        targeted = {loss: aim for loss, aim in aimed.items() if aim is not None}
        counted = named(goal)
        if counted is None:
            said = "it has no goal, so that any answer but an object's own class is a success"
        else:
            said = f"a success is the answer {counted}"
        asked = counted in targeted.values()
        for loss, aim in () if asked else (targeted or (aimed if counted is not None else {})).items():
            way = "leave the goal out" if aim is None else f"set pipeline.{path}.goal = {aim}"
            aims_at = f"{loss!r} aims at {'no class' if aim is None else aim}"
            yield path, f"{said}, while {aims_at}: the rates are of another question; {way}"


def judge_best(study: Study) -> Iterator[tuple[str, str]]:
    """Yield a sentence if the best checkpoint is chosen by a scalar that is low, or equal, for a good patch.

    The highest scalar is the best. How sure the victim is of the object with the patch is low then. Without a
    patch, a loss is low for a good network.

    Example:
        >>> import tempfile
        >>> from fpatch.demo.tiny import tiny_study
        >>> from fpatch.study.goals import judge_best
        >>> study = tiny_study(tempfile.mkdtemp(), {"evaluate.best": "success/clean"})
        >>> [sentence.partition(",")[0] for _, sentence in judge_best(study)]
        ["'success/clean' does not depend on the patch"]
    """
    best, metric = study.evaluate.best, study.evaluate.metric
    if study.data.validation is None:
        return
    if not study.makes_patch:
        yield from _judge_loss(study)
        return
    own, _, condition = best.rpartition("/")
    group = split_group(metric)[0]
    way = "take one such as 'success/patch' or 'success/drop/patch'"
    if best == "success/clean" or (condition in (NONE, "noise") and not own.startswith("success/over")):
        what = f"{best!r} does not depend on the patch, so that the last checkpoint is the best"
        yield "evaluate.best", f"{what}; {way}"
    elif condition in (PATCH, "delta") and own in (metric, *(f"{group}{score}" for score in SCORES)):
        what = (
            f"the checkpoint with the highest {best!r} is that with which the victim is surer of the object"
        )
        yield "evaluate.best", f"{what}: the weakest patch; {way}"


def _judge_loss(study: Study) -> Iterator[tuple[str, str]]:
    """Yield a sentence if the best checkpoint of networks is chosen by a loss."""
    best = study.evaluate.best
    if best.removesuffix(f"/{NONE}") in study.pipeline.terms:
        what = f"the checkpoint with the highest {best!r}, a loss, is the best"
        yield "evaluate.best", f"{what}; take one such as 'right'"


def _of_victim(study: Study, metric: str, aims: Mapping[str, Goal]) -> Mapping[str, Goal]:
    """Return the aims of the losses that read the answers that a metric reads, or all if there is none."""

    def answers(path: str) -> set[str]:
        reads = study.pipeline[path].reads
        return {reads[name] for name in ("logits", "detections") if name in reads}

    return {loss: aim for loss, aim in aims.items() if answers(loss) & answers(metric)} or aims


def _find_metrics(study: Study) -> dict[str, Goal]:
    """Find the goals of the study's metric and of that of objects beside it, by node."""
    metric = study.evaluate.metric
    names = {metric, f"{split_group(metric)[0]}{OBJECT}found"}
    nodes = {p: n for p, n in study.pipeline.items() if names & set(n.writes.values())}
    return {p: n.stage.config.goal for p, n in nodes.items() if "goal" in n.stage.definition.classes}


def _find_aims(study: Study) -> dict[str, Goal]:
    """Find the goals of the weighted losses that read the victim, by node; None where there is no goal.

    Losses without a goal are left out if one of the user's own may hide its goal.
    """
    pipeline = study.pipeline.at("train")
    terms = {name for name, weight in study.objective.weights.items() if weight > 0}
    aims: dict[str, Goal] = {}
    hidden = False
    for path in _writers(pipeline, terms):
        stage = pipeline[path].stage
        if settings := stage.definition.classes:
            aims[path] = getattr(stage.config, settings[0])
        elif not stage.definition.module.startswith("fpatch."):
            hidden = True
        elif {"logits", "detections"} & set(stage.definition.reads):
            aims[path] = None
    return {path: aim for path, aim in aims.items() if aim is not None or not hidden}


def _writers(pipeline: Pipeline, terms: set[str]) -> list[str]:
    """Return the losses that write these terms, with those whose terms they join."""
    losses = {p: n for p, n in pipeline.items() if n.stage.definition.role == "loss"}
    wanted, found = set(terms), list[str]()
    for path, n in reversed(losses.items()):
        if wanted & set(n.writes.values()):
            found.append(path)
            wanted |= _joined(n, losses)
    return found[::-1]


def _joined(n: Node, losses: Mapping[str, Node]) -> set[str]:
    """Return the terms of other losses that a loss reads."""
    return set(n.reads.values()) & {name for m in losses.values() for name in m.writes.values()}

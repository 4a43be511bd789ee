"""Transfer: the success of every patch against every victim, also those it was not trained on."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from torch import Tensor

from fpatch import random
from fpatch.data import Dataset
from fpatch.evaluation.conditions import (
    NONE,
    PATCH,
    Patches,
    check_control_name,
    make_controls,
)
from fpatch.evaluation.evaluation import Evaluation, evaluate
from fpatch.evaluation.rates import success
from fpatch.graph.pipeline import Pipeline
from fpatch.metrics import Rate


class Transfer(NamedTuple):
    """Success rates of every patch on every victim.

    Attributes:
        rates: `{measured on: {trained on: rate}}`, and a rate for each control patch.
        clean: For each victim, the share of objects found without a patch: the denominator of its rates.
        evaluations: For each victim; the condition "patch" is the patch that was trained on it.
        warnings: For each victim, a sentence for every patch whose rows are not finite, so that its rates are
            NaN; of runs, also the settings that differ from those of the first run.
        steps: The updates that led to each patch, if they are known.
        goal: The goal of a targeted attack, as in `Success`; the same on every victim.
        titles: The names to show for victims and patches; one without a title is shown by its own name.
    """

    rates: dict[str, dict[str, Rate]]
    clean: dict[str, Rate]
    evaluations: dict[str, Evaluation]
    warnings: dict[str, list[str]] = {}  # noqa: RUF012 (the default of a NamedTuple, never written to)
    steps: dict[str, int] = {}  # noqa: RUF012
    goal: str | None = None
    titles: dict[str, str] = {}  # noqa: RUF012


def transfer(
    pipelines: Mapping[str, Pipeline],
    patches: Mapping[str, Patches],
    dataset: Dataset,
    key: Tensor,
    *,
    metric: str = "found",
    num_draws: int = 1,
    block: int = 16,
    progress: Callable[[int, int], None] | None = None,
) -> Transfer:
    """Measure every patch in every pipeline.

    A pipeline holds its victim, camera and print. If pipelines differ in the victim alone, all rates are
    over the same images.

    Args:
        pipelines: The pipelines of the evaluated phase, by the name of their victim.
        patches: The patches, from `make_patches`, by the name of the victim that they were trained on. Every
            pipeline needs its own, from which its controls are made; further ones are measured too.
        dataset: The images.
        key: The key of the samples, the same in every pipeline.
        metric: The boolean metric whose failure is a success.
        num_draws: Samples per image.
        block: Rows that run together.
        progress: Called with the rows done and their total, over all pipelines.

    Raises:
        ValueError: If there are fewer than two patches, a pipeline lacks its own, a name is taken, the
            names of the patches differ, or the metrics have different goals.
    """
    _check_names(pipelines, patches)
    count = len(dataset.image_ids) * num_draws
    rates, clean, evaluations, warnings = {}, {}, {}, {}
    goals: dict[str, str | None] = {}
    for i, (name, pipeline) in enumerate(pipelines.items()):

        def report(done: int, _: int, before: int = i * count) -> None:
            if progress is not None:
                progress(before + done, count * len(pipelines))

        own = patches[name]
        others = {other: made for other, made in patches.items() if other != name}
        controls = make_controls(own, random.fold_in(key, "control"))
        result = evaluate(
            pipeline,
            {},
            dataset,
            key,
            num_draws=num_draws,
            block=block,
            conditions={PATCH: own, NONE: own, **others, **controls},
            progress=report,
        )
        found = success(result.table, metric)
        by_name = {name if c == PATCH else c: rate for c, rate in found.rates.items()}
        rates[name] = {c: by_name[c] for c in (*patches, *controls)}
        clean[name], evaluations[name], goals[name] = found.clean, result, found.goal
        first, goal = next(iter(goals.items()))
        if goals[name] != goal:
            raise ValueError(
                f"transfer: the metric's goal is {goals[name]!r} on {name!r}, but {goal!r} on {first!r}; "
                "give both metrics one goal, or none"
            )
        if found.not_finite:
            bad = {name if c == PATCH else c: entry for c, entry in found.not_finite.items()}
            warnings[name] = found._replace(not_finite=bad).warnings()
    return Transfer(rates, clean, evaluations, warnings, goal=goals[next(iter(goals))])


def _check_names(pipelines: Mapping[str, Pipeline], patches: Mapping[str, Patches]) -> None:
    if len(patches) < 2 or not pipelines or not set(pipelines) <= set(patches):
        raise ValueError(
            "transfer: give at least two patches, and one for every pipeline, got the pipelines "
            f"{[*pipelines]} and the patches {[*patches]}"
        )
    first = next(iter(patches))
    for name, made in patches.items():
        check_control_name("transfer", name)
        if {n: set(v) for n, v in made.items()} != {n: set(v) for n, v in patches[first].items()}:
            raise ValueError(
                f"transfer: {name!r} has the patches {sorted(made.get('patch', made))}, but {first!r} has "
                f"{sorted(patches[first].get('patch', patches[first]))}; give both the same names"
            )

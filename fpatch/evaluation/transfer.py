"""Does a patch fool victims that it was not trained on? Every patch against every victim."""

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
    """Who fools whom.

    Attributes:
        rates: `{evaluated on: {trained on: rate}}`, and a rate for each benign print.
        clean: Per victim, the share of objects found without a patch: the denominator of its rates.
        evaluations: Per victim; the condition "patch" is the patch that was trained on it.
    """

    rates: dict[str, dict[str, Rate]]
    clean: dict[str, Rate]
    evaluations: dict[str, Evaluation]


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

    A pipeline brings its victim, camera and print; where these are alike but for the victim, all numbers are
    of the same images.

    Args:
        pipelines: Of the evaluated phase, by the name of their victim.
        patches: By the name of what they were trained on: for every pipeline its own, from
            `fpatch.evaluation.conditions.make_patches`, which the benign prints are made after, and any
            others.
        dataset: The photographs.
        key: What samples are drawn from, the same in every pipeline.
        metric: The boolean metric whose failure is a success.
        num_draws: Samples per photograph.
        block: Rows that run together.
        progress: Called with the rows done and their total, over all pipelines.

    Raises:
        ValueError: For fewer than two patches, a pipeline without its own, a name that a condition has, or
            patches of other names.
    """
    _check_names(pipelines, patches)
    count = len(dataset.image_ids) * num_draws
    rates, clean, evaluations = {}, {}, {}
    for i, (name, pipeline) in enumerate(pipelines.items()):

        def report(done: int, _: int, before: int = i * count) -> None:
            if progress is not None:
                progress(before + done, count * len(pipelines))

        own = patches[name]
        others = {other: made for other, made in patches.items() if other != name}
        benign = make_controls(own, random.fold_in(key, "control"))
        result = evaluate(
            pipeline,
            {},
            dataset,
            key,
            num_draws=num_draws,
            block=block,
            conditions={PATCH: own, NONE: own, **others, **benign},
            progress=report,
        )
        found = success(result.table, metric)
        by_name = {name if c == PATCH else c: rate for c, rate in found.rates.items()}
        rates[name] = {c: by_name[c] for c in (*patches, *benign)}
        clean[name], evaluations[name] = found.clean, result
    return Transfer(rates, clean, evaluations)


def _check_names(pipelines: Mapping[str, Pipeline], patches: Mapping[str, Patches]) -> None:
    if len(patches) < 2 or not pipelines or not set(pipelines) <= set(patches):
        raise ValueError(
            "transfer: give a patch for every pipeline, and two at least, got the pipelines "
            f"{[*pipelines]} and the patches {[*patches]}"
        )
    first = next(iter(patches))
    for name, made in patches.items():
        check_control_name("transfer", name)
        if {n: set(v) for n, v in made.items()} != {n: set(v) for n, v in patches[first].items()}:
            raise ValueError(
                f"transfer: {name!r} has the patches {sorted(made.get('patch', made))}, but {first!r} has "
                f"{sorted(patches[first].get('patch', patches[first]))}; they must be called alike"
            )

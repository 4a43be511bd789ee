"""The splits of a study, and how it measures a patch on one."""

import torch

from fpatch import random
from fpatch.core.checks import nearest
from fpatch.core.progress import Progress
from fpatch.core.types import Params
from fpatch.data import TargetSet
from fpatch.evaluation.columns import metric_names
from fpatch.evaluation.evaluation import Evaluation, evaluate
from fpatch.study.study import Study


def evaluate_split(
    study: Study, params: Params, dataset: TargetSet, split: str, on_progress: Progress
) -> Evaluation:
    """Evaluate these parameters on the photographs of a split, whose name is that of the phase too."""
    return evaluate(
        study.placed.at(split),
        params,
        dataset,
        evaluation_key(study, split),
        num_draws=study.evaluate.num_draws,
        block=study.evaluate.block,
        pictures=study.evaluate.pictures,
        progress=lambda done, total: on_progress(f"evaluating ({split})", done, total, ""),
    )


def evaluation_key(study: Study, split: str) -> torch.Tensor:
    """What the samples of a split are drawn from; it does not depend on the step of training."""
    return random.fold_in(random.fold_in(random.key(study.seed), "evaluate"), split)


def split_name(study: Study, split: str) -> str:
    """What the study's data call a split.

    Raises:
        ValueError: If the study has none.
    """
    name = study.data.test if split == "test" else study.data.validation
    if name is None:
        raise ValueError("the study has no validation split; take the test split")
    return name


def check_metric(study: Study, phase: str) -> None:
    """Refuse a study whose metric nothing writes in a phase.

    Raises:
        ValueError: With the metrics that there are.
    """
    metric, known = study.evaluate.metric, metric_names(study.pipeline.at(phase))
    if metric not in known:
        raise ValueError(
            f"evaluate.metric: no stage in phase {phase!r} writes {metric!r}; {nearest(metric, known)}; add "
            'one such as metrics.detection_hit, phases = ["eval"], or train with data.validation = false'
        )

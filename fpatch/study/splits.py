"""The splits of a study, and the measurement of a patch on one."""

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
    """Evaluate patch parameters on a split; the phase of the pipeline has the name of the split."""
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
    """Return the key of a split's samples; it does not depend on the step of training."""
    return random.fold_in(random.fold_in(random.key(study.seed), "evaluate"), split)


def split_name(study: Study, split: str) -> str:
    """Return the name of a split in the study's data.

    Raises:
        ValueError: If the study has no validation split.
    """
    name = study.data.test if split == "test" else study.data.validation
    if name is None:
        raise ValueError("data.validation: the study has no validation split; evaluate the test split")
    return name


def check_metric(study: Study, phase: str) -> None:
    """Check that a node of a phase writes the study's metric.

    Raises:
        ValueError: If none does; the message lists the nearest metrics.
    """
    metric, known = study.evaluate.metric, metric_names(study.pipeline.at(phase))
    if metric not in known:
        raise ValueError(
            f"evaluate.metric: no stage in phase {phase!r} writes {metric!r}; {nearest(metric, known)}; add "
            'one such as metrics.detection_hit, phases = ["eval"], or train with data.validation = false'
        )

"""Examine a study on one batch of its training images: why would its patch not learn?

The patch passes every stage, and so does the control (the same samples at opacity 0). The gradient of the
loss is followed back through every stage. One report shows where the gradient is lost, how many pixels the
patch reaches, how many are clipped, which loss depends on it, whether the victim finds the object at all, and
the results of the stages' own checks. Each patch is judged alone, and its first cause is reported once,
without its consequences.
"""

import dataclasses
from collections.abc import Iterable
from typing import NamedTuple

from fpatch import random
from fpatch.core.checks import check_number
from fpatch.data import TargetSet
from fpatch.doctor.causes import Finding, judge_patches
from fpatch.doctor.judgements import (
    ask_stages,
    judge_numbers,
    judge_pictures,
    judge_saturated,
    judge_step,
    judge_terms,
    judge_victim,
    judge_weights,
    to_sentence,
)
from fpatch.doctor.observations import (
    Saturation,
    StageFacts,
    find_saturated,
    follow,
    is_placed,
    measure_stage,
    view_patches,
)
from fpatch.study.goals import judge_goals
from fpatch.study.setup import set_up
from fpatch.study.study import Study


class Diagnosis(NamedTuple):
    """The report on a study.

    Attributes:
        findings: The findings, errors first.
        stages: The measurements at each node of the training phase, by path, in order.
    """

    findings: tuple[Finding, ...]
    stages: dict[str, StageFacts]

    @property
    def can_learn(self) -> bool:
        """True if no finding is an error."""
        return all(f.level != "error" for f in self.findings)


def examine(study: Study, num_rows: int = 16) -> Diagnosis:
    """Find all reasons why the patch of a study would not learn, or could not be measured.

    Args:
        study: The study to examine.
        num_rows: Images in the test batch, and rows examined of each evaluated split. The stages' own checks
            run on all training images, `num_rows` at a time.

    Returns:
        All findings, and the measurements at each stage.

    Raises:
        ValueError: If `num_rows` is under 1, or the data or the pipeline cannot be made.
    """
    check_number("examine(num_rows)", num_rows, 1)
    study = dataclasses.replace(study, device="cpu")  # reading single numbers is slow on a GPU
    parts = set_up(study)
    dataset = parts.dataset.split(study.data.train)
    batch = dataset.batch(_choose(dataset, num_rows))
    key = random.fold_in(random.fold_in(parts.initial.key, "train"), 0)
    findings = list(judge_weights(study))
    findings += [Finding("warning", where, what) for where, what in judge_goals(study)]
    stages: dict[str, StageFacts] = {}
    saturated: dict[str, dict[str, Saturation]] = {}
    pipeline = parts.objective.pipeline
    try:
        sample = pipeline.sample(key, batch)
        patched, without, loss, gradients = follow(study, parts, sample, batch)
    except (ValueError, RuntimeError, TypeError, KeyError) as error:
        findings.append(Finding("error", "train", to_sentence(error)))
    else:
        stages = {path: measure_stage(path, patched, without, gradients, pipeline) for path in pipeline}
        saturated["train"] = find_saturated(without, batch)
        views = view_patches(parts, sample, batch, patched, without, gradients)
        causes = [*judge_patches(study, views, stages, saturated["train"])]
        findings += [*causes, *judge_numbers(stages, loss, gradients)]
        ended = {path for path, s in saturated["train"].items() if s.everywhere}
        if not causes and not ended:
            findings += judge_terms(study, patched, without)
        findings += judge_pictures(views, stages, {f.where for f in causes} | ended)
        findings += judge_step(study, parts, batch, gradients)
        findings += ask_stages(parts, dataset, key, num_rows)
    for phase, split in (("validation", study.data.validation), ("test", study.data.test)):
        if split is not None:
            findings += judge_victim(study, parts, parts.dataset.split(split), phase, num_rows, saturated)
    return Diagnosis(tuple(_merge([*judge_saturated(saturated), *findings])), stages)


def _choose(dataset: TargetSet, num_rows: int) -> list[int]:
    """Choose the first images, and for each patch that they lack the first image with it."""
    chosen = dataset.image_ids[:num_rows].tolist()
    for patch in range(len(dataset.names)):
        having = dataset.image_ids[is_placed(dataset.tables, patch)[dataset.image_ids]].tolist()
        if having and not set(having) & set(chosen):
            chosen.append(having[0])
    return chosen


def _merge(findings: Iterable[Finding]) -> list[Finding]:
    """Sort errors first, and merge equal findings of several places."""
    places: dict[tuple[str, str], dict[str, None]] = {}
    for level, where, what in findings:
        places.setdefault((level, what), {})[where] = None
    merged = [Finding(level, ", ".join(where), what) for (level, what), where in places.items()]  # type: ignore[arg-type]
    return sorted(merged, key=lambda f: f.level)

"""Why a patch does nothing: a study looked at on one batch of its training photographs.

The patch is sent through every stage, and the control too (the same samples at opacity 0), and the gradient
of the loss is followed back through every stage. What a person would look for by hand stands in one
report: where the gradient is lost, how many pixels the patch reaches, how many are clipped, which loss sees
it, whether the victim sees the object at all, and what the stages' own checks say. What stops a patch is
judged for each patch by itself, and said once: the first cause, without what follows from it.
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
from fpatch.study.setup import set_up
from fpatch.study.study import Study


class Diagnosis(NamedTuple):
    """The report on a study.

    Attributes:
        findings: Errors first.
        stages: What was measured, by path of the training phase, in order.
    """

    findings: tuple[Finding, ...]
    stages: dict[str, StageFacts]

    @property
    def can_learn(self) -> bool:
        """Whether nothing was found that stops the patch from learning."""
        return all(f.level != "error" for f in self.findings)


def examine(study: Study, num_rows: int = 16) -> Diagnosis:
    """Look for every reason why the patch of a study would not learn, or could not be measured.

    Args:
        study: What would be trained.
        num_rows: Photographs in the test batch, and rows of each evaluated split that are looked at; the
            stages' own checks see all training images, `num_rows` at a time.

    Returns:
        All findings at once, and the table of what was measured stage by stage.

    Raises:
        ValueError: If there is nothing to run: no row, or the data or the pipeline cannot be made at all.
    """
    check_number("examine(num_rows)", num_rows, 1)
    study = dataclasses.replace(study, device="cpu")  # it reads what it finds, a number at a time
    parts = set_up(study)
    dataset = parts.dataset.split(study.data.train)
    batch = dataset.batch(_choose(dataset, num_rows))
    key = random.fold_in(random.fold_in(parts.initial.key, "train"), 0)
    findings = list(judge_weights(study))
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
    """The first photographs, and where they lack a patch, the first one that has it."""
    chosen = dataset.image_ids[:num_rows].tolist()
    for patch in range(len(dataset.names)):
        having = dataset.image_ids[is_placed(dataset.tables, patch)[dataset.image_ids]].tolist()
        if having and not set(having) & set(chosen):
            chosen.append(having[0])
    return chosen


def _merge(findings: Iterable[Finding]) -> list[Finding]:
    """Errors first, and what is said of several places once."""
    places: dict[tuple[str, str], dict[str, None]] = {}
    for level, where, what in findings:
        places.setdefault((level, what), {})[where] = None
    merged = [Finding(level, ", ".join(where), what) for (level, what), where in places.items()]  # type: ignore[arg-type]
    return sorted(merged, key=lambda f: f.level)

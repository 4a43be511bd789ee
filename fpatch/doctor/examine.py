"""Examine a study on one batch of its training images: why would its patch not learn?

The patch passes every stage, and so does the control (the same samples at opacity 0). The gradient of the
loss is followed back through every stage. One report shows where the gradient is lost, how many pixels the
patch reaches, how many are clipped, which loss depends on it, whether the victim finds the object at all, and
the results of the stages' own checks. Each patch is judged alone, and its first cause is reported once,
without its consequences.
"""

import dataclasses
from collections.abc import Iterable
from typing import NamedTuple, get_args

from fpatch import random
from fpatch.core.checks import check_number
from fpatch.core.plain import plain_torch
from fpatch.data import TargetSet
from fpatch.doctor.causes import judge_patches
from fpatch.doctor.clean import Asked, CleanFacts, ask_split, count_answers
from fpatch.doctor.findings import Finding, Level
from fpatch.doctor.judgements import (
    ask_stages,
    judge_counts,
    judge_numbers,
    judge_pictures,
    judge_saturated,
    judge_terms,
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
from fpatch.doctor.placements import RowFacts, count_rows, judge_aspects
from fpatch.doctor.steps import judge_pull, judge_step
from fpatch.doctor.victims import judge_form, judge_repeats
from fpatch.doctor.wrong_answers import judge_clean_answers
from fpatch.study.elsewhere import find_elsewhere
from fpatch.study.goals import judge_best, judge_goals
from fpatch.study.leaks import find_leaks
from fpatch.study.room import find_crowded
from fpatch.study.setup import Setup, set_up
from fpatch.study.study import Study
from fpatch.study.thresholds import find_cut_scores

FAULTS = (ValueError, RuntimeError, TypeError, KeyError, IndexError)
"""Errors of a stage that are findings."""


class Diagnosis(NamedTuple):
    """The report on a study.

    Attributes:
        findings: The findings, errors first.
        stages: The measurements at each node of the training phase, by path, in order.
        clean: How good each victim is without a patch, on each split.
        rows: The training images that lack an object or a placement.
        sizes: Height and width of each patch in its own pixels; empty if it could not be made.
    """

    findings: tuple[Finding, ...]
    stages: dict[str, StageFacts]
    clean: tuple[CleanFacts, ...]
    rows: RowFacts
    sizes: dict[str, tuple[int, int]] = {}  # noqa: RUF012 (the default of a NamedTuple, never written to)

    @property
    def can_learn(self) -> bool:
        """True if no finding is an error."""
        return all(f.level != "error" for f in self.findings)


class _Report:
    """The parts of a diagnosis while it is made."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []
        self.stages: dict[str, StageFacts] = {}
        self.saturated: dict[str, dict[str, Saturation]] = {}
        self.asked: list[Asked] = []
        self.sizes: dict[str, tuple[int, int]] = {}


@plain_torch(grad=True)
def examine(study: Study, num_rows: int = 16) -> Diagnosis:
    """Find all reasons why the patch of a study would not learn, or could not be measured.

    Args:
        study: The study to examine.
        num_rows: Images in the test batch. The stages' own checks run on all training images, `num_rows` at a
            time. Each victim also answers images without a patch, at most `clean.CLEAN_ROWS` of each split,
            and fewer if that takes more than `clean.CLEAN_SECONDS`.

    Returns:
        All findings, the measurements at each stage, and how good each victim is without a patch.

    Raises:
        ValueError: If `num_rows` is under 1, the data or the pipeline cannot be made, or it makes no patch.

    Example:
        >>> import tempfile
        >>> from fpatch.demo.tiny import tiny_study
        >>> from fpatch.doctor.examine import examine
        >>> diagnosis = examine(tiny_study(tempfile.mkdtemp()))
        >>> diagnosis.can_learn, diagnosis.clean[0].split, diagnosis.clean[0].classes
        (True, 'train', {'lamp': Count(right=2, count=2)})
    """
    check_number("examine(num_rows)", num_rows, 1)
    if not study.makes_patch:
        raise ValueError(
            "doctor: the study makes no patch, whose gradient it would follow; `fpatch train` tries losses "
            "on a few images first, and `fpatch evaluate` measures what the network gets right"
        )
    study = dataclasses.replace(study, device="cpu")  # reading single numbers is slow on a GPU
    parts = set_up(study)
    dataset, report = parts.dataset.split(study.data.train), _Report()
    rows = count_rows(dataset)
    report.findings += [*judge_weights(study), *judge_counts(study, parts)]
    said = [
        *judge_goals(study),
        *judge_best(study),
        *find_leaks(study, parts.dataset),
        *dict.fromkeys((*find_cut_scores(study), *find_elsewhere(study, parts.dataset))),
    ]
    report.findings += [Finding("warning", where, what) for where, what in said]
    _examine_training(study, parts, dataset, num_rows, report)
    _examine_victims(study, parts, num_rows, report)
    if all(f.level != "error" for f in report.findings):
        report.findings += [Finding("warning", path, what) for path, what in find_crowded(study, parts)]
    found = [*judge_saturated(report.saturated), *report.findings]
    facts = (count_answers(answers, parts.dataset.class_names) for a in report.asked for answers in a.answers)
    return Diagnosis(tuple(_merge(found)), report.stages, tuple(facts), rows, report.sizes)


def _examine_training(study: Study, parts: Setup, dataset: TargetSet, num_rows: int, report: _Report) -> None:
    """Follow one batch of training images through every stage, and its gradient back."""
    batch = dataset.batch(_choose(dataset, num_rows))
    key = random.fold_in(random.fold_in(parts.initial.key, "train"), 0)
    pipeline = parts.objective.pipeline
    try:
        sample = pipeline.sample(key, batch)
        f = follow(parts, sample, batch)
    except FAULTS as error:
        report.findings.append(Finding("error", "train", to_sentence(error)))
        return
    stages = {path: measure_stage(path, f.patched, f.without, f.gradients, pipeline) for path in pipeline}
    saturated = find_saturated(f.without, batch)
    views = view_patches(parts, sample, batch, f.patched, f.without, f.learned)
    causes = [*judge_patches(study, views, saturated, f.severed)]
    report.stages, report.saturated["train"] = stages, saturated
    report.findings += [*causes, *judge_numbers(stages, f.loss, f.gradients)]
    ended = {path for path, s in saturated.items() if s.everywhere}
    if not causes and not ended:
        report.findings += judge_terms(study, f.patched, f.without)
        report.findings += judge_pull(f.gradients, f.learned, dataset.names)
    report.findings += judge_pictures(views, stages, {c.where for c in causes} | ended)
    report.findings += judge_step(study, parts, sample, batch, f.gradients)
    shown = views.values.get("patch", {})
    report.sizes = {n: (int(t.shape[-2]), int(t.shape[-1])) for n, t in shown.items()}
    report.findings += judge_aspects(dataset, pipeline, report.sizes)
    report.findings += ask_stages(parts, dataset, key, num_rows)


def _examine_victims(study: Study, parts: Setup, num_rows: int, report: _Report) -> None:
    """Run images of all splits without a patch, and judge the answers of each victim."""
    names, params = parts.dataset.class_names, parts.initial.all_params
    for split in ("train", "validation", "test"):
        if getattr(study.data, split) is None:
            continue
        try:
            asked = ask_split(study, parts, split, num_rows)
        except FAULTS as error:
            report.findings.append(Finding("error", split, to_sentence(error)))
            continue
        report.asked.append(asked)
        if split != "train":
            report.saturated[split] = asked.saturated
    if not report.asked:
        return
    last = report.asked[-1]
    report.findings += judge_repeats(last, params)
    report.findings += judge_form(last, names)
    report.findings += judge_clean_answers(report.asked, study.evaluate.metric, params, names)
    for asked in report.asked:
        split = asked.split
        if split in report.saturated and split != "train" and any(bool(a.right.any()) for a in asked.answers):
            # an image that the victim still reads is not saturated everywhere
            report.saturated[split] = {p: s._replace(everywhere=False) for p, s in asked.saturated.items()}


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
    return sorted(merged, key=lambda f: get_args(Level).index(f.level))

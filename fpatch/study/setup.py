"""The objects made from a study: data, objective, optimizer, first state, loader and step."""

from fractions import Fraction
from typing import Any, NamedTuple

from fpatch import random
from fpatch.core.checks import nearest
from fpatch.data import Loader, TargetSet
from fpatch.graph.precision import reduce_precision
from fpatch.optim.networks import check_statistics
from fpatch.optim.objective import Objective
from fpatch.optim.optimizer import make_optimizer
from fpatch.optim.step import Step, TrainState, make_state, make_step
from fpatch.runtime.parallel import ALONE, Ranks
from fpatch.study.study import Study


class Setup(NamedTuple):
    """The objects made from a study.

    Attributes:
        dataset: The images of all splits.
        objective: The weighted loss terms of the training pipeline.
        optimizer: The optimizer of the patch, or of the networks.
        initial: The state before the first step.
    """

    dataset: TargetSet
    objective: Objective
    optimizer: Any
    initial: TrainState


def set_up(study: Study, shared: Setup | None = None, only: str | None = None) -> Setup:
    """Open the data, and make the objective, the optimizer and the state before the first step.

    Args:
        study: The study to run.
        shared: The objects of a study with the same data and pipeline, which are used again.
        only: The one split that is read, of data that the patch was not trained on; None: all.

    Raises:
        ValueError: If nothing is trained, a split is empty, a weight names no term, the patches of the data
            and of the pipeline differ, or a network takes statistics over micro-batches.

    Example:
        >>> import tempfile
        >>> from fpatch.demo.tiny import tiny_study
        >>> from fpatch.study.setup import set_up
        >>> made = set_up(tiny_study(tempfile.mkdtemp()))
        >>> made.dataset.names, made.initial.step, made.initial.params["tag"].shape
        (('tag',), 0, torch.Size([3, 6, 6]))
    """
    dataset = study.data.open() if shared is None else shared.dataset
    splits = (study.data.train, study.data.validation, study.data.test) if only is None else (only,)
    for split in splits:
        if split is not None:
            dataset.split(split)
    if shared is None:
        objective = make_objective(study)
    else:
        objective = Objective(shared.objective.pipeline, study.objective.weights, wrt=study.objective.wrt)
    epoch = steps_per_epoch(study, dataset, study.data.train if only is None else only)
    optimizer = make_optimizer(study.optimizer, study.train.num_steps, epoch)
    check_statistics(objective.pipeline, study.train.local_statistics, bool(study.train.micro_batch))
    initial = make_state(objective, optimizer, random.key(study.seed), study.place)
    _check_names(study, dataset)
    return Setup(dataset, objective, optimizer, initial)


def steps_per_epoch(study: Study, dataset: TargetSet, split: str) -> Fraction | None:
    """Return the steps that show every image of a split; None for images drawn with replacement."""
    return (
        None if study.train.replace else Fraction(len(dataset.split(split).image_ids), study.train.batch_size)
    )


def make_objective(study: Study) -> Objective:
    """Make the objective of a study.

    Raises:
        ValueError: If nothing is trained, or a weight names no term of the training pipeline.
    """
    pipeline = study.placed.at("train")
    if not pipeline.trainable():
        raise ValueError(
            "pipeline: there is nothing to train: no stage makes a patch, and no network is trained; add one "
            "such as create.pixels, or set trainable = true at a graph.module"
        )
    elsewhere = {t: path for path, n in study.pipeline.items() for t in n.terms if path not in pipeline}
    for name in study.objective.weights:
        if name in elsewhere and name not in pipeline.terms:
            phases = " and ".join(sorted(study.pipeline[elsewhere[name]].phases or ()))
            raise ValueError(
                f"objective.weights: the loss term {name!r} is written by {elsewhere[name]!r}, which runs in "
                f"{phases} only; leave out its phases, or add 'train' to them"
            )
    t = study.train
    lighter = reduce_precision(pipeline, t.precision, t.channels_last, t.recompute)
    return Objective(lighter, study.objective.weights, wrt=study.objective.wrt)


def _check_no_patch(study: Study) -> None:
    """Check that a study without a patch asks for nothing of one; the placements name images alone."""
    for path, n in study.pipeline.items():
        if "goal" in n.stage.definition.classes and getattr(n.stage.config, "goal", None) is not None:
            raise ValueError(
                f"pipeline.{path}.goal: the pipeline makes no patch that could reach a goal; leave it out"
            )
    if study.evaluate.controls:
        raise ValueError(
            "evaluate.controls: the pipeline makes no patch that a control could replace; leave them out"
        )


def _check_names(study: Study, dataset: TargetSet) -> None:
    if not study.makes_patch:
        _check_no_patch(study)
        return
    made = [n for path in study.pipeline.parameterizations for n in study.pipeline[path].stage.config.names]
    if missing := [n for n in dataset.names if n not in made]:
        raise ValueError(
            f"data: the placements name the patch {missing[0]!r}, which the pipeline does not make; "
            f"{nearest(missing[0], made)}, or omit it from data.patches"
        )
    if tuple(made) != dataset.names:
        raise ValueError(
            f"data.patches {list(dataset.names)} and the patches of the pipeline {made} must be the same in "
            f"the same order, since quad_patch counts them; set data.patches = {made}"
        )
    for path, n in study.pipeline.items():
        names = getattr(n.stage.config, "names", dataset.names)
        if n.stage.definition.fill is not None and names != dataset.names:
            raise ValueError(
                f"pipeline.{path}.names must be the patches of the data {dataset.names}, in that order, got "
                f"{names}; leave it out to fill them in"
            )


def make_loader(study: Study, parts: Setup, ranks: Ranks = ALONE) -> Loader:
    """Make the loader of training: it loads the rows of each batch that this process holds."""
    dataset, key = parts.dataset.split(study.data.train), random.fold_in(parts.initial.key, "data")
    return Loader(dataset, key, study.train.batch_size, study.train.replace, study.place, ranks)


def make_training_step(study: Study, parts: Setup, ranks: Ranks = ALONE, processes: int = 1) -> Step:
    """Make the step of training; `ranks` and `processes` are those of `fpatch.make_step`."""
    return make_step(
        parts.objective,
        parts.optimizer,
        transform=study.objective.transform,
        compile=study.train.compile,
        micro_batch=study.train.micro_batch,
        rho=study.train.rho,
        ranks=ranks,
        processes=processes,
        local_statistics=study.train.local_statistics,
    )

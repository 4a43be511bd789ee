"""Judgements on the first update: does it move each patch, visibly, and without saturating it?"""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from fpatch.core.types import Batch, Params, Sample
from fpatch.doctor.findings import Finding
from fpatch.doctor.observations import VISIBLE, is_saturated
from fpatch.optim.finite import NotFiniteError
from fpatch.optim.step import make_step
from fpatch.study.setup import Setup
from fpatch.study.study import Study

SATURATED_FRAC = 0.5
"""A step after which a larger share of a patch is black or white gives a warning."""

FAINT = 0.1
"""A training whose steps together change no value of a patch by more than this gives a warning."""


PULL = 0.01
"""A patch at which the victim's terms pull less than this, relative to the others, gives a warning."""


def judge_pull(
    gradients: Mapping[str, Tensor], learned: Mapping[str, Tensor], names: Sequence[str]
) -> Iterator[Finding]:
    """Warn about patches at which the terms of the patch alone outweigh those that read a victim."""
    for name in names:
        whole, own = gradients.get(f"params/{name}"), learned.get(f"params/{name}")
        if whole is None or own is None:
            continue
        pull, others = float(own.norm()), float((whole - own).norm())
        if pull < PULL * others:
            what = (
                f"at the patch {name!r} the gradient of the terms that read a victim is only "
                f"{pull / others:.2g} times that of the other terms: the patch follows those alone; lower "
                "their weights"
            )
            yield Finding("warning", "objective.weights", what)


def judge_step(
    study: Study, parts: Setup, sample: Sample, batch: Batch, gradients: Mapping[str, Tensor]
) -> Iterator[Finding]:
    """Take one step, and compare the patches with those before it."""
    pushed = [name for name in parts.initial.params if bool((gradients[f"params/{name}"] != 0).any())]
    if not pushed:
        return
    step = make_step(parts.objective, parts.optimizer, transform=study.objective.transform)
    try:
        after, _ = step(parts.initial, batch)
    except NotFiniteError:
        return  # the finding on the patch says why
    rate = f"(learning rate {study.optimizer.learning_rate:g})"
    before_of, after_of = (
        _patches(parts, params, sample, batch) for params in (parts.initial.all_params, after.all_params)
    )
    for name in pushed:
        if bool((after.params[name] == parts.initial.params[name]).all()):
            what = f"the first step does not move the patch {name!r} {rate}; raise it"
            yield Finding("error", "optimizer", what)
        elif name in before_of:
            yield from _compare(study, name, before_of[name], after_of[name], rate)


def _compare(study: Study, name: str, before: Tensor, after: Tensor, rate: str) -> Iterator[Finding]:
    """Report a step that leaves no mark on a patch, or turns most of it black or white."""
    moved = float((after - before).abs().max())
    num_steps = study.train.num_steps
    reach = moved * num_steps * max(1, study.optimizer.warmup_steps)
    if moved < VISIBLE and reach < FAINT:
        what = (
            f"the first step changes the patch {name!r} by {moved:.2g} at most, less than half a level of 8 "
            f"bits, and {num_steps} steps of this size by {reach:.2g} {rate}; raise it"
        )
        yield Finding("error" if reach < VISIBLE else "warning", "optimizer", what)
    was, now = _saturated(before), _saturated(after)
    if now > SATURATED_FRAC and now > was + 0.3:
        what = (
            f"the first step turns {100 * now:.0f} % of the values of the patch {name!r} black or white "
            f"({100 * was:.0f} % before) {rate}; lower it"
        )
        yield Finding("warning", "optimizer", what)


def _saturated(patch: Tensor) -> float:
    return float(is_saturated(patch).float().mean())


def _patches(parts: Setup, params: Params, sample: Sample, batch: Batch) -> dict[str, Tensor]:
    """Return the patches that the parameterizations make, by name."""
    pipeline, made = parts.objective.pipeline, {}
    if pipeline.parameterizations:
        with torch.no_grad():
            trace = pipeline.upto(pipeline.parameterizations[-1]).trace(params, sample, batch)
        for path in pipeline.parameterizations:
            for written in trace[path].values():
                made |= {name: t for name, t in written.items() if name in params and isinstance(t, Tensor)}
    return made

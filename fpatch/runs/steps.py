"""The steps of training, in one process or several, with a profile if the study asks for one."""

from collections.abc import Callable, Iterator
from itertools import islice

import torch

from fpatch.data import Loader
from fpatch.optim.finite import NotFiniteError, find_bad_patch, find_bad_row
from fpatch.optim.loop import fit
from fpatch.optim.step import StepInfo, TrainState
from fpatch.runs.checkpoints import state_bytes
from fpatch.runs.folder import Run
from fpatch.runtime.parallel import Ranks
from fpatch.study.setup import Setup, make_loader, make_training_step
from fpatch.study.study import Study

Steps = Callable[[TrainState, Loader, int], Iterator[tuple[TrainState, StepInfo] | None]]
"""A replacement for `fit`.

It maps a state, a loader and a number of steps to the state and `StepInfo` after each step. None in place of
both pauses the training: the step is not ready yet."""


def take_steps(
    study: Study,
    parts: Setup,
    run: Run,
    state: TrainState,
    num_steps: int,
    ranks: Ranks,
    steps: Steps | None,
) -> Iterator[tuple[TrainState, StepInfo] | None]:
    """Return the steps after a state: those of `fit` in all processes, or of its replacement."""
    loader = make_loader(study, parts, ranks)
    if steps is not None:
        return steps(state, loader, num_steps)
    own = _whole(fit(state, make_training_step(study, parts, ranks), loader, num_steps))
    return _profiled(_together(own, study, state, ranks), study, run)


def follow_steps(
    study: Study, parts: Setup, state: TrainState, ranks: Ranks, until: int | None = None
) -> None:
    """Take the steps of process 0 in another process, and stop where it stops."""
    num_steps = study.train.num_steps if until is None else until
    step, loader = make_training_step(study, parts, ranks), make_loader(study, parts, ranks)
    steps = _whole(fit(state, step, loader, num_steps))
    for after, info in _together(steps, study, state, ranks):
        if (bad := find_bad_row(info, parts.dataset.paths) or find_bad_patch(after.params)) is not None:
            raise ValueError(f"update {after.step}: {bad}")


def _whole(steps: Iterator[tuple[TrainState, StepInfo]]) -> Iterator[tuple[TrainState, StepInfo]]:
    """Yield also the step that is not finite: the training names its image, and keeps the state before it."""
    try:
        yield from steps
    except NotFiniteError as error:
        yield error.state, error.info


def _together(
    steps: Iterator[tuple[TrainState, StepInfo]], study: Study, state: TrainState, ranks: Ranks
) -> Iterator[tuple[TrainState, StepInfo]]:
    """Check at the start and at every checkpoint that all processes hold the same state."""
    ranks.check_same(f"the state at step {state.step}", state_bytes(state))
    for after, info in steps:
        if after.step == study.train.num_steps or after.step % study.train.checkpoint_every == 0:
            ranks.check_same(f"the state at step {after.step}", state_bytes(after))
        yield after, info


def _profiled(
    steps: Iterator[tuple[TrainState, StepInfo]], study: Study, run: Run
) -> Iterator[tuple[TrainState, StepInfo]]:
    """Record some steps for TensorBoard's profile tab, after two steps of warm-up."""
    if study.log.profile_steps:
        yield from islice(steps, 2)
        handler = torch.profiler.tensorboard_trace_handler(str(run.path("tensorboard/x").parent))
        with torch.profiler.profile(on_trace_ready=handler, record_shapes=True, acc_events=True):
            for i in range(2, 2 + study.log.profile_steps):
                with torch.profiler.record_function(f"ProfilerStep#{i}"):  # the name that the tab expects
                    taken = list(islice(steps, 1))
                yield from taken
    yield from steps

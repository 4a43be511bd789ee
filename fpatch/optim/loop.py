"""The training loop, in the open: a pure step, and a generator that takes one after another.

`fit` yields after every step. Logging, evaluation, checkpoints and progress bars belong to whoever iterates,
so that none of them can touch what is trained. `fpatch.runs.training.train` is the ready-made caller.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from fpatch.data import Loader
from fpatch.optim.step import Step, StepInfo, TrainState


def fit(
    state: TrainState, step: Step, loader: Loader, num_steps: int
) -> Iterator[tuple[TrainState, StepInfo]]:
    """Take steps until `num_steps` have been made, from wherever the state stands.

    Yields:
        The state after each step, and what there is to see of it.
    """
    if state.step >= num_steps:
        return
    batches = loader.batches(state.step)
    try:
        for batch in batches:
            state, info = step(state, batch)
            yield state, info
            if state.step >= num_steps:
                return
    finally:
        batches.close()  # type: ignore[attr-defined]


def find_bad_row(info: StepInfo, paths: Sequence[Path]) -> str | None:
    """Where a loss is not finite: the term, the row, its photograph and what was drawn; None if it is.

    Args:
        info: Of the step.
        paths: Files of photographs by id.
    """
    for name, term in info.terms.items():
        bad = (~torch.isfinite(term)).nonzero()
        if len(bad):
            row = int(bad[0])
            drawn = {
                f"{path}/{field}": value[row].tolist()
                for path, fields in info.sample.items()
                for field, value in fields.items()
            }
            return (
                f"the loss term {name!r} is {float(term[row])} in row {row}, "
                f"{paths[int(info.batch['image_id'][row])]}, draw {int(info.batch['draw'][row])}, "
                f"with the sample {drawn}"
            )
    if not bool(torch.isfinite(info.grad_norm)):
        return "the gradient is not finite, though every loss term is"
    return None

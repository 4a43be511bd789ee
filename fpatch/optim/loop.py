"""The training loop: a generator over a pure step.

`fit` yields after every step. Its caller logs, evaluates and saves, so none of these can change the training.
`fpatch.train` is the ready-made caller.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from fpatch.data import Loader
from fpatch.optim.mistakes import check_fit
from fpatch.optim.step import Step, StepInfo, TrainState


def fit(
    state: TrainState, step: Step, loader: Loader, num_steps: int
) -> Iterator[tuple[TrainState, StepInfo]]:
    """Take steps until the state has made `num_steps`.

    Args:
        state: The state to start from, fresh or restored.
        step: The step, from `make_step`.
        loader: The batches by step.
        num_steps: Updates of the whole run, those already made included.

    Yields:
        The state after each step, and the step's info.

    Example:
        >>> import tempfile, torch, fpatch
        >>> from fpatch.demo.tiny import tiny_study
        >>> state = fpatch.TrainState({"a": torch.zeros(1)}, None, 0, fpatch.random.key(0))
        >>> def step(state, batch):
        ...     return state._replace(step=state.step + 1), batch["image_id"].tolist()
        >>> scenes = tiny_study(tempfile.mkdtemp()).data.open()
        >>> loader = fpatch.data.Loader(scenes, fpatch.random.key(1), batch_size=2)
        >>> [state.step for state, _ in fpatch.fit(state, step, loader, num_steps=3)]
        [1, 2, 3]
    """
    check_fit(state, step, loader, num_steps)
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
    """Find the first row with a loss that is not finite.

    Args:
        info: The info of the step.
        paths: Files of the images by id.

    Returns:
        A sentence with the term, the row, its image and its sample; None if every number is finite.
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
        return "the gradient is not finite, but every loss term is"
    return None


def find_bad_patch(params: Mapping[str, Tensor]) -> str | None:
    """Find the first patch with parameters that are not finite.

    Args:
        params: Patch parameters after an update.

    Returns:
        A sentence with the patch and the count; None if every number is finite.

    Example:
        >>> import torch
        >>> from fpatch.optim.loop import find_bad_patch
        >>> find_bad_patch({"tag": torch.tensor([0.5, torch.nan])}).partition(",")[0]
        "1 of 2 parameters of the patch 'tag' are not finite after it"
    """
    for name, value in params.items():
        if count := int((~value.isfinite()).sum()):
            return (
                f"{count} of {value.numel()} parameters of the patch {name!r} are not finite after it, but "
                "loss and gradient are; lower optimizer.learning_rate"
            )
    return None

"""The training loop: a generator over a pure step.

`fit` yields after every step. Its caller logs, evaluates and saves, so none of these can change the training.
`fpatch.train` is the ready-made caller.
"""

from collections.abc import Generator, Iterator
from typing import Any, Protocol, runtime_checkable

from fpatch.optim.mistakes import check_fit
from fpatch.optim.step import Step, StepInfo, TrainState


@runtime_checkable
class Batches(Protocol):
    """A source of batches by step: `fpatch.data.Loader`, or `fpatch.optim.hardening.PatchedLoader`."""

    def batches(self, start: int = 0) -> Generator[dict[str, Any], None, None]:
        """Iterate over the batches from `start` on, without end."""
        ...


def fit(
    state: TrainState, step: Step, loader: Batches, num_steps: int
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
        batches.close()

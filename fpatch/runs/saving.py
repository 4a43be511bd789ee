"""Save the state of a training: at its checkpoints, and wherever it stops."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from fpatch.evaluation.conditions import make_patches
from fpatch.log import Log
from fpatch.optim.step import TrainState
from fpatch.runs.checkpoints import save_checkpoint
from fpatch.runs.folder import Run
from fpatch.study.study import Study


class Saver:
    """The last state whose records are complete, and the last one that is saved.

    Attributes:
        state: The state.
        facts: The best validation so far.
    """

    def __init__(self, study: Study, run: Run, log: Log, state: TrainState, facts: Mapping[str, Any]) -> None:
        """Begin with a state that needs no saving."""
        self._study, self._run, self._log = study, run, log
        self.state, self.facts, self._mark = state, facts, log.mark
        self._saved_step = state.step

    def complete(self, state: TrainState, facts: Mapping[str, Any]) -> None:
        """Note that all records up to a state are written."""
        self.state, self.facts, self._mark = state, facts, self._log.mark

    def save(self) -> None:
        """Save the records, then the state, then the commit of the records: a kill between does no harm."""
        self._log.flush()
        names = [f"step-{self.state.step:08d}", "last"]
        save_checkpoint(self._run.folder, names, self.state, self.facts, self._log.mark)
        self._saved_step = self.state.step
        self._log.commit(self.state.step)

    @contextmanager
    def saved_at_stop(self) -> Iterator[None]:
        """Save the last complete state as `last` if the block is left by an error or a signal."""
        try:
            yield
        except BaseException as error:
            is_there = (self._run.folder / "config.json").is_file()  # a removed folder is not made again
            if is_there and self.state.step > 0:
                try:
                    self._save_stopped()
                except OSError as failed:
                    error.add_note(f"the state of step {self.state.step} cannot be saved: {failed}")
            raise

    def _save_stopped(self) -> None:
        """Save the state as `last`, with its patches as images, and send what is complete."""
        if self.state.step > self._saved_step:
            self._log.flush()
            save_checkpoint(self._run.folder, "last", self.state, self.facts, self._mark)
            self._log.seal(self.state.step, self._mark)
        if self._log.mark == self._mark:
            write_results(self._study, self._run, self._log, self.state)
            self._log.commit(self.state.step)
        else:  # records of a step that a resume takes again: nothing is added to them
            self._run.write_patches(make_patches(self._study.placed.at("test"), self.state.all_params))


def write_results(study: Study, run: Run, log: Log, state: TrainState) -> None:
    """Write the patches of a state as images, and offer them and the checkpoints to the log."""
    patches = run.write_patches(make_patches(study.placed.at("test"), state.all_params))
    log.files(patches)
    checkpoints = [f"checkpoints/{name}.safetensors" for name in ("best", "last") if run.has_checkpoint(name)]
    log.artifacts(["config.json", "environment.json", *(["patch"] if patches else []), *checkpoints])

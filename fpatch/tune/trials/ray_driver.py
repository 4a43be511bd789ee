"""Run trials by Ray Tune, which starts and restarts workers; proposals and results are in the journal."""

import math
import os
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

import torch

from fpatch.runtime.memory import CUBLAS_WORKSPACE
from fpatch.tune.folder.journal import Journal
from fpatch.tune.plan import Plan, pack_size
from fpatch.tune.settings import Sweep
from fpatch.tune.trials.dispatcher import Dispatcher, Notify
from fpatch.tune.trials.ray_cluster import connected, num_concurrent, quiet_ray
from fpatch.tune.trials.trial import Evaluation


def drive(
    journal: Journal,
    plan: Plan,
    notify: Notify,
    resources: Mapping[str, Any] | None = None,
) -> None:
    """Train the unfinished trials, then those that the search proposes, until the sweep is complete.

    Raises:
        KeyboardInterrupt: On Ctrl-C; every trial can resume from its last checkpoint.
    """
    if Dispatcher(journal, plan, notify).exhausted:
        return
    with connected(plan) as ray:
        dispatcher = Dispatcher(journal, plan, notify, pack_size(plan, num_concurrent(plan, ray)))
        bound = {"folder": str(journal.folder.resolve()), "sweep": plan.sweep, "resources": resources}
        bundle = {"CPU": plan.sweep.cpus, "GPU": plan.sweep.gpus}
        trainable = ray.tune.with_resources(
            ray.tune.with_parameters(_trainable(ray), **bound),
            ray.tune.PlacementGroupFactory([bundle] * plan.sweep.processes),
        )
        with quiet_ray():
            ray.tune.run(
                trainable,
                name="ray",
                search_alg=_make_searcher(dispatcher, plan.sweep.mode),
                num_samples=-1,
                storage_path=str(journal.folder.resolve()),
                max_failures=plan.sweep.retries,
                raise_on_failed_trial=False,
                verbose=0,
                log_to_file=False,
                reuse_actors=True,
            )


def _make_searcher(dispatcher: Dispatcher, mode: str) -> Any:
    """Wrap a dispatcher as a searcher of Ray Tune."""
    from ray.tune.search import Searcher

    class JournalSearcher(Searcher):
        """Exchange only names of trials with Ray: settings and results are in the journal."""

        def __init__(self) -> None:
            super().__init__(metric="value", mode=mode)
            self._names: dict[str, str] = {}

        def suggest(self, trial_id: str) -> Any:
            if dispatcher.exhausted:
                return Searcher.FINISHED
            name = dispatcher.take()
            if name is None:
                return None
            self._names[trial_id] = name
            return {"trial": name}

        def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
            dispatcher.handle_evaluation(result["name"])

        def on_trial_complete(
            self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
        ) -> None:
            dispatcher.handle_end(self._names.pop(trial_id))

        def save(self, checkpoint_path: str) -> None:
            Path(checkpoint_path).touch()  # the journal holds its state

        def restore(self, checkpoint_path: str) -> None:
            pass

    return JournalSearcher()


def _trainable(ray: Any) -> Any:
    """Make the class whose instances are Ray actors, each of which trains a trial."""

    class FpatchTrial(ray.tune.Trainable):
        """Train a trial; one step lasts until the next evaluation."""

        def setup(self, config: dict[str, Any], folder: str, sweep: Sweep, resources: Any) -> None:
            torch.set_num_threads(max(1, int(sweep.cpus)))
            os.environ.setdefault(*CUBLAS_WORKSPACE)
            self._folder, self._sweep, self._resources = folder, sweep, resources
            self.reset_config(config)

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            from fpatch.tune.trials.pack import run_trials
            from fpatch.tune.trials.processes import run_together

            name = new_config["trial"]
            run = run_trials if self._sweep.processes == 1 else run_together
            self._evaluations: Generator[Evaluation, None, None] = run(self._folder, name, self._resources)
            self._last: dict[str, Any] = {"name": name, "value": math.nan}
            return True

        def step(self) -> dict[str, Any]:
            evaluation = next(self._evaluations, None)
            if evaluation is None:
                return {**self._last, "done": True}
            name, point = evaluation
            self._last = {"name": name, "value": point.value}
            return self._last

        def cleanup(self) -> None:
            self._evaluations.close()

    return FpatchTrial

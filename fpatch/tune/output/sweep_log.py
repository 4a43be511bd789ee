"""The log of a sweep: a parent run in MLflow and TensorBoard, the table, figures and progress."""

import logging
import time
from pathlib import Path

from fpatch.core.files import file_digest
from fpatch.core.progress import Progress
from fpatch.core.schema import flatten
from fpatch.log import Log, Records, open_log
from fpatch.tune.folder.journal import Entry, Journal
from fpatch.tune.output.figures import save_figures
from fpatch.tune.output.table import save_table
from fpatch.tune.plan import Plan, best_entry, num_steps

_logger = logging.getLogger(__name__)

_PAUSE_S = 30.0
"""Seconds without a request to MLflow after one failed."""


class SweepLog:
    """The log of a whole sweep; each trial has a log of its own.

    Step k of `records.jsonl` is the k-th trial that ended: its objective and the best so far. All values come
    from the journal, so records that a kill prevented are written when the sweep resumes.
    """

    def __init__(self, journal: Journal, plan: Plan, on_progress: Progress) -> None:
        """Open the log of a sweep, or continue it."""
        self._journal, self._plan, self._on_progress = journal, plan, on_progress
        self._linked: set[str] = set()
        self._no_link_before = 0.0
        folder, settings = journal.folder, plan.study.log
        recorded = _last_step(folder)
        self._log: Log = open_log(
            folder,
            tensorboard=settings.tensorboard,
            mlflow=settings.mlflow,
            experiment=settings.experiment,
            resume_step=recorded,
        )
        self._step = recorded or 0
        self._log.params(flatten({n: v for n, v in plan.config.items() if n != "study"}))
        self._log.tags({"study": plan.study.name, "fpatch.sweep": "true"})
        source = plan.study.data.placements
        self._log.dataset(Path(source).stem, file_digest(source)[:16], source)
        self._log.commit(self._step)
        self._follow_outcomes()

    def notify(self, name: str) -> None:
        """Report a trial whose state has changed, and record its outcome."""
        entry = self._journal.entry(name)
        self._report(entry)
        if entry.outcome is not None:
            self._follow_outcomes()
        self._link()

    def close(self, finished: bool | None) -> None:
        """Write the table and the figures, send unsent records, and close the log."""
        entries = self._journal.entries()
        done = [e for e in entries if e.outcome is not None]
        files = save_table(self._journal, self._plan)
        if len(done) >= 2:
            files += save_figures(self._journal, self._plan)
        self._log.artifacts(files)
        self._log.commit(self._step)
        for entry in done:
            self._send_rest(entry)
        self._log.close(finished)
        self._no_link_before = 0.0
        self._link()
        self._end_stopped([e for e in entries if e.outcome is None])
        if unsent := [e.trial.name for e in done if not self._is_sent(e)]:
            _logger.warning(
                "MLflow lacks records of %d of %d trials; they are kept: `fpatch sweep resume %s` sends them",
                len(unsent), len(done), self._journal.folder,
            )  # fmt: skip

    def _end_stopped(self, entries: list[Entry]) -> None:
        """End the MLflow runs of trials whose processes were ended with the sweep."""
        uri = self._plan.study.log.mlflow
        if not entries or not isinstance(uri, str):
            return
        from fpatch.log import mlflow_runs

        try:
            mlflow_runs.end_runs(uri, [self._journal.run_folder(e.trial.name) for e in entries])
        except Exception as error:  # a failing tracker must not stop a sweep
            _logger.warning("MLflow at %s: the runs of stopped trials are not ended: %s", uri, error)

    def _report(self, entry: Entry) -> None:
        """Call `on_progress` for a trial."""
        plan, trial = self._plan, entry.trial
        total = num_steps(plan, trial)
        step = entry.points[-1].step if entry.points else 0
        note = f"{plan.sweep.objective} {entry.value:.4g}" if entry.points else ""
        if entry.outcome is None:
            self._on_progress(f"trial {trial.name}", min(step, total - 1), total, note)
            return
        status = entry.outcome.status
        note = f"{status} at step {step}, {note}" if status != "failed" else f"failed: {entry.outcome.error}"
        self._on_progress(f"trial {trial.name}", total, total, note)

    def _follow_outcomes(self) -> None:
        """Record the trials that ended since the last call, in the order in which they ended."""
        plan, entries = self._plan, self._journal.entries()
        done = sorted((e for e in entries if e.outcome), key=lambda e: e.outcome.time if e.outcome else 0.0)
        for number, entry in enumerate(done, 1):
            if number > self._step:
                so_far = [e.value for e in done[:number] if e.value == e.value]
                best = max(so_far, key=lambda v: plan.sweep.sign * v, default=float("nan"))
                self._log.scalars(number, {"sweep/objective": entry.value, "sweep/best": best})
                self._step = number
                if plan.study.log.tensorboard:
                    from fpatch.log.tensorboard import write_hparams

                    metrics = {plan.sweep.objective: entry.value}
                    folder = self._journal.folder / "hparams" / entry.trial.name
                    write_hparams(folder, entry.trial.settings, metrics)
        self._log.commit(self._step)
        save_table(self._journal, plan)
        found = best_entry(self._journal, plan)
        note = "" if found is None else f"best {plan.sweep.objective} {found.value:.4g} in {found.trial.name}"
        self._on_progress("trials", len(done), plan.sweep.count(plan.space), note)

    def _link(self) -> None:
        """Nest the trials below the sweep in MLflow."""
        uri = self._plan.study.log.mlflow
        if not isinstance(uri, str) or time.monotonic() < self._no_link_before:
            return
        from fpatch.log import mlflow_runs

        folders = [self._journal.run_folder(name) for name in self._journal.names()]
        new = {run_id: folder for folder in folders for run_id in mlflow_runs.run_ids([folder])}
        new = {run_id: folder for run_id, folder in new.items() if run_id not in self._linked}
        if not new or not mlflow_runs.run_ids([self._journal.folder]):
            return
        try:
            mlflow_runs.nest(uri, self._journal.folder, list(new.values()))
        except Exception:  # a failing tracker must not stop a sweep; `close` warns
            self._no_link_before = time.monotonic() + _PAUSE_S
        else:
            self._linked |= set(new)

    def _is_sent(self, entry: Entry) -> bool:
        """Return whether MLflow has all records of a trial, nested below the sweep; True without MLflow."""
        folder = self._journal.run_folder(entry.trial.name)
        if not isinstance(self._plan.study.log.mlflow, str) or not (folder / "records.jsonl").exists():
            return True
        from fpatch.log import mlflow_runs

        return mlflow_runs.is_sent(folder) and self._linked.issuperset(mlflow_runs.run_ids([folder]))

    def _send_rest(self, entry: Entry) -> None:
        """Send the records of a trial that MLflow did not accept while it ran."""
        settings, folder = self._plan.study.log, self._journal.run_folder(entry.trial.name)
        if not isinstance(settings.mlflow, str) or not (folder / "records.jsonl").exists():
            return
        from fpatch.log.mlflow_runs import is_sent

        if is_sent(folder):
            return
        log = open_log(
            folder,
            tensorboard=False,
            mlflow=settings.mlflow,
            experiment=settings.experiment,
            resume_step=_last_step(folder),
        )
        log.close(finished=entry.outcome is not None and entry.outcome.status != "failed")


def _last_step(folder: Path) -> int | None:
    """The last step in a log; None without a log."""
    if not (folder / "records.jsonl").exists():
        return None
    records = Records(folder)
    try:
        return max((record["step"] for record in records), default=0)
    finally:
        records.close()

"""The dispatcher: hand out the unfinished trials of a journal, then new ones."""

import time
from collections.abc import Callable

from fpatch.tune.folder.journal import Journal, Outcome
from fpatch.tune.next_trial import is_behind, next_trial
from fpatch.tune.plan import Plan

Notify = Callable[[str], None]
"""Called with the name of a trial whose state has changed."""


class Dispatcher:
    """Hand out the unfinished trials of a journal, then new ones, which it adds to the journal first.

    A pack of trials is named after its first trial.
    """

    def __init__(self, journal: Journal, plan: Plan, notify: Notify, pack: int = 1) -> None:
        """Find the unfinished trials.

        Args:
            journal: The folder of the sweep.
            plan: Its plan.
            notify: Called with the name of a trial whose state has changed.
            pack: New trials that are handed out together.
        """
        self._journal, self._plan, self._notify, self._pack = journal, plan, notify, pack
        known = journal.entries()
        if known:
            self._add_trials(known[-1].trial.together)
        unfinished = [e.trial.together[0] for e in journal.entries() if e.outcome is None]
        self._unfinished = list(dict.fromkeys(unfinished))
        self._running: set[str] = set()

    @property
    def exhausted(self) -> bool:
        """True if no trial is left to hand out, now or later."""
        return not self._unfinished and len(self._journal.names()) >= self._plan.sweep.count(self._plan.space)

    def take(self) -> str | None:
        """Return the name of the next trial; None if there is none at present."""
        limit = self._plan.sweep.max_concurrent
        if limit is not None and len(self._running) >= limit:
            return None
        if self._unfinished:
            name = self._unfinished.pop(0)
        else:
            number = len(self._journal.names())
            left = self._plan.sweep.count(self._plan.space) - number
            names = [f"{number + i:04d}" for i in range(min(self._pack, left))]
            if not names or not self._add_trials(names):
                return None
            name = names[0]
        self._running.add(name)
        for one in self._journal.entry(name).trial.together:
            self._notify(one)
        return name

    def _add_trials(self, names: list[str]) -> bool:
        """Add the missing trials of a pack to the journal; false if the search has no proposal at present."""
        known = self._journal.names()
        for name in names:
            if name not in known:
                trial = next_trial(self._plan, self._journal.entries())
                if trial is None:
                    return False
                assert trial.name == name
                self._journal.add(trial._replace(pack=names) if len(names) > 1 else trial)
        return True

    def handle_evaluation(self, name: str) -> None:
        """Stop an evaluated trial if it is behind the others."""
        if is_behind(self._plan, name, self._journal.entries()):
            self._journal.stop(name)
        self._notify(name)

    def handle_end(self, name: str) -> None:
        """Record trials of a pack that ended without an outcome as failed: their workers died."""
        self._running.discard(name)
        for one in self._journal.entry(name).trial.together:
            if self._journal.entry(one).outcome is None:
                times = self._plan.sweep.retries + 1
                sentence = f"the worker died {times} times without raising an error; out of memory?"
                self._journal.add_outcome(one, Outcome("failed", time.time(), 0.0, sentence, sentence))
            self._notify(one)

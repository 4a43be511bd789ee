"""Work that may hang: it runs beside the training, which waits for it no longer than it wants to."""

import threading
import time
from collections.abc import Callable

PATIENCE_S = 30.0
"""Seconds without progress after which work counts as failed."""


class Attempt:
    """A piece of work in a thread of its own, which ends with the process.

    Example:
        >>> from fpatch.log.attempts import Attempt
        >>> attempt = Attempt(lambda note_progress: None)
        >>> attempt.wait(60.0), attempt.error
        (True, None)
    """

    def __init__(self, work: Callable[[Callable[[], None]], None]) -> None:
        """Begin the work; it is called with a function that notes progress."""
        self.error: Exception | None = None
        self._work, self._last = work, time.monotonic()
        self._thread = threading.Thread(target=self._run, name="fpatch-log", daemon=True)
        self._thread.start()

    @property
    def is_running(self) -> bool:
        """Whether the work is not done."""
        return self._thread.is_alive()

    @property
    def idle_s(self) -> float:
        """Seconds since the last progress."""
        return time.monotonic() - self._last

    def wait(self, limit_s: float) -> bool:
        """Wait for at most some seconds, and return whether the work is done."""
        self._thread.join(limit_s)
        return not self.is_running

    def wait_while_it_moves(self, idle_limit_s: float) -> bool:
        """Wait until the work is done, or makes no progress for some seconds; return whether it is done."""
        while not self.wait(min(1.0, idle_limit_s)):
            if self.idle_s > idle_limit_s:
                return False
        return True

    def note_progress(self) -> None:
        """Note that the work has moved."""
        self._last = time.monotonic()

    def _run(self) -> None:
        try:
            self._work(self.note_progress)
        except Exception as error:  # the owner reads it
            self.error = error

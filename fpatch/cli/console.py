"""The console of the commands: lines, bars and warnings."""

import logging
import warnings

from fpatch.core.display import console, progress_bars
from fpatch.core.names import show

__all__ = ["console", "progress_bars", "say"]


class _Shown(logging.Formatter):
    """A format of warnings that writes their control characters as escapes."""

    def format(self, record: logging.LogRecord) -> str:
        return show(super().format(record))


def show_warnings() -> None:
    """Write the control characters in warnings as escapes, where Python prints them itself.

    Pillow's warning of large images is left out: those that it does not read are an error.
    """
    warnings.filterwarnings("ignore", "Image size .* exceeds limit")
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(_Shown())


def say(line: str) -> None:
    """Print a line without wrapping or markup.

    Example:
        >>> from fpatch.cli.console import say
        >>> say("[bold] is no markup here")
        [bold] is no markup here
    """
    console.print(line, soft_wrap=True)

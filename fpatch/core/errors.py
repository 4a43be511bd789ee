"""Errors of settings, collected so that one message says all of them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class Errors:
    """The sentences of errors; `raise_all` raises them as one, a line each.

    Example:
        >>> from fpatch.core.checks import check_number
        >>> from fpatch.core.errors import Errors
        >>> errors = Errors()
        >>> errors.check(check_number, "train.num_steps", 0, 1)
        >>> errors.check(check_number, "train.batch_size", -2, 1)
        >>> try:
        ...     errors.raise_all()
        ... except ValueError as error:
        ...     print(error)
        train.num_steps must be at least 1, got 0
        train.batch_size must be at least 1, got -2
    """

    def __init__(self) -> None:
        """Begin without an error."""
        self._sentences: list[str] = []

    def add(self, sentence: str) -> None:
        """Add the sentence of an error."""
        self._sentences.append(sentence)

    @contextmanager
    def caught(self, where: str = "") -> Iterator[None]:
        """Catch a `ValueError` of the block, and add its sentences, each with its place."""
        try:
            yield
        except ValueError as error:
            for sentence in str(error).splitlines():
                is_placed = not where or sentence.startswith(f"{where}.")
                self._sentences.append(sentence if is_placed else f"{where}: {sentence}")

    def check(self, check: Callable[..., Any], *values: Any) -> None:
        """Call a check, and add its error."""
        with self.caught():
            check(*values)

    def raise_all(self) -> None:
        """Raise all errors as one.

        Raises:
            ValueError: If there is an error.
        """
        if self._sentences:
            raise ValueError("\n".join(dict.fromkeys(self._sentences)))


def in_file(path: Any, error: Exception) -> str:
    r"""Say that an error is of a file; several sentences are counted, and stand below it.

    Example:
        >>> from fpatch.core.errors import in_file
        >>> in_file("study.toml", ValueError("seed: expected a whole number, got '1'"))
        "study.toml: seed: expected a whole number, got '1'"
        >>> print(in_file("study.toml", ValueError("a: expected a number\nb: expected a number")))
        study.toml: 2 errors
          a: expected a number
          b: expected a number
    """
    sentences = str(error).splitlines()
    if len(sentences) < 2:
        return f"{path}: {error}"
    return "\n".join([f"{path}: {len(sentences)} errors", *(f"  {sentence}" for sentence in sentences)])


def is_stop(error: BaseException) -> bool:
    """Return whether a run ends by a wish of its user, such as Ctrl-C, and not by a failure.

    Example:
        >>> from fpatch.core.errors import is_stop
        >>> is_stop(KeyboardInterrupt()), is_stop(ValueError())
        (True, False)
    """
    return not isinstance(error, Exception)

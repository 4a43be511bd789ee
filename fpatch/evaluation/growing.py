"""Columns that grow by parts without keeping the parts."""

from collections.abc import Mapping

import numpy as np


class Growing:
    """Columns of equal length that grow part by part, in a few large arrays.

    An evaluation allocates and frees images between two parts. Small arrays that stay would lie between the
    images, and the next images would not fit into the freed room: the memory of a process would grow by about
    an image per row. A part that is copied into existing arrays leaves nothing.
    """

    def __init__(self, rows: int = 0) -> None:
        """Make columns without entries.

        Args:
            rows: The expected number of entries, which are allocated at the first part.
        """
        self._expected, self._rows = rows, 0
        self._arrays: dict[str, np.ndarray] = {}

    def add(self, part: Mapping[str, np.ndarray]) -> None:
        """Append entries to every column; the first part names the columns.

        Types are joined as `np.concatenate` joins them, so that text may become longer.

        Raises:
            KeyError: If a part lacks a column.
        """
        if not self._rows and not self._arrays:
            self._arrays = {name: column[:0] for name, column in part.items()}
        columns = {name: part[name] for name in self._arrays}
        count = len(next(iter(columns.values()), ()))
        end = self._rows + count
        for name, column in columns.items():
            old = self._arrays[name]
            dtype = np.result_type(old.dtype, column.dtype)
            if len(old) < end or dtype != old.dtype:
                size = len(old) if len(old) >= end else max(end, 2 * len(old), self._expected)
                self._arrays[name] = np.empty((size, *column.shape[1:]), dtype)
                self._arrays[name][: self._rows] = old[: self._rows]
            self._arrays[name][self._rows : end] = column
        self._rows = end

    def columns(self) -> dict[str, np.ndarray]:
        """Return the columns."""
        return {name: array[: self._rows] for name, array in self._arrays.items()}

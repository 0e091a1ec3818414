"""`timeline.jsonl` of a test: a row about once a second, and one for what came after the last.

A thread that watches writes the rows, the test's own thread the last one.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from paceline.rundir import disk_problem

__all__ = ["Timeline"]

Row = Callable[[float], Mapping[str, Any]]

_EVERY_S = 1.0


class Timeline:
    """Rows in the order of time. Raises EnvironmentProblem when the disk takes no more."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        # Of each row its time and where it begins in the file.
        self._rows: list[tuple[float, int]] = []
        self._is_over = False
        try:
            self._file = path.open("w", buffering=1)
        except OSError as error:
            raise disk_problem(path, error) from error

    def tick(self, elapsed_s: float, row: Row) -> None:
        """Write the row of this moment if a second went by since the one before."""
        with self._lock:
            last_s = self._rows[-1][0] if self._rows else 0.0
            if not self._is_over and elapsed_s - last_s >= _EVERY_S:
                self._write(elapsed_s, row)

    def end(self, elapsed_s: float, row: Row) -> None:
        """Write what came since the last row, as of `elapsed_s`; no row follows.

        Rows of a later moment, in which the end was not known yet, give way.
        """
        with self._lock:
            self._is_over = True
            while self._rows and self._rows[-1][0] > elapsed_s:
                _, begin = self._rows.pop()
                self._file.seek(begin)
                self._file.truncate()
            if elapsed_s > (self._rows[-1][0] if self._rows else 0.0):
                self._write(elapsed_s, row)
            self._file.close()

    def _write(self, elapsed_s: float, row: Row) -> None:
        self._rows.append((elapsed_s, self._file.tell()))
        try:
            self._file.write(json.dumps(row(elapsed_s)) + "\n")
        except OSError as error:
            raise disk_problem(self._path, error) from error

"""Accuracies on disk, so that no run asks again what another has answered.

One SQLite file serves any number of problems and processes. A problem is named by a digest of everything that an
answer depends on, so an answer is either the right one or not found.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from ..pruning import Plan

WAIT = 60.0
"""Seconds for which a writer waits until another process has written."""


class PlanCache:
    """What is known of one problem in a file. Pickles: no connection is held open.

    hits, misses  questions that were and were not in the file
    Raises ValueError where the file is no such database, OSError where it cannot be made.
    """

    def __init__(self, file: Path, problem: str) -> None:
        self.file, self.problem = file, problem
        self.hits = self.misses = 0
        file.parent.mkdir(parents=True, exist_ok=True)
        with self._connection() as connection:
            connection.execute(
                "CREATE TABLE IF NOT EXISTS accuracies "
                "(problem TEXT, plan TEXT, accuracy REAL NOT NULL, PRIMARY KEY (problem, plan)) WITHOUT ROWID"
            )

    def get(self, plan: Plan) -> float | None:
        """The known accuracy, to the bit, or None."""
        with self._connection() as connection:
            query = "SELECT accuracy FROM accuracies WHERE problem = ? AND plan = ?"
            row = connection.execute(query, (self.problem, _key(plan))).fetchone()
        self.hits, self.misses = self.hits + (row is not None), self.misses + (row is None)
        return None if row is None else float(row[0])

    def put(self, plan: Plan, accuracy: float) -> None:
        """Keeps an answer; another process may have been first."""
        with self._connection() as connection:
            row = (self.problem, _key(plan), accuracy)
            connection.execute("INSERT OR REPLACE INTO accuracies VALUES (?, ?, ?)", row)

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(sqlite3.connect(self.file, timeout=WAIT)) as connection, connection:
                yield connection
        except sqlite3.DatabaseError as error:
            raise ValueError(
                f"{self.file} cannot be used as a cache of accuracies ({error}); give another file, or delete it if it "
                "is one that was damaged"
            ) from error


def _key(plan: Plan) -> str:
    return json.dumps([int(kept) for kept in plan], separators=(",", ":"))

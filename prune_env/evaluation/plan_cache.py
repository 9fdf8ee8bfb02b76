"""Accuracies on disk, shared by runs and processes.

One SQLite file serves any number of problems and processes. A fingerprint of everything that an accuracy depends on
names the problem, so the cache returns either the right accuracy or none.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from ..common.files import free_bytes
from ..common.warn import warn
from ..pruning import Plan

TIMEOUT = 60.0
"""Seconds that a writer waits for another process to finish writing."""
TABLE = (
    "CREATE TABLE accuracies "
    "(problem TEXT, plan TEXT, accuracy REAL NOT NULL, PRIMARY KEY (problem, plan)) WITHOUT ROWID"
)


class PlanCache:
    """The known accuracies of one problem in a file. Pickles, because no connection stays open.

    Args:
        file: The SQLite file; it and its folder are created if they do not exist.
        fingerprint: Identifies the problem and the settings of its evaluation.

    Raises:
        ValueError: The file is not a cache of accuracies or is damaged.
        OSError: The file cannot be read or written, for example on a full disk.
    """

    def __init__(self, file: Path, fingerprint: str) -> None:
        self.file, self.fingerprint = file, fingerprint
        file.parent.mkdir(parents=True, exist_ok=True)
        with self._connection() as connection:
            schema = connection.execute("SELECT sql FROM sqlite_master").fetchall()
            if not schema:
                connection.execute(TABLE.replace("TABLE", "TABLE IF NOT EXISTS", 1))  # another process may be faster
            elif schema != [(TABLE,)]:  # a view or trigger would compute what is read or written
                raise ValueError(
                    f"{file} is a database of something else, not a cache of accuracies; give another file as cache"
                )

    def get(self, plan: Plan) -> float | None:
        """Return the known accuracy, exact to the bit, or None. A value that is no accuracy is skipped with a warning.

        The default metric is the only one whose values are cached, so an accuracy is a number from 0 to 1.
        """
        with self._connection() as connection:
            query = (
                "SELECT CASE typeof(accuracy) WHEN 'real' THEN accuracy END FROM accuracies "
                "WHERE problem = ? AND plan = ?"
            )
            row = connection.execute(query, (self.fingerprint, _key(plan))).fetchone()
        if row is None:
            return None
        accuracy = row[0]
        if accuracy is None or not 0 <= accuracy <= 1:
            warn(
                f"{self.file} holds {'no number' if accuracy is None else accuracy} as the accuracy of plan {plan}, "
                "which must be from 0 to 1; the plan is measured again"
            )
            return None
        return float(accuracy)

    def put(self, plan: Plan, accuracy: float) -> None:
        """Store an accuracy. An entry of another process is replaced."""
        with self._connection() as connection:
            row = (self.fingerprint, _key(plan), accuracy)
            connection.execute("INSERT OR REPLACE INTO accuracies VALUES (?, ?, ?)", row)

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(sqlite3.connect(self.file, timeout=TIMEOUT)) as connection, connection:
                connection.execute("PRAGMA trusted_schema = OFF")
                yield connection
        except sqlite3.OperationalError as error:  # of the file system, or of a lock
            free = free_bytes(self.file.parent) / 2**20
            raise OSError(
                f"cannot use the cache {self.file}: {error} ({free:.1f} MiB are free); its accuracies are unchanged"
            ) from error
        except sqlite3.DatabaseError as error:
            raise ValueError(
                f"{self.file} cannot be used as a cache of accuracies ({error}); give another file, or delete this one "
                "if it is damaged"
            ) from error


def _key(plan: Plan) -> str:
    return json.dumps([int(kept) for kept in plan], separators=(",", ":"))

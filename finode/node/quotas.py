"""How many inputs each querier asked of this owner's models, by day: SQLite, so that a restart forgets nothing."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from finode.errors import StorageFull

FILE_NAME = "quotas.db"
KEPT_DAYS = 8


class StoredQuotas:
    """A `QuotaStore` in the home. Used from the daemon's own thread: each call is one small transaction."""

    def __init__(self, home: Path) -> None:
        self._path = home / FILE_NAME
        self._connection = sqlite3.connect(self._path, isolation_level=None)
        self._path.chmod(0o600)
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute(
            "CREATE TABLE IF NOT EXISTS used (day TEXT, querier TEXT, inputs INTEGER, PRIMARY KEY (day, querier))"
        )

    def used(self, querier: str, day: str) -> int:
        """Return the inputs that `querier` was granted on `day` (UTC, YYYY-MM-DD)."""
        row = self._connection.execute(
            "SELECT inputs FROM used WHERE day = ? AND querier = ?", (day, querier)
        ).fetchone()
        return int(row[0]) if row else 0

    def add(self, querier: str, day: str, inputs: int) -> None:
        """Count `inputs` more; raise `StorageFull` when it cannot be written."""
        try:
            self._connection.execute(
                "INSERT INTO used VALUES (?, ?, ?) "
                "ON CONFLICT (day, querier) DO UPDATE SET inputs = inputs + excluded.inputs",
                (day, querier, inputs),
            )
            self._connection.execute("DELETE FROM used WHERE day < date(?, ?)", (day, f"-{KEPT_DAYS} days"))
        except sqlite3.OperationalError as error:
            raise StorageFull(f"cannot write {self._path}: {error}") from None

    def close(self) -> None:
        self._connection.close()

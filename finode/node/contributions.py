"""A party's shares of the sums of votes, session by session, until they are opened: SQLite in the home.

A session's share is added to exactly one opening, ever. Before this party's share of an opening leaves, the opening
is written down, with the noise in it: asked for the same opening again, also after a restart, the party gives the same
bytes; asked for another one that shares a session with it, it refuses. Otherwise two openings that differ by one
session would show that session's votes.

The same holds for the statements that this node signed, as a party or as a dealer: two that share a session would be
a proof against it. Which statement a session stands in is kept for good, as the proof would be; it takes 70 bytes.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from finode.errors import PeerRefused, StorageFull
from finode.identity import PeerId
from finode.ledger.opening import Part
from finode.wire import canonical
from finode.wire.contribution import DeploymentSet, Opening
from finode.wire.receipts import EpochStatement

FILE_NAME = "contributions.db"
KEPT_MS = 60 * 86400 * 1000
"""Sessions that could not be opened for so long never will be: their owners were paid equally meanwhile."""
_SCHEMA = """
CREATE TABLE IF NOT EXISTS sets (key BLOB PRIMARY KEY, body BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS parts (
    session BLOB NOT NULL, key BLOB NOT NULL, querier TEXT NOT NULL, count INTEGER NOT NULL, ended_ms INTEGER NOT NULL,
    sums BLOB, opening BLOB, PRIMARY KEY (session, key)
);
CREATE INDEX IF NOT EXISTS parts_of_sets ON parts (key, opening);
CREATE TABLE IF NOT EXISTS openings (
    id BLOB PRIMARY KEY, key BLOB NOT NULL, body BLOB NOT NULL, share BLOB NOT NULL, given_ms INTEGER NOT NULL,
    finished INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS statements (
    kind TEXT NOT NULL, session BLOB NOT NULL, statement BLOB NOT NULL, PRIMARY KEY (kind, session)
) WITHOUT ROWID;
"""
Noise = Callable[[int], Sequence[int]]
"""Gives that many integers of noise."""


class ContributionStore:
    """The shares of one node. Used from the daemon's own thread: each call is one small transaction."""

    def __init__(self, home: Path) -> None:
        self._path = home / FILE_NAME
        self._connection = sqlite3.connect(self._path, isolation_level=None)
        self._path.chmod(0o600)
        with self._writing():
            self._connection.execute("PRAGMA journal_mode = WAL")
            # FULL: neither a share nor a signature may leave before what it covers is on the disk.
            self._connection.execute("PRAGMA synchronous = FULL")
            self._connection.execute("PRAGMA secure_delete = ON")
            self._connection.executescript(_SCHEMA)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            raise StorageFull(f"cannot write {self._path}: {error}") from None

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._writing():
            self._connection.execute("BEGIN IMMEDIATE")
            with self._connection:  # commits, or rolls back
                yield self._connection

    def add(self, of: DeploymentSet, part: Part, sums: bytes) -> None:
        """Keep this party's share of one session's sums. A session that is here already is not added again, nor to
        another set: a querier that gives two sessions one id would have this party sign two statements about it."""
        with self._transaction() as connection:
            others = connection.execute(
                "SELECT body FROM sets JOIN parts USING (key) WHERE session = ?", (part.session,)
            ).fetchall()
            if any(canonical.decode(body, DeploymentSet).kind is of.kind for (body,) in others):
                return
            if self._is_stated(of.kind.value, part.session):
                return
            connection.execute("INSERT OR IGNORE INTO sets VALUES (?, ?)", (of.key, canonical.encode(of)))
            connection.execute(
                "INSERT OR IGNORE INTO parts VALUES (?, ?, ?, ?, ?, ?, NULL)",
                (part.session, of.key, part.querier, part.count, part.ended_ms, sums),
            )

    def sets(self) -> list[DeploymentSet]:
        """Return the sets of which sessions wait, or openings were begun and not finished."""
        rows = self._connection.execute(
            "SELECT body FROM sets WHERE key IN (SELECT key FROM parts WHERE opening IS NULL) "
            "OR key IN (SELECT key FROM openings WHERE NOT finished) ORDER BY key"
        )
        return [canonical.decode(row[0], DeploymentSet) for row in rows]

    def waiting(self, key: bytes) -> list[Part]:
        """Return the sessions of a set that no opening has taken."""
        rows = self._connection.execute(
            "SELECT session, querier, count, ended_ms FROM parts WHERE key = ? AND opening IS NULL", (key,)
        )
        return [Part(session=row[0], querier=PeerId(row[1]), count=row[2], ended_ms=row[3]) for row in rows]

    def begun(self, key: bytes) -> list[Opening]:
        """Return the openings of a set that were begun here and are not finished, the oldest first."""
        rows = self._connection.execute(
            "SELECT body FROM openings WHERE key = ? AND NOT finished ORDER BY given_ms, id", (key,)
        )
        return [canonical.decode(row[0], Opening) for row in rows]

    def gave(self, opening: Opening) -> bool:
        """Return whether this party gave its share of exactly this opening."""
        found = self._connection.execute("SELECT 1 FROM openings WHERE id = ?", (opening.id,)).fetchone()
        return found is not None

    def lacking(self, opening: Opening) -> tuple[bytes, ...]:
        """Return the sessions of an opening whose share is not here, or went into another opening."""
        if self.gave(opening):
            return ()
        here = {part.session for part in self.waiting(opening.of.key)}
        return tuple(
            session
            for session in opening.sessions
            if session not in here or self._is_stated(opening.of.kind.value, session)
        )

    def _is_stated(self, kind: str, session: bytes) -> bool:
        # Also of another set: a querier can give sessions of two committees one id.
        found = self._connection.execute(
            "SELECT 1 FROM statements WHERE kind = ? AND session = ?", (kind, session)
        ).fetchone()
        return found is not None

    def parts(self, opening: Opening) -> list[Part]:
        """Return what is known here of the sessions of an opening that lacks none."""
        wanted = set(opening.sessions)
        return [part for part in self.waiting(opening.of.key) if part.session in wanted]

    def give(self, opening: Opening, noise: Noise, now_ms: int) -> bytes:
        """Return this party's share of an opening, and write down that it was given.

        Raises `PeerRefused` when a session of it is not here or went into another opening.
        """
        row = self._connection.execute("SELECT share FROM openings WHERE id = ?", (opening.id,)).fetchone()
        if row is not None:
            return bytes(row[0])
        if self.lacking(opening):
            raise PeerRefused("a session of the opening is not here, or was opened before", reason="not-here")
        with self._transaction() as connection:
            total = self._sum(connection, opening, noise)
            connection.execute(
                "INSERT INTO openings VALUES (?, ?, ?, ?, ?, 0)",
                (opening.id, opening.of.key, canonical.encode(opening), total, now_ms),
            )
            connection.executemany(
                "UPDATE parts SET opening = ?, sums = NULL WHERE key = ? AND session = ?",
                [(opening.id, opening.of.key, session) for session in opening.sessions],
            )
        return total

    @staticmethod
    def _sum(connection: sqlite3.Connection, opening: Opening, noise: Noise) -> bytes:
        total: np.ndarray[tuple[int], np.dtype[np.int64]] | None = None
        for session in opening.sessions:
            (sums,) = connection.execute(
                "SELECT sums FROM parts WHERE key = ? AND session = ?", (opening.of.key, session)
            ).fetchone()
            share = np.frombuffer(sums, dtype="<i8").astype(np.int64)
            total = share if total is None else total + share
        if total is None or (opening.of.sigma_milli and len(added := noise(len(total))) != len(total)):
            raise PeerRefused("the sums of an opening cannot be added up", reason="not-here")
        if opening.of.sigma_milli:
            total = total + np.array(added, dtype=np.int64)
        return total.astype("<i8").tobytes()

    def vow(self, statement: EpochStatement) -> bool:
        """Write down that this node signs a statement; False if it signed another one that shares a session with it.

        To be called before the signature leaves. Asked about the same statement again, it is True again.
        """
        rows = [(statement.kind.value, session, statement.id) for session in statement.sessions]
        with self._transaction() as connection:
            for kind, session, id in rows:
                row = connection.execute(
                    "SELECT statement FROM statements WHERE kind = ? AND session = ?", (kind, session)
                ).fetchone()
                if row is not None and row[0] != id:
                    return False
            connection.executemany("INSERT OR IGNORE INTO statements VALUES (?, ?, ?)", rows)
        return True

    def leave_out(self, key: bytes, sessions: Sequence[bytes]) -> None:
        """Forget this party's share of sessions that another party does not have: they can never be opened."""
        with self._transaction() as connection:
            connection.executemany(
                "UPDATE parts SET opening = x'', sums = NULL WHERE key = ? AND session = ? AND opening IS NULL",
                [(key, session) for session in sessions],
            )

    def finish(self, opening: Opening) -> None:
        """The statement of an opening is signed and filed."""
        with self._transaction() as connection:
            connection.execute("UPDATE openings SET finished = 1, share = x'' WHERE id = ?", (opening.id,))

    def prune(self, now_ms: int) -> None:
        """Forget what is too old to be opened."""
        with self._transaction() as connection:
            connection.execute("DELETE FROM parts WHERE ended_ms < ?", (now_ms - KEPT_MS,))
            connection.execute("DELETE FROM openings WHERE given_ms < ?", (now_ms - KEPT_MS,))
            connection.execute(
                "DELETE FROM sets WHERE key NOT IN (SELECT key FROM parts UNION SELECT key FROM openings)"
            )

    def close(self) -> None:
        self._connection.close()

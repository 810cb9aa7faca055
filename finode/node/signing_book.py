"""What this node saw of its sessions, and what it signed: SQLite in the home, so that a restart forgets nothing.

    committees   the terms and seal of committees that have witnesses
    witnesses    what was seen in each role, until it is too old to be asked about
    signed       the one body of each session that this node signed; outlives the witness

A body is entered before its signature leaves, with the write synced to the disk: killed at any moment, the node never
signs a second body of a session, nor one bundle's use in two sessions. A session without a witness is not signed at
all, so a body may be forgotten some days after the witness. That its session was signed is kept for good, in a hundred
bytes: a querier that gives a session of another committee the same id, however late, would have a proof against all.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import trio

from finode.errors import StorageFull
from finode.node.witness import DealerWitness, PartyWitness, QuerierWitness, Sealing, Witness
from finode.wire import canonical
from finode.wire.committee import Terms
from finode.wire.receipts import Receipt
from finode.wire.signed import Signed

FILE_NAME = "cosigning.db"
DAY_MS = 86_400_000
WITNESS_KEPT_MS = DAY_MS
"""How long after its session a member can still be asked to sign."""
SIGNED_KEPT_MS = 8 * DAY_MS
_SCHEMA = """
CREATE TABLE IF NOT EXISTS committees (id BLOB PRIMARY KEY, terms BLOB NOT NULL, sealed BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS witnesses (
    role TEXT NOT NULL, committee BLOB NOT NULL, name BLOB NOT NULL, body BLOB NOT NULL, seen_ms INTEGER NOT NULL,
    settled INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (role, committee, name));
CREATE TABLE IF NOT EXISTS signed (
    session BLOB PRIMARY KEY, committee BLOB NOT NULL, serial BLOB NOT NULL, body BLOB NOT NULL,
    signature BLOB NOT NULL, signed_ms INTEGER NOT NULL, UNIQUE (committee, serial));
CREATE TABLE IF NOT EXISTS deployments (id BLOB PRIMARY KEY, body BLOB NOT NULL);
"""
_ROLES: dict[str, type[PartyWitness] | type[QuerierWitness] | type[DealerWitness]] = {
    cls.role: cls for cls in (PartyWitness, QuerierWitness, DealerWitness)
}
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class SignedBody:
    """A body that this node signed."""

    body: bytes
    signature: bytes


class SigningBook:
    """The file. Its methods run in a thread, one after the other; a write that cannot be done raises `StorageFull`."""

    def __init__(self, home: Path) -> None:
        self._path = home / FILE_NAME
        self._connection = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
        self._path.chmod(0o600)
        self._connection.execute("PRAGMA journal_mode = WAL")
        # FULL: a signature must not leave before what it covers is on the disk.
        self._connection.execute("PRAGMA synchronous = FULL")
        self._connection.executescript(_SCHEMA)
        self._turn = trio.CapacityLimiter(1)
        self._using = threading.Lock()

    @property
    def turn(self) -> trio.CapacityLimiter:
        """Who uses the file now."""
        return self._turn

    async def _do(self, work: Callable[[], T]) -> T:
        def use() -> T:
            with self._using:
                return work()

        return await trio.to_thread.run_sync(use, limiter=self._turn)

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            with self._connection:  # commits, or rolls back
                yield self._connection
        except sqlite3.OperationalError as error:
            raise StorageFull(f"cannot write {self._path}: {error}") from None

    # Witnesses

    async def remember(self, sealing: Sealing, name: bytes, witness: Witness, now_ms: int) -> None:
        """Keep what was seen of a session (a dealer: of a bundle), by its `name`, the session's id or the serial."""

        def write() -> None:
            with self._writing() as connection:
                connection.execute(
                    "INSERT OR IGNORE INTO committees VALUES (?, ?, ?)",
                    (witness.committee, sealing.terms.encode(), sealing.sealed),
                )
                connection.execute(
                    "INSERT OR IGNORE INTO witnesses (role, committee, name, body, seen_ms) VALUES (?, ?, ?, ?, ?)",
                    (witness.role, witness.committee, name, canonical.encode(witness), now_ms),
                )

        await self._do(write)

    async def witnesses(self, committee: bytes, session: bytes, serial: bytes) -> tuple[Sealing, list[Witness]] | None:
        """Return what was seen of a session in each role, None if nothing is known of it."""

        def read() -> tuple[Sealing, list[Witness]] | None:
            rows = self._connection.execute(
                "SELECT role, body FROM witnesses WHERE committee = ? AND"
                " ((role = 'dealer' AND name = ?) OR (role != 'dealer' AND name = ?)) ORDER BY role",
                (committee, serial, session),
            ).fetchall()
            if not rows:
                return None
            return self._sealing(committee), [canonical.decode(body, _ROLES[role]) for role, body in rows]

        return await self._do(read)

    def _sealing(self, committee: bytes) -> Sealing:
        terms, sealed = self._connection.execute(
            "SELECT terms, sealed FROM committees WHERE id = ?", (committee,)
        ).fetchone()
        return Sealing(terms=canonical.decode(terms, Terms), sealed=sealed)

    async def unsettled(self) -> list[tuple[Sealing, PartyWitness]]:
        """Return the party's sessions whose receipt is not complete, the oldest first."""

        def read() -> list[tuple[Sealing, PartyWitness]]:
            rows = self._connection.execute(
                "SELECT committee, body FROM witnesses WHERE role = 'party' AND NOT settled ORDER BY seen_ms"
            ).fetchall()
            return [(self._sealing(committee), canonical.decode(body, PartyWitness)) for committee, body in rows]

        return await self._do(read)

    async def settle(self, session: bytes) -> None:
        """This node need not collect signatures of the session any more."""

        def write() -> None:
            with self._writing() as connection:
                connection.execute("UPDATE witnesses SET settled = 1 WHERE role = 'party' AND name = ?", (session,))

        await self._do(write)

    async def prune(self, now_ms: int) -> None:
        """Forget what nobody asks about any more."""

        def write() -> None:
            with self._writing() as connection:
                connection.execute("DELETE FROM witnesses WHERE seen_ms < ?", (now_ms - WITNESS_KEPT_MS,))
                connection.execute("DELETE FROM committees WHERE id NOT IN (SELECT committee FROM witnesses)")
                connection.execute(
                    "UPDATE signed SET body = x'', signature = x'' WHERE signed_ms < ? AND body != x''",
                    (now_ms - SIGNED_KEPT_MS,),
                )

        await self._do(write)

    # Signatures

    async def signed(self, committee: bytes, session: bytes) -> SignedBody | None:
        """Return what this node signed of a committee's session, as long as it is kept."""
        return await self._do(lambda: self._signed(committee, session))

    def _signed(self, committee: bytes, session: bytes) -> SignedBody | None:
        row = self._connection.execute(
            "SELECT body, signature FROM signed WHERE session = ? AND committee = ? AND body != x''",
            (session, committee),
        ).fetchone()
        return None if row is None else SignedBody(*row)

    async def sign(self, receipt: Receipt, body: bytes, signer: Callable[[], bytes], now_ms: int) -> SignedBody | None:
        """Sign a body and keep it, unless another one of its session was signed: return what was signed.

        None: this node signed that the session's bundle was used in another session, or a session of another committee
        under this one's id, or what it signed of this one is forgotten.
        """

        def write() -> SignedBody | None:
            with self._writing() as connection:
                if (before := self._signed(receipt.committee, receipt.session)) is not None:
                    return before
                done = SignedBody(body, signer())
                row = (receipt.session, receipt.committee, receipt.serial, done.body, done.signature, now_ms)
                entered = connection.execute("INSERT OR IGNORE INTO signed VALUES (?, ?, ?, ?, ?, ?)", row).rowcount
                return done if entered else None

        return await self._do(write)

    # An owner's deployments

    async def deployment(self, deployment: bytes, make: Callable[[], Signed]) -> Signed:
        """Return the owner's signed deployment, made now if there is none yet: it is signed once."""

        def write() -> Signed:
            found = self._connection.execute("SELECT body FROM deployments WHERE id = ?", (deployment,)).fetchone()
            if found is not None:
                return canonical.decode(found[0], Signed)
            signed = make()
            with self._writing() as connection:
                connection.execute("INSERT INTO deployments VALUES (?, ?)", (deployment, canonical.encode(signed)))
            return signed

        return await self._do(write)

    def close(self) -> None:
        with self._using:  # closed under a thread that reads, SQLite takes the process along
            self._connection.close()

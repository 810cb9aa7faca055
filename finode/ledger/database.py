"""The ledger's SQLite file: opened, made where there is none, and left alone where it is something else."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from finode.errors import ConfigError, FinodeError, StorageFull

_APPLICATION_ID = 0x66696E6F  # "fino": tells a ledger from any other SQLite file
_SCHEMA_VERSION = 2
VERSIONS = 8
"""Versions of one record that are kept: of a receipt that members signed one after the other all, mostly. Whoever signs
one body again and again, each time with a lower signature, must not fill every disk of the federation."""
_LOCK_TIMEOUT_S = 10.0
_PAGE_BYTES = 16_384
"""A receipt has about 3 kB: of SQLite's usual pages of 4 kB each would fill one."""
_TRIGGERS = f"""
CREATE TRIGGER records_are_not_changed BEFORE UPDATE ON records
    BEGIN SELECT RAISE(ABORT, 'the ledger only grows'); END;
CREATE TRIGGER records_are_not_deleted BEFORE DELETE ON records
    WHEN (SELECT count(*) FROM records AS newer
          WHERE newer.kind = OLD.kind AND newer.id = OLD.id AND newer.number > OLD.number) < {VERSIONS}
    BEGIN SELECT RAISE(ABORT, 'the ledger only grows'); END;
"""  # noqa: S608 - what is put in is a constant
_SCHEMA = """
CREATE TABLE records (
    number INTEGER PRIMARY KEY,
    kind TEXT NOT NULL,
    id BLOB NOT NULL,
    epoch INTEGER NOT NULL,
    time_ms INTEGER NOT NULL,
    hash BLOB NOT NULL,
    envelope BLOB NOT NULL
);
CREATE INDEX versions ON records (kind, id, number, epoch, hash);
CREATE INDEX hashes ON records (hash);
CREATE INDEX times ON records (kind, time_ms, number);
CREATE INDEX epochs ON records (kind, epoch, time_ms, number);
CREATE TABLE sessions (
    subject TEXT NOT NULL,
    session BLOB NOT NULL,
    id BLOB NOT NULL,
    kind TEXT NOT NULL,
    PRIMARY KEY (subject, session, id)
) WITHOUT ROWID;
"""


def connect(path: Path) -> tuple[sqlite3.Connection, sqlite3.Connection]:
    """Return a connection to write with and one to read with, which any thread may use, one at a time.

    Raises `ConfigError` for a file that is no ledger, is damaged, newer than this program or in use, and
    `StorageFull`. The file is left as it is then.
    """
    with translated(path), ExitStack() as stack:
        # SQLite gives its WAL the database's mode, so it must be private before SQLite makes it.
        with suppress(FileExistsError):
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))

        def opened() -> sqlite3.Connection:
            connection = sqlite3.connect(path, timeout=_LOCK_TIMEOUT_S, isolation_level=None, check_same_thread=False)
            stack.callback(connection.close)
            return connection

        writing, reading = opened(), opened()
        _prepare(writing, path)
        stack.pop_all()  # they stay open
    return writing, reading


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    # Looked at before anything is set: WAL mode would already change a file that is not ours.
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if tables and application != _APPLICATION_ID:
        raise ConfigError(f"{path} is not a ledger, but another program's database", hint="move it away")
    if version > _SCHEMA_VERSION:
        raise ConfigError(f"{path} was written by a newer finode", hint="upgrade finode")
    connection.execute(f"PRAGMA page_size = {_PAGE_BYTES}")  # of no effect on a file that has pages already
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    if not tables:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
        for statement in _statements(_SCHEMA + _TRIGGERS):
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
        connection.execute("COMMIT")
    elif version < _SCHEMA_VERSION:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("DROP TRIGGER records_are_not_changed")
        connection.execute("DROP TRIGGER records_are_not_deleted")
        for statement in _statements(_TRIGGERS):
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
        connection.execute("COMMIT")


def _statements(script: str) -> Iterator[str]:
    """Cut a script into statements; a trigger's own semicolons do not end it."""
    gathered = ""
    for part in script.split(";"):
        gathered += part + ";"
        if sqlite3.complete_statement(gathered):
            yield gathered
            gathered = ""


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Say what SQLite's errors mean for the ledger at `path`, and what to do."""
    try:
        yield
    except sqlite3.Error as error:
        raise _translate(path, error) from None
    except OSError as error:
        raise ConfigError(f"cannot open the ledger {path}: {error.strerror}") from None


def _translate(path: Path, error: sqlite3.Error) -> FinodeError:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return StorageFull(f"no space left for {path}", hint="free some disk space; nothing was changed")
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return ConfigError(f"{path} is in use by another process for over {_LOCK_TIMEOUT_S:g} s", hint="try again")
    if code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_PERM):
        return ConfigError(f"cannot use the ledger {path}: {error}", hint="check its permissions and its disk")
    return damaged(path, str(error))


def damaged(path: Path, detail: str) -> ConfigError:
    """Return the error of a file that cannot be read as a ledger."""
    return ConfigError(
        f"{path} is damaged or no ledger: {detail}",
        hint="move it away, and keep it: the node fetches its records again from its peers",
    )

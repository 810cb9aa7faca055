"""The owner's registry: which models it offers, in `models.db` of the home, and their weights in files beside it.

    HOME/models.db                  SQLite in WAL mode, 0600: one row per model, and the registry's secret salt
    HOME/models/NAME.weights        weight files (`weights_file`), 0600, in a folder of mode 0700

A model's *version* is the hash of its plan's digest and of its weights' HMAC under the salt. It changes with every
weight, and yet nobody without the salt can test a guess of the weights against it, though it is public.

Every call opens its own connection, so a registry may be used from any thread, and from the daemon and the command
line at once. Changes run in one immediate transaction each: the weight file is written and synced first, under a name
of its own, and the row is committed after it; what a crash leaves of a file without a row, the next change sweeps away.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from finode.errors import FinodeError, ModelError, StorageFull, WireError
from finode.models.weights_file import (
    TEMPORARY_SUFFIX,
    Weights,
    decode_weights,
    encode_weights,
    storage_error,
    sync_folder,
    write_atomically,
)
from finode.smpc.counts import has_counts
from finode.smpc.engines import engines_for
from finode.smpc.plan import Plan, decode_plan
from finode.wire import canonical
from finode.wire.directory import MAX_MODELS, ModelOffer, ServiceSpec
from finode.wire.message import KIB

if TYPE_CHECKING:  # importing onnx is for those who import models
    from finode.models.onnx_import import ImportedModel

DATABASE_NAME = "models.db"
FOLDER_NAME = "models"
SALT_BYTES = 32

# A second process waits this long for the first one's change; writing a large weight file takes seconds.
_LOCK_TIMEOUT_S = 30.0
_SCHEMA_VERSION = 1
# All services of a node travel in its record of 64 KiB, beside addresses, offers and deployments.
_MAX_SERVICES_BYTES = 32 * KIB
_SCHEMA = """
CREATE TABLE IF NOT EXISTS secret (id INTEGER PRIMARY KEY CHECK (id = 1), salt BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS models (
    version BLOB PRIMARY KEY,
    service TEXT NOT NULL,
    spec BLOB NOT NULL,
    plan BLOB NOT NULL,
    operators TEXT NOT NULL,
    price INTEGER NOT NULL,
    added REAL NOT NULL,
    file TEXT NOT NULL UNIQUE,
    file_digest BLOB NOT NULL
) WITHOUT ROWID;
"""
_COLUMNS = "version, spec, plan, operators, price, added, file, file_digest"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelEntry:
    """One model of the registry, without its weights. `price` is in micro-credits per input, `added` in UTC seconds."""

    version: bytes
    service: ServiceSpec
    plan: Plan
    operators: tuple[str, ...]
    price: int
    added: float
    weights_path: Path
    weights_digest: bytes

    @property
    def parameters(self) -> int:
        return self.plan.weight_numel()

    def offer(self) -> ModelOffer:
        """Return what the node's record says of this model."""
        return ModelOffer(
            version=self.version,
            plan_digest=self.plan.digest(),
            service=self.service.name,
            price=self.price,
            engines=engines_for(self.plan),
            counts=has_counts(self.plan),
        )


class Registry:
    """The models that an owner offers. All methods are synchronous; they block on the disk."""

    def __init__(self, home: Path, *, clock: Callable[[], float] = time.time) -> None:
        self._database = home / DATABASE_NAME
        self._folder = home / FOLDER_NAME
        self._clock = clock

    def __repr__(self) -> str:
        return f"Registry({self._database})"

    def list(self) -> tuple[ModelEntry, ...]:
        """Return all models by service, then by the time they were added."""
        if not self._database.exists():
            return ()
        with self._connection() as connection:
            rows = connection.execute(f"SELECT {_COLUMNS} FROM models ORDER BY service, added, version")  # noqa: S608
            return tuple(self._entry(row) for row in rows)

    def get(self, version: bytes) -> ModelEntry:
        """Return one model; raise `ModelError` if it is not registered."""
        if self._database.exists():
            with self._connection() as connection:
                row = self._row(connection, version)
            if row is not None:
                return self._entry(row)
        raise ModelError(f"no model of version {version.hex()} is registered", hint="see `finode models list`")

    def find(self, prefix: str) -> ModelEntry:
        """Return the model whose version starts with the hex digits `prefix`; raise `ModelError` for none or many."""
        found = [entry for entry in self.list() if entry.version.hex().startswith(prefix.lower())] if prefix else []
        if len(found) != 1:
            many = f"{len(found)} models match" if found else "no model matches"
            raise ModelError(f"{many} {prefix!r}", hint="give more digits of a version; see `finode models list`")
        return found[0]

    def service(self, name: str) -> ServiceSpec | None:
        """Return the spec of a service that has a model here, or None."""
        return next((entry.service for entry in self.list() if entry.service.name == name), None)

    def add(self, imported: ImportedModel, service: ServiceSpec, price: int) -> ModelEntry:
        """Register a model for a service and return its entry.

        Raises `ModelError` if it does not fit the service, is registered already, or there are too many;
        `StorageFull` when the disk is full. Nothing is changed then.
        """
        if not 0 <= price < 1 << 53:
            raise ModelError(f"the price is {price}; it must be micro-credits per input, from 0")
        plan = imported.plan
        _check_fits(plan, service)
        data = encode_weights(plan.weights, imported.weights)
        self._prepare_home()
        written: Path | None = None
        try:
            with self._transaction() as connection:
                version = _version(plan, _salt(connection), data)
                rows = connection.execute(f"SELECT {_COLUMNS} FROM models").fetchall()  # noqa: S608
                entries = [self._entry(row) for row in rows]
                _check_new(entries, version, service)
                self._sweep(entries)
                entry = ModelEntry(
                    version=version,
                    service=service,
                    plan=plan,
                    operators=imported.operators,
                    price=price,
                    added=self._clock(),
                    weights_path=self._folder / f"{version.hex()[:16]}-{secrets.token_hex(4)}.weights",
                    weights_digest=hashlib.sha256(data).digest(),
                )
                _check_record([*entries, entry])
                write_atomically(entry.weights_path, data)
                written = entry.weights_path
                self._insert(connection, entry)
        except BaseException:  # interrupted, too: a full disk wants the space back now, not at the next change
            if written is not None:
                with suppress(OSError):
                    written.unlink()
            raise
        return entry

    def remove(self, version: bytes) -> ModelEntry:
        """Forget a model, delete its weights, and return what it was; raise `ModelError` if it is not registered."""
        entry = self.get(version)
        with self._transaction() as connection:
            if connection.execute("DELETE FROM models WHERE version = ?", (version,)).rowcount == 0:
                raise ModelError(f"the model {version.hex()} was just removed by somebody else")
        # After the commit: a crash in between leaves a file that the next `add` sweeps away, never a row without one.
        try:
            entry.weights_path.unlink(missing_ok=True)
            sync_folder(self._folder)
        except OSError as error:
            raise storage_error(error, entry.weights_path) from None
        return entry

    def load_weights(self, version: bytes) -> Weights:
        """Return a model's weights; raise `ModelError` that names the file if it is missing, torn or altered."""
        entry = self.get(version)
        path = entry.weights_path
        hint = "restore it from a backup, or remove the model and add it again"
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise ModelError(f"the weights of model {version.hex()} are missing: {path}", hint=hint) from None
        except OSError as error:
            raise ModelError(f"cannot read the weights {path}: {error.strerror or error}", hint=hint) from None
        if not hmac.compare_digest(hashlib.sha256(data).digest(), entry.weights_digest):
            raise ModelError(f"the weight file {path} is damaged or was altered: its digest is wrong", hint=hint)
        return decode_weights(data, entry.plan.weights, path)

    # ---- the database

    def _prepare_home(self) -> None:
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            # SQLite gives its WAL the database's mode, so it must be private before SQLite makes it.
            with suppress(FileExistsError):
                os.close(os.open(self._database, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        except OSError as error:
            raise storage_error(error, Path(error.filename or self._database)) from None

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(sqlite3.connect(self._database, timeout=_LOCK_TIMEOUT_S, isolation_level=None)) as connection:
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA synchronous = FULL")
                self._ensure_schema(connection)
                yield connection
        except sqlite3.Error as error:
            raise self._translate(error) from None

    def _ensure_schema(self, connection: sqlite3.Connection) -> None:
        (found,) = connection.execute("PRAGMA user_version").fetchone()
        if found > _SCHEMA_VERSION:
            raise ModelError(f"{self._database} was written by a newer finode", hint="upgrade finode")
        if found < _SCHEMA_VERSION:
            connection.execute("BEGIN IMMEDIATE")
            for statement in filter(str.strip, _SCHEMA.split(";")):
                connection.execute(statement)
            connection.execute(
                "INSERT OR IGNORE INTO secret (id, salt) VALUES (1, ?)", (secrets.token_bytes(SALT_BYTES),)
            )
            connection.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
            connection.execute("COMMIT")

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._connection() as connection:
            connection.execute("BEGIN IMMEDIATE")
            with connection:  # commits, or rolls back
                yield connection

    def _translate(self, error: sqlite3.Error) -> FinodeError:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code == sqlite3.SQLITE_FULL:
            return StorageFull(f"no space left for {self._database}", hint="free some disk space; nothing was changed")
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return ModelError(
                f"{self._database} is in use by another process for over {_LOCK_TIMEOUT_S:.0f} s", hint="try again"
            )
        return ModelError(
            f"{self._database} cannot be used: {error}", hint="restore it from a backup, or move it away and start anew"
        )

    def _insert(self, connection: sqlite3.Connection, entry: ModelEntry) -> None:
        connection.execute(
            "INSERT INTO models VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                entry.version,
                entry.service.name,
                canonical.encode(entry.service),
                entry.plan.encode(),
                "\n".join(entry.operators),
                entry.price,
                entry.added,
                entry.weights_path.name,
                entry.weights_digest,
            ),
        )

    def _row(self, connection: sqlite3.Connection, version: bytes) -> tuple[Any, ...] | None:
        cursor = connection.execute(f"SELECT {_COLUMNS} FROM models WHERE version = ?", (version,))  # noqa: S608
        row: tuple[Any, ...] | None = cursor.fetchone()
        return row

    def _entry(self, row: tuple[Any, ...]) -> ModelEntry:
        version, spec, plan, operators, price, added, file, digest = row
        try:
            return ModelEntry(
                version=version,
                service=canonical.decode(spec, ServiceSpec),
                plan=decode_plan(plan),
                operators=tuple(operators.split("\n")),
                price=price,
                added=added,
                weights_path=self._folder / file,
                weights_digest=digest,
            )
        except (WireError, ModelError, TypeError) as error:
            raise ModelError(
                f"{self._database} is damaged: a model's row cannot be read ({error})", hint="restore it from a backup"
            ) from None

    def _sweep(self, entries: Sequence[ModelEntry]) -> None:
        """Delete files without a row: a crash left them. The caller holds the write lock, so no `add` is under way."""
        known = {entry.weights_path.name for entry in entries}
        for path in self._folder.iterdir():
            if path.name not in known and path.name.endswith((".weights", TEMPORARY_SUFFIX)):
                with suppress(OSError):
                    path.unlink()


def _salt(connection: sqlite3.Connection) -> bytes:
    row = connection.execute("SELECT salt FROM secret WHERE id = 1").fetchone()
    if row is None or len(row[0]) != SALT_BYTES:
        raise ModelError("the registry's secret salt is missing", hint="restore models.db from a backup")
    return bytes(row[0])


def _version(plan: Plan, salt: bytes, data: bytes) -> bytes:
    commitment = hmac.new(salt, data, hashlib.sha256).digest()
    return canonical.digest("model-version", plan.digest() + commitment)


def _check_fits(plan: Plan, service: ServiceSpec) -> None:
    if plan.input_shape != service.input.shape:
        raise ModelError(
            f"the model takes inputs of the shape {plan.input_shape}, service {service.name!r} those of "
            f"{service.input.shape}"
        )
    if plan.classes != len(service.classes):
        raise ModelError(
            f"the model has {plan.classes} classes, service {service.name!r} names {len(service.classes)}",
            hint="give one label per class, in the order of the model's outputs",
        )


def _check_new(entries: list[ModelEntry], version: bytes, service: ServiceSpec) -> None:
    for entry in entries:
        if entry.version == version:
            raise ModelError(
                f"this model is registered already, as version {version.hex()} of service {entry.service.name!r}",
                hint="remove that one first to change its service or price",
            )
        if entry.service.name == service.name and entry.service != service:
            name, there, here = _difference(entry.service, service)
            raise ModelError(
                f"the model does not agree with service {service.name!r} on {name}: the service has {there}, "
                f"the model {here}",
                hint="all models of a service share its input and classes; choose another service name otherwise",
            )
    if len(entries) >= MAX_MODELS:
        raise ModelError(f"a node offers at most {MAX_MODELS} models", hint="remove one first")


def _difference(there: ServiceSpec, here: ServiceSpec) -> tuple[str, object, object]:
    """Return the first field in which two specs of one service differ, and both values."""
    if there.classes != here.classes:
        return "classes", list(there.classes), list(here.classes)
    ours, theirs = msgspec.to_builtins(here.input), msgspec.to_builtins(there.input)
    name = next(name for name in theirs if theirs[name] != ours[name])
    return f"input.{name}", theirs[name], ours[name]


def _check_record(entries: list[ModelEntry]) -> None:
    services = {entry.service.name: len(canonical.encode(entry.service)) for entry in entries}
    if sum(services.values()) > _MAX_SERVICES_BYTES:
        raise ModelError(
            f"the services' labels together have {sum(services.values())} bytes, over the {_MAX_SERVICES_BYTES} that "
            "fit into a directory record",
            hint="use shorter class names, or fewer services on one node",
        )

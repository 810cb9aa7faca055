"""The sessions of a node: which run now, and which ended lately."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from finode.config import Role
from finode.errors import FinodeError, SessionAborted, SessionCancelled
from finode.identity import PeerId
from finode.node.interface import SessionView
from finode.wire.shares import Phase

REMEMBERED = 100
"""Ended sessions that `finode ps` still shows."""


@dataclass(slots=True)
class Session:
    """One session at this node, as it goes."""

    id: bytes
    committee: bytes
    service: str
    role: Role
    querier: PeerId
    batch: int
    started: float
    phase: Phase = Phase.COMMITTEE
    round: int = -1
    outcome: str = ""
    ended: float = 0.0

    def view(self) -> SessionView:
        return SessionView(
            session=self.id.hex(),
            committee=self.committee.hex(),
            service=self.service,
            role=self.role.value,
            querier=self.querier,
            phase=self.phase.value,
            round=self.round,
            batch=self.batch,
            started=self.started,
            seconds=(self.ended or time.time()) - self.started,
            outcome=self.outcome,
        )


class SessionTable:
    """The node's sessions, for `finode ps`. The committee book keeps to the capacity."""

    def __init__(self) -> None:
        self._running: list[Session] = []
        self._ended: deque[Session] = deque(maxlen=REMEMBERED)

    @property
    def running(self) -> int:
        return len(self._running)

    def views(self) -> tuple[SessionView, ...]:
        """Return what runs, then what ended, the latest first."""
        return tuple(session.view() for session in (*self._running, *reversed(self._ended)))

    @contextmanager
    def enter(
        self, session: bytes, committee: bytes, service: str, role: Role, querier: PeerId, batch: int
    ) -> Iterator[Session]:
        """Enter a session and keep it among the ended ones with its outcome."""
        entry = Session(session, committee, service, role, querier, batch, started=time.time())
        self._running.append(entry)
        try:
            yield entry
            entry.outcome = "answered" if role is Role.QUERIER else "served"
        except SessionCancelled:
            entry.outcome = "cancelled"
            raise
        except SessionAborted as error:
            entry.outcome = f"aborted: {error.message}"
            raise
        except FinodeError as error:
            entry.outcome = f"failed: {error.message}"
            raise
        finally:
            entry.outcome = entry.outcome or "cancelled"
            entry.ended = time.time()
            self._running.remove(entry)
            self._ended.append(entry)

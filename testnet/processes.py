"""A daemon as a process of its own: started in its own session, watched and stopped by its id.

A process id alone may come to mean another process, so it is kept together with the time at which its process started
(field 22 of /proc/PID/stat); a signal is sent only while both agree.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import trio

from finode.errors import ConfigError

POLL_S = 0.05
# What a daemon gets before the next signal. It stops within 3 s of SIGINT,
# longer on a machine where six do so at once.
INTERRUPT_S = 8.0
TERMINATE_S = 2.0
_TAIL_BYTES = 64 * 1024
_TAIL_WIDTH = 400


@dataclass(frozen=True, slots=True)
class ProcessId:
    """One process, and no other that gets its id later. `started` is in clock ticks since the machine booted."""

    pid: int
    started: int

    @classmethod
    def of(cls, pid: int) -> ProcessId:
        """Return the id of a process that has not been waited for yet."""
        found = _stat(pid)
        if found is None:
            raise ConfigError("/proc is not mounted: the testnet cannot tell its processes apart")
        return cls(pid, found[1])

    def is_running(self) -> bool:
        """Whether it has not ended; a process that ended but was not waited for does not run."""
        found = _stat(self.pid)
        return found is not None and found[1] == self.started and found[0] not in "ZX"

    def send(self, number: signal.Signals) -> None:
        """Send a signal if the process still runs."""
        if self.is_running():
            try:
                os.kill(self.pid, number)
            except ProcessLookupError:
                return  # it ended in between


def start(command: Sequence[str], *, log_path: Path) -> subprocess.Popen[bytes]:
    """Start a process whose output goes to the end of `log_path`.

    It is in a session of its own, so that Ctrl-C on the terminal reaches only whoever started it, and FINODE_...
    variables do not reach it, because they would override the settings in all homes alike.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FINODE_")}
    try:
        with log_path.open("ab") as log:
            return subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
    except OSError as error:
        raise ConfigError(f"cannot start {command[0]} with its log in {log_path}: {error.strerror}") from None


async def stop(processes: Iterable[ProcessId]) -> tuple[ProcessId, ...]:
    """Stop all: SIGINT, then SIGTERM, then SIGKILL to those left. Return those that had to be killed."""
    left = tuple(process for process in processes if process.is_running())
    for number, patience_s in ((signal.SIGINT, INTERRUPT_S), (signal.SIGTERM, TERMINATE_S)):
        for process in left:
            process.send(number)
            process.send(signal.SIGCONT)  # one that was frozen on purpose gets its signal too
        left = await _wait_for_end(left, patience_s)
    for process in left:
        process.send(signal.SIGKILL)
    await _wait_for_end(left, TERMINATE_S)
    return left


async def _wait_for_end(processes: tuple[ProcessId, ...], patience_s: float) -> tuple[ProcessId, ...]:
    with trio.move_on_after(patience_s):
        while any(process.is_running() for process in processes):  # noqa: ASYNC110 - not all are our children
            await trio.sleep(POLL_S)
    return tuple(process for process in processes if process.is_running())


def log_tail(path: Path, lines: int = 15) -> str:
    """Return the last lines of a log, each cut to a readable width; "" if there is none."""
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - _TAIL_BYTES))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return ""
    return "\n".join(line[:_TAIL_WIDTH] for line in text.splitlines()[-lines:])


def _stat(pid: int) -> tuple[str, int] | None:
    """Return (state, start time) of a process, None if there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The second field is the command's name in parentheses, which may itself hold spaces and parentheses.
    fields = text.rpartition(")")[2].split()
    return fields[0], int(fields[19])

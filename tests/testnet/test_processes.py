"""Processes by id: only the one that was meant gets a signal, and none survives."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from finode.errors import ConfigError
from finode.testnet import processes
from finode.testnet.processes import ProcessId, log_tail, start, stop

ENDS_ON_SIGINT = "import signal; print('up', flush=True); signal.sigwait([signal.SIGINT])"
IGNORES_SIGNALS = (
    "import signal, time\n"
    "signal.signal(signal.SIGINT, signal.SIG_IGN); signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    "print('up', flush=True); time.sleep(60)"
)


@contextmanager
def running(code: str) -> Iterator[subprocess.Popen[bytes]]:
    # SIGINT is blocked from the start, so that it cannot come before the program waits for it.
    prelude = "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])\n"
    with subprocess.Popen([sys.executable, "-S", "-c", prelude + code], stdout=subprocess.PIPE) as popen:
        assert popen.stdout is not None
        assert popen.stdout.readline() == b"up\n"
        try:
            yield popen
        finally:
            popen.kill()


def test_a_process_is_told_from_a_later_one_with_its_id() -> None:
    ours = ProcessId.of(os.getpid())

    assert ours.is_running()
    assert not ProcessId(ours.pid, ours.started + 1).is_running()


def test_no_signal_reaches_a_process_that_only_has_the_same_id() -> None:
    ours = ProcessId.of(os.getpid())

    ProcessId(ours.pid, ours.started - 1).send(signal.SIGKILL)  # or this test would not get any further

    assert ours.is_running()


@pytest.mark.trio
async def test_one_that_ended_but_was_not_waited_for_does_not_run() -> None:
    with running(ENDS_ON_SIGINT) as popen:
        process = ProcessId.of(popen.pid)
        assert process.is_running()

        assert await stop([process]) == ()

        assert not process.is_running()
        assert popen.wait() == 0


@pytest.mark.slow
@pytest.mark.trio
async def test_one_that_ignores_signals_or_is_frozen_is_ended_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "INTERRUPT_S", 1.0)
    monkeypatch.setattr(processes, "TERMINATE_S", 0.2)
    with running(IGNORES_SIGNALS) as deaf, running(ENDS_ON_SIGINT) as frozen:
        os.kill(frozen.pid, signal.SIGSTOP)
        killed = await stop([ProcessId.of(deaf.pid), ProcessId.of(frozen.pid)])

        assert [process.pid for process in killed] == [deaf.pid]
        assert (deaf.wait(), frozen.wait()) == (-signal.SIGKILL, 0)


def test_settings_in_the_environment_do_not_reach_the_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINODE_NODE__CAPACITY", "1")
    monkeypatch.setenv("OTHER", "stays")
    log = tmp_path / "log"

    code = "import os; print(*[name for name in os.environ if name in ('OTHER', 'FINODE_NODE__CAPACITY')])"
    with start([sys.executable, "-S", "-c", code], log_path=log) as popen:
        assert popen.wait() == 0

    assert log.read_text() == "OTHER\n"


def test_a_program_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot start /no/such/program"):
        start(["/no/such/program"], log_path=tmp_path / "log")


def test_the_tail_of_a_log_is_its_last_lines_cut_to_a_readable_width(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"first\n" + b"x" * 200_000 + b"\nsecond \xff\nthird\n")

    lines = log_tail(log, lines=3).splitlines()

    assert lines[1:] == ["second \ufffd", "third"]
    assert set(lines[0]) == {"x"}
    assert len(lines[0]) < 1000
    assert log_tail(tmp_path / "none") == ""

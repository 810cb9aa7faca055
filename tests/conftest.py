"""For all tests: signals as a program finds them on a terminal."""

from __future__ import annotations

import signal

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """A shell starts what it puts into the background with SIGINT ignored, and children inherit that: those of tests
    that send them a Ctrl-C would never end."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)

"""A query's progress as bars on a terminal and as lines elsewhere."""

from __future__ import annotations

import io
import sys

import pytest

from finode.cli.output import seconds_text, size_text
from finode.cli.progress import shown_progress
from finode.client import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def step(phase: str, done: int, total: int, detail: str = "") -> Progress:
    return Progress(session="ab", phase=phase, done=done, total=total, detail=detail)


STEPS = (
    step("committee", 1, 3, "asked [Clinic East]"),
    step("committee", 3, 3),
    step("preprocessing", 0, 0),
    step("rounds", 5, 17),
    step("committee", 1, 3),  # a second attempt
    step("rounds", 17, 17),
)


def test_bars_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")

    with shown_progress() as on_progress:
        for each in STEPS:
            on_progress(each)

    for text in ("committee", "preprocessing", "rounds", "round 17", "attempt 2"):
        assert text in terminal.getvalue()


def test_lines_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    with shown_progress() as on_progress:
        for each in STEPS:
            on_progress(each)

    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.splitlines() == [
        "committee: asked [Clinic East]",
        "preprocessing",
        "rounds",
        "committee",
        "rounds",
    ]


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 << 20, "5.0 MiB"), (3 << 40, "3072.0 GiB")]
)
def test_sizes(count: int, text: str) -> None:
    assert size_text(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (119, "119.0 s"), (150, "2 min"), (7300, "2 h 1 min"), (200_000, "2 d 7 h")]
)
def test_durations(seconds: float, text: str) -> None:
    assert seconds_text(seconds) == text

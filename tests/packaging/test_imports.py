"""What is imported when: torch in workers only, libp2p in the daemon only, so that everything else starts at once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

HEAVY = ("torch", "libp2p", "sklearn", "onnxscript")


@pytest.mark.parametrize("name", ["cli", "testnet"])
def test_tools_that_read_the_tree_see_what_is_installed(name: str) -> None:
    checkout = Path(__file__).parents[2]
    link = checkout / "finode" / name

    assert link.is_symlink(), f"mypy and import-linter do not see finode.{name}: git checkout {link}"
    assert link.resolve() == checkout / name


def imported_by(code: str) -> set[str]:
    """Return which of the heavy packages a fresh interpreter has after running `code`."""
    program = f"{code}\nimport sys\nprint('imported:', *[name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.rpartition("imported:")[2].split())


@pytest.mark.parametrize("arguments", [["--help"], ["testnet", "--help"], ["query", "--help"], ["--version"]])
def test_the_command_line_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "from finode.cli.__main__ import main\n"
        f"import sys\nsys.argv = ['finode', *{arguments}]\n"
        "try:\n    main()\nexcept SystemExit as ended:\n    assert not ended.code\n"
    )

    assert imported_by(code) == set()


def test_the_client_imports_nothing_heavy() -> None:
    assert imported_by("import finode\nfinode.Client\nfinode.FinodeError") == set()


def test_the_daemon_imports_libp2p_but_no_torch() -> None:
    assert imported_by("import finode.daemon.run, finode.daemon.admin") == {"libp2p"}


def test_the_testnet_imports_neither() -> None:
    assert imported_by("import finode.testnet.report, finode.testnet.network") == set()

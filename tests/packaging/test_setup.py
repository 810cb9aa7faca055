"""`make setup` on machines that lack something: what it installs, what it says, and that it does it once.

The script is the real one; the machine is a folder of programs as its PATH. Its Python is the real one but for
`-m venv` and `-m pip`, which are only written down.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
TOOLS = ("sh", "cat", "cksum", "dirname", "sed", "rm", "mkdir", "ln", "chmod")
PYTHON = """#!/bin/sh
case "$1 $2" in
"-m venv") echo "venv $3" >>{log}; mkdir -p "$3/bin"; ln -s {program} "$3/bin/python" ;;
"-m pip") shift 2; [ "$1" = --version ] || echo "pip $*" >>{log} ;;
*) exec {real} "$@" ;;
esac
"""


@dataclass(frozen=True)
class Machine:
    """A checkout, the programs that are there, and what was done with them."""

    checkout: Path
    programs: Path

    @property
    def log(self) -> list[str]:
        path = self.programs / "log"
        return path.read_text().splitlines() if path.exists() else []

    def add(self, name: str, script: str) -> None:
        (self.programs / name).write_text(script)
        (self.programs / name).chmod(0o755)

    def setup(self, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["/bin/sh", "scripts/setup.sh"],
            cwd=self.checkout,
            env={"PATH": str(self.programs), **environment},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """One that has all that is needed, used by somebody who is not root."""
    checkout, programs = tmp_path / "checkout", tmp_path / "bin"
    (checkout / "scripts").mkdir(parents=True)
    programs.mkdir()
    for name in ("scripts/setup.sh", "pyproject.toml", "constraints.txt"):
        shutil.copy(CHECKOUT / name, checkout / name)
    for name in TOOLS:
        found = shutil.which(name)
        assert found is not None
        (programs / name).symlink_to(found)
    machine = Machine(checkout, programs)
    python = programs / "python3.11"
    machine.add("python3.11", PYTHON.format(log=programs / "log", program=python, real=sys.executable))
    machine.add("cc", "#!/bin/sh\nexit 0\n")
    machine.add("id", "#!/bin/sh\necho 1000\n")
    machine.add("apt-get", f'#!/bin/sh\necho "apt-get $*" >>{programs / "log"}\n')
    return machine


def test_it_installs_once(machine: Machine) -> None:
    first = machine.setup()
    done = machine.log

    assert first.returncode == 0, first.stderr
    assert done[0] == "venv .venv"
    pins = "-c constraints.txt"
    assert [line.partition(pins)[2].split() for line in done if pins in line] == [
        ["-q", "setuptools", "wheel"],
        ["torch"],
        ["-q", "--no-build-isolation", "-e", ".[bench,demo,dev]"],
        ["-q", "--no-deps", "crypten"],
    ]

    second = machine.setup()

    assert (second.returncode, second.stdout, second.stderr) == (0, "", "")
    assert machine.log == done


def test_it_installs_again_when_the_pins_change(machine: Machine) -> None:
    machine.setup()
    done = len(machine.log)

    with (machine.checkout / "constraints.txt").open("a") as file:
        file.write("something==1\n")
    machine.setup()

    again = machine.log[done:]
    assert any(".[bench,demo,dev]" in line for line in again)
    assert "venv .venv" not in again


def test_torch_comes_from_the_index_that_is_named(machine: Machine) -> None:
    machine.setup(TORCH_INDEX="https://torch.example/cpu")

    (torch,) = (line for line in machine.log if line.endswith(" torch"))
    assert "--no-deps --index-url https://torch.example/cpu torch" in torch
    done = machine.log
    machine.setup()  # without the index: torch stays
    assert machine.log == done


def test_someone_who_is_not_root_is_told_the_command(machine: Machine) -> None:
    (machine.programs / "cc").unlink()

    told = machine.setup()

    assert told.returncode == 1
    assert "this machine lacks a C compiler (cc)" in told.stderr
    assert "sudo apt-get update && sudo apt-get install -y gcc libc6-dev" in told.stderr
    assert machine.log == []


def test_root_gets_what_lacks_installed(machine: Machine) -> None:
    machine.add("id", "#!/bin/sh\necho 0\n")
    # No gmp.h until the package is there.
    machine.add("cc", f'#!/bin/sh\ncase "$*" in *-lgmp*) [ -e {machine.programs}/gmp ] ;; esac\n')
    machine.add(
        "apt-get",
        f'#!/bin/sh\necho "apt-get $*" >>{machine.programs / "log"}\n'
        f'case "$*" in *libgmp-dev*) : >{machine.programs}/gmp ;; esac\n',
    )

    done = machine.setup()

    assert done.returncode == 0, done.stderr
    assert machine.log[:2] == ["apt-get update -qq", "apt-get install -y -qq --no-install-recommends libgmp-dev"]
    assert "lacks gmp.h: installing libgmp-dev" in done.stdout


def test_root_is_told_when_the_packages_did_not_help(machine: Machine) -> None:
    machine.add("id", "#!/bin/sh\necho 0\n")
    (machine.programs / "cc").unlink()

    told = machine.setup()

    assert told.returncode == 1
    assert "still not found: a C compiler" in told.stderr


def test_a_machine_without_apt_is_told_what_it_lacks(machine: Machine) -> None:
    (machine.programs / "cc").unlink()
    (machine.programs / "apt-get").unlink()

    told = machine.setup()

    assert told.returncode == 1
    assert "lacks a C compiler" in told.stderr
    assert "Debian calls it: gcc" in told.stderr


def test_a_missing_venv_module_is_named_with_its_package(machine: Machine) -> None:
    program = machine.programs / "python3.11"
    program.write_text(program.read_text().replace("case", 'case "$2" in *ensurepip*) exit 1 ;; esac\ncase', 1))

    told = machine.setup()

    assert told.returncode == 1
    assert "the venv module of python3.11" in told.stderr
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert f"install -y python{version}-venv" in told.stderr


def test_no_python_is_said(machine: Machine) -> None:
    (machine.programs / "python3.11").unlink()

    told = machine.setup()

    assert told.returncode == 1
    assert "finode needs Python 3.11, 3.12 or 3.13, and none is on the PATH" in told.stderr


def test_an_old_python_is_refused_by_name(machine: Machine) -> None:
    machine.add("python2", '#!/bin/sh\ncase "$2" in *print*) echo 3.9 ;; *) exit 1 ;; esac\n')

    told = machine.setup(PYTHON="python2")

    assert told.returncode == 1
    assert "PYTHON=python2 is not Python 3.11, 3.12 or 3.13 but 3.9" in told.stderr


def test_the_targets_that_need_the_environment_make_it() -> None:
    for target in ("demo", "test", "check"):
        planned = subprocess.run(
            ["make", "--dry-run", "--no-print-directory", target],
            cwd=CHECKOUT,
            env={"PATH": os.environ["PATH"]},
            capture_output=True,
            text=True,
            check=True,
        )
        assert "sh scripts/setup.sh" in planned.stdout.splitlines()[0]

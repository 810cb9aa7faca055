"""Whether CrypTen is installed. Needs neither it nor torch, so that a daemon can say which engines its workers have."""

from __future__ import annotations

from importlib import metadata, util

from finode.errors import ConfigError

NAME = "crypten"
VERSION = "0.4.1"


def problem() -> str:
    """Return why the engine cannot run here, "" if it can."""
    if util.find_spec("crypten") is None:
        return "CrypTen is not installed"
    try:
        found = metadata.version("crypten")
    except metadata.PackageNotFoundError:
        return "CrypTen is not installed as a package"
    # What `compat` replaces are names inside of it: they hold for this version alone.
    return "" if found == VERSION else f"CrypTen {found} is installed, and the engine needs {VERSION}"


def is_available() -> bool:
    """Whether this installation can run the engine."""
    return not problem()


def require() -> None:
    """Raise `ConfigError`, which says how to install CrypTen, unless the engine can run here."""
    if why := problem():
        # --no-deps, because its metadata asks for packages that are dead or that it does not need here.
        raise ConfigError(
            f"the engine {NAME!r} cannot be used: {why}", hint=f"pip install --no-deps crypten=={VERSION}"
        )

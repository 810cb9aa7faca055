"""Where the local daemon's API is, and the token it wants.

A running daemon leaves `api.json` in its home: the address it really listens on (port 0 takes a free one) and its
process id. It is removed at exit, and one that was left behind by a killed daemon is recognised by its process id.
"""

from __future__ import annotations

import json
import os
import tomllib
from dataclasses import dataclass
from pathlib import Path

from finode.errors import ConfigError, DaemonUnavailable

API_ADDRESS_NAME = "api.json"
DEFAULT_URL = "http://127.0.0.1:7878"
DEFAULT_HOME = "~/.finode"


@dataclass(frozen=True, slots=True)
class ApiAddress:
    """What `api.json` says."""

    url: str
    pid: int


def home_path(home: Path | str | None) -> Path:
    """Return the home asked for, or FINODE_HOME, or ~/.finode."""
    return Path(home or os.environ.get("FINODE_HOME") or DEFAULT_HOME).expanduser().absolute()


def read_api_address(home: Path) -> ApiAddress | None:
    """Return the address of the daemon that runs on `home`; None if none runs there."""
    try:
        found = json.loads((home / API_ADDRESS_NAME).read_bytes())
        address = ApiAddress(url=str(found["url"]), pid=int(found["pid"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return address if _is_alive(address.pid) else None


def find_url(home: Path | str | None) -> str:
    """Return the API's URL: of the daemon on `home` if one is given, else of FINODE_API__BIND, else of the daemon on
    the default home, else the default.

    Raises `DaemonUnavailable` if a home is given and no daemon runs on it.
    """
    if home is not None:
        address = read_api_address(home_path(home))
        if address is None:
            raise DaemonUnavailable(
                f"no daemon runs on {home_path(home)}", hint=f"start it with `finode start --home {home}`"
            )
        return address.url
    bind = os.environ.get("FINODE_API__BIND", "")
    if bind and not bind.endswith(":0"):
        return url_of(bind)
    address = read_api_address(home_path(None))
    return address.url if address is not None else DEFAULT_URL


def find_token(home: Path | str | None) -> str:
    """Return the bearer token: FINODE_API__TOKEN, or the one in the home's `finode.toml`, or none."""
    token = os.environ.get("FINODE_API__TOKEN", "")
    path = home_path(home) / "finode.toml"
    if token or not path.exists():
        return token
    try:
        section = tomllib.loads(path.read_text(encoding="utf-8")).get("api", {})
    except OSError:
        return ""  # another user's home: a daemon that wants a token will say so
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None
    found = section.get("token", "") if isinstance(section, dict) else ""
    return found if isinstance(found, str) else ""


def url_of(bind: str) -> str:
    """Return the URL at which an API bound to `HOST:PORT` is reached from this machine."""
    host, _, port = bind.rpartition(":")
    host = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}.get(host, host)  # noqa: S104 - compared, not bound
    return f"http://{host}:{port}"


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True

"""finode: a peer-to-peer daemon for federated inference on secret shares.

The public surface is small: `Client`, its result types, and the exceptions. Everything is loaded on first use,
so that `import finode` costs nothing to the command line and to worker processes.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from finode.client import Answer, Client, Progress
    from finode.errors import FinodeError

__all__ = ["Answer", "Client", "FinodeError", "Progress", "__version__"]

__version__ = "0.1.0"

_HOMES = {
    "Answer": "finode.client",
    "Client": "finode.client",
    "FinodeError": "finode.errors",
    "Progress": "finode.client",
}


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'finode' has no attribute {name!r}")

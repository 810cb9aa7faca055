"""The entry point of `finode` and of `python -m finode.cli`."""

from __future__ import annotations

import os
import sys
from types import TracebackType

from .root import finode


def main() -> None:
    """Run the command line; ends the process with its status."""
    if not os.environ.get("FINODE_TRACEBACK"):
        sys.excepthook = _last_words
    finode(prog_name="finode")


def _last_words(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print a bug in one line: whoever wants the traceback asks for it."""
    text = " ".join(str(error).split()) or kind.__name__
    print(f"finode: internal error: {kind.__name__}: {text}", file=sys.stderr)
    print("hint: this is a bug; FINODE_TRACEBACK=1 shows where", file=sys.stderr)


if __name__ == "__main__":
    main()

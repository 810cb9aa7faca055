"""Files that hold secrets: written whole or not at all, readable by their owner alone."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

Buffer = bytes | bytearray | memoryview


def write_private(path: Path, data: Buffer) -> None:
    """Write `data` to `path` with mode 0600, whole or not at all."""
    scratch = path.with_name(f"{path.name}.{secrets.token_hex(8)}.part")  # two writers must not share one
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    except OSError:
        scratch.unlink(missing_ok=True)
        raise

"""What comes out of nested nurseries."""

from __future__ import annotations


def only(error: BaseException) -> BaseException:
    """Return the one exception inside nested groups; the group itself when there are several."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error

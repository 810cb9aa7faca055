from __future__ import annotations

import pytest

from finode.smpc.crypten import availability


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs CrypTen where it is not installed; the base installation works without it."""
    if why := availability.problem():
        for item in items:
            if "smpc/crypten" in str(item.path):
                item.add_marker(pytest.mark.skip(reason=why))

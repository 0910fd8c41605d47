"""The order of the tests' files: whole journeys first, so that no process is left alone with one at the end."""

from __future__ import annotations

import pytest

LONGEST = (
    "tests/spaces/test_journey.py",
    "tests/test_publish.py",
    "tests/backends/test_openvino.py",
    "tests/test_watch.py",
    "tests/backends/coreml/",
    "tests/publishing/",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Stable: within a file nothing moves."""
    items.sort(key=lambda item: next((n for n, path in enumerate(LONGEST) if item.nodeid.startswith(path)), 99))

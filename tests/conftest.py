"""The order of the tests' files, whole journeys first, so that no process is left alone with one at the end; and a
fixture."""

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


LONG = ("tests/backends/test_said.py", "tests/test_publish_lora.py")
SLOW = (  # they build, convert or publish: what `make test-quick` leaves out
    *LONGEST[:4],
    "tests/backends/coreml/test_backend.py",
    "tests/backends/coreml/test_companions.py",
    "tests/backends/coreml/test_contract.py",
    "tests/backends/coreml/test_convert.py",
    "tests/backends/coreml/test_interpreter.py",
    "tests/backends/coreml/test_xl.py",
    "tests/backends/sdnq/test_backend.py",
    "tests/backends/svdquant/test_backend.py",
    "tests/backends/test_flux.py",
    "tests/backends/test_openvino",
    "tests/backends/test_streaming.py",
    "tests/backends/test_toy.py",
    "tests/checkpoint/test_families.py",
    "tests/checkpoint/test_load.py",
    "tests/checkpoint/test_strangers.py",
    "tests/compression/test_token_merging.py",
    "tests/hostile/",
    "tests/hub/test_clients.py",
    "tests/hub/test_store.py",
    "tests/publishing/test_check.py",
    "tests/publishing/test_clients.py",
    "tests/publishing/test_faults.py",
    "tests/recipes/test_analysis_run.py",
    "tests/spaces/test_deploy.py",
    "tests/test_cli.py",
    "tests/test_device_stages.py",
    "tests/test_isolate.py",
    "tests/test_jobs_",
    "tests/test_mixed.py",
    "tests/test_terminal.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Stable: within a file nothing moves."""
    for item in items:
        if item.nodeid.startswith(LONG):
            item.add_marker("long")
        if item.nodeid.startswith(SLOW):
            item.add_marker("slow")
    items.sort(key=lambda item: next((n for n, path in enumerate(LONGEST) if item.nodeid.startswith(path)), 99))


@pytest.fixture
def passing(tmp_path, monkeypatch):
    """The system's folder for passing files, for this test alone."""
    import tempfile

    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    yield folder
    tempfile.tempdir = None

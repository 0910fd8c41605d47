from __future__ import annotations

import pytest

from sdhub.core.endpoint import embedded


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """The address of an embedded Hub that any token may write to."""
    with embedded(tmp_path_factory.mktemp("hub")) as url:
        yield url

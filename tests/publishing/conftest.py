from __future__ import annotations

from itertools import count

import pytest
from huggingface_hub import HfApi

from sdhub.core.endpoint import embedded
from sdhub.publishing.repository import assemble
from tests.publishing.publications import publication

TOKEN = "local"
_numbers = count()


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """The address of an embedded Hub that any token may write to."""
    with embedded(tmp_path_factory.mktemp("hub")) as url:
        yield url


@pytest.fixture
def api(hub):
    return HfApi(endpoint=hub, token=TOKEN)


@pytest.fixture
def repo_id():
    """A name that no other test has."""
    return f"local/model-{next(_numbers)}"


@pytest.fixture
def folder(tmp_path):
    """A repository, ready to be pushed."""
    out = tmp_path / "out"
    out.mkdir()
    assemble(publication(tmp_path), out)
    return out

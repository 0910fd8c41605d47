from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator

import pytest

from tests.hub.web import Browser
from tests.hubs import running_hub

USERS = [
    {"name": "ada", "token": "token-of-ada", "role": "write", "orgs": ["lab"]},
    {"name": "bob", "token": "token-of-bob", "role": "write", "orgs": []},
    {"name": "eve", "token": "token-of-eve", "role": "read", "orgs": ["lab"]},
]


@pytest.fixture(scope="session")
def hub_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_hub(tmp_path_factory.mktemp("hub") / "root") as url:
        yield url


@pytest.fixture
def web(hub_url: str) -> Browser:
    return Browser(hub_url)


@pytest.fixture
def visitor(hub_url: str) -> Browser:
    return Browser(hub_url, token=None)


@pytest.fixture
def repo(web: Browser, request: pytest.FixtureRequest) -> str:
    """A new model repository."""
    digest = hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:12]
    name = f"acme/r-{digest}"
    web.http.request("DELETE", "/api/repos/delete", json={"name": name[5:], "organization": "acme"})
    assert web.create(name).status_code == 200
    return name


@pytest.fixture(scope="session")
def closed_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Hub with users."""
    folder = tmp_path_factory.mktemp("closed")
    (folder / "users.json").write_text(json.dumps(USERS))
    with running_hub(folder / "root", "--users", str(folder / "users.json")) as url:
        yield url

from __future__ import annotations

import base64
import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from hubs import running_hub

USERS = [
    {"name": "ada", "token": "token-of-ada", "role": "write", "orgs": ["lab"]},
    {"name": "bob", "token": "token-of-bob", "role": "write", "orgs": []},
    {"name": "eve", "token": "token-of-eve", "role": "read", "orgs": ["lab"]},
]


class Browser:
    """Plain HTTP to a Hub, with or without a token."""

    def __init__(self, url: str, token: str | None = "any") -> None:
        self.url = url
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self.http = httpx.Client(base_url=url, headers=headers, trust_env=False, timeout=60)

    def create(self, name: str, **values: Any) -> httpx.Response:
        namespace, _, short = name.rpartition("/")
        return self.http.post("/api/repos/create", json={"name": short, "organization": namespace, **values})

    def commit(self, name: str, *lines: dict[str, Any], rev: str = "main", **header: str) -> httpx.Response:
        entries = [{"key": "header", "value": {"summary": "A commit", **header}}, *lines]
        body = "".join(json.dumps(entry) + "\n" for entry in entries)
        return self.http.post(f"/api/models/{name}/commit/{rev}", content=body.encode())

    def put_lfs(self, name: str, content: bytes, announced: bytes | None = None) -> httpx.Response:
        """Upload an LFS object; `announced` is what it is said to be."""
        told = content if announced is None else announced
        objects = [{"oid": hashlib.sha256(told).hexdigest(), "size": len(told)}]
        batch = self.http.post(
            f"/{name}.git/info/lfs/objects/batch", json={"operation": "upload", "objects": objects}
        )
        href = batch.json()["objects"][0]["actions"]["upload"]["href"]
        return httpx.put(href, content=content, trust_env=False, timeout=60)


def file(path: str, content: bytes) -> dict[str, Any]:
    value = {"path": path, "content": base64.b64encode(content).decode(), "encoding": "base64"}
    return {"key": "file", "value": value}


def lfs(path: str, content: bytes, **changes: Any) -> dict[str, Any]:
    oid = hashlib.sha256(content).hexdigest()
    return {
        "key": "lfsFile",
        "value": {"path": path, "algo": "sha256", "oid": oid, "size": len(content), **changes},
    }


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

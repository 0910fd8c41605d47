"""Plain HTTP to a Hub, as the tests need it."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

import httpx


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

"""A repository of the Hub at one commit, read without its weights. Works with huggingface_hub 1.x and 2.x."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from sdhub.checkpoint.headers import LENGTH_BYTES, Header, header_length, parse_header
from sdhub.checkpoint.tree import MAX_VOCABULARY, Tree, check_path
from sdhub.core.documents import shown
from sdhub.core.errors import HubError
from sdhub.core.hub import Hub

WORKERS = 8
TIMEOUT = 30.0
SHA = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")


def repository(hub: Hub, repo_id: str, revision: str | None = None) -> Repository:
    """A model repository, pinned to the commit that `revision` means now. Raises HubError, SourceError."""
    where = f"{repo_id}@{revision}" if revision else repo_id
    info = hub.read(
        where, lambda: hub.api.model_info(repo_id, revision=revision, files_metadata=True, timeout=TIMEOUT)
    )
    return Repository(hub, repo_id, info)


def download(hub: Hub, repo_id: str, sha: str, path: str) -> Path:
    """One file of a pinned commit, in huggingface_hub's cache. Raises HubError, SourceError."""
    return Path(
        hub.read(f"{shown(path)} of {repo_id}", lambda: hub.api.hf_hub_download(repo_id, path, revision=sha))
    )


class Repository(Tree):
    """`sha` is the pinned commit; `card` the front matter of its README."""

    def __init__(self, hub: Hub, repo_id: str, info: Any) -> None:
        self.hub = hub
        self.repo_id = repo_id
        self.where = repo_id
        self.sha = _sha(info.sha, repo_id)
        self.gated = bool(info.gated)
        self.private = bool(info.private)
        self.card: dict[str, Any] = info.card_data.to_dict() if info.card_data else {}
        self.sizes = dict(_sizes(info.siblings or (), repo_id))

    def read(self, path: str) -> bytes:
        return self.fetch(path).read_bytes()

    def fetch(self, path: str) -> Path:
        """A small file in the cache."""
        self.require(path, MAX_VOCABULARY)
        return download(self.hub, self.repo_id, self.sha, path)

    def prefetch(self, paths: Iterable[str]) -> None:
        with ThreadPoolExecutor(WORKERS) as pool:
            list(pool.map(self.fetch, paths))

    def headers(self, paths: Iterable[str]) -> dict[str, Header]:
        paths = list(paths)
        with ThreadPoolExecutor(WORKERS) as pool:
            return dict(zip(paths, pool.map(self._header, paths), strict=True))

    def _header(self, path: str) -> Header:
        where, size = f"{shown(path)} of {self.where}", self.sizes[path]
        length = header_length(self._range(path, 0, min(LENGTH_BYTES, size)), size, where)
        return parse_header(self._range(path, LENGTH_BYTES, length), size, where)

    def _range(self, path: str, start: int, count: int) -> bytes:
        """`count` bytes from `start` on, and none that follow them."""
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils import (  # type: ignore[attr-defined]
            hf_raise_for_status,
            http_stream_backoff,
        )

        url = hf_hub_url(self.repo_id, path, revision=self.sha, endpoint=self.hub.url)
        headers = self.hub.headers | {"Range": f"bytes={start}-{start + count - 1}", "Accept-Encoding": "identity"}

        def get() -> bytes:
            skip, found = 0, bytearray()
            with http_stream_backoff(
                "GET", url, headers=headers, timeout=TIMEOUT, max_retries=0, retry_on_exceptions=()
            ) as response:
                hf_raise_for_status(response)
                if response.status_code != 206:  # the server gives the file from its beginning
                    skip = start
                for chunk in response.iter_bytes(min(skip + count, 2**20)):
                    found += chunk
                    if len(found) >= skip + count:
                        break
            if len(found) < skip + count:
                raise ConnectionError("the answer was cut off")
            return bytes(found[skip : skip + count])

        return self.hub.read(f"{shown(path)} of {self.where}", get)


def _sha(sha: Any, repo_id: str) -> str:
    if not isinstance(sha, str) or SHA.fullmatch(sha) is None:
        raise HubError(f"the Hub named no commit for {repo_id}", hint="is it a Hub?")
    return sha


def _sizes(siblings: Iterable[Any], repo_id: str) -> Iterator[tuple[str, int]]:
    for sibling in siblings:
        check_path(sibling.rfilename, repo_id)
        if sibling.size is None:
            raise HubError(f"the Hub gave no size for {shown(sibling.rfilename)} of {repo_id}", hint="try again")
        yield sibling.rfilename, int(sibling.size)

"""A repository of the Hub at one commit, read without its weights. Works with huggingface_hub 1.x and 2.x."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdhub.checkpoint.headers import LENGTH_BYTES, Header, header_length, parse_header
from sdhub.checkpoint.tree import MAX_VOCABULARY, Tree, check_path
from sdhub.core.disk import watched
from sdhub.core.documents import shown
from sdhub.core.errors import HubError, RefusedError, SourceError

WORKERS = 8
TIMEOUT = 30.0
SHA = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")


@dataclass(frozen=True)
class Hub:
    """Where to ask: an endpoint (None is huggingface_hub's own default) and a token, never shown."""

    endpoint: str | None = None
    token: str | None = field(default=None, repr=False)

    def repository(self, repo_id: str, revision: str | None = None) -> Repository:
        """A model repository, pinned to the commit that `revision` means now. Raises HubError, SourceError."""
        from huggingface_hub import HfApi

        where = f"{repo_id}@{revision}" if revision else repo_id
        with telling(where):
            info = HfApi(self.endpoint, token=self.token).model_info(
                repo_id, revision=revision, files_metadata=True, timeout=TIMEOUT
            )
        return Repository(self, repo_id, info)

    def download(self, repo_id: str, sha: str, path: str) -> Path:
        """One file of a pinned commit, in huggingface_hub's cache. Raises HubError, SourceError."""
        from huggingface_hub import hf_hub_download

        with telling(f"{shown(path)} of {repo_id}"):
            return Path(hf_hub_download(repo_id, path, revision=sha, endpoint=self.endpoint, token=self.token))


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
        return self.hub.download(self.repo_id, self.sha, path)

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
            build_hf_headers,
            hf_raise_for_status,
            http_stream_backoff,
        )

        url = hf_hub_url(self.repo_id, path, revision=self.sha, endpoint=self.hub.endpoint)
        headers = build_hf_headers(token=self.hub.token)
        headers |= {"Range": f"bytes={start}-{start + count - 1}", "Accept-Encoding": "identity"}
        skip, found = 0, bytearray()
        with (
            telling(f"{shown(path)} of {self.where}"),
            # Only answers are retried: a read that breaks off inside the block cannot be.
            http_stream_backoff("GET", url, headers=headers, timeout=TIMEOUT, retry_on_exceptions=()) as response,
        ):
            hf_raise_for_status(response)
            if response.status_code != 206:  # the server gives the file from its beginning
                skip = start
            for chunk in response.iter_bytes(min(skip + count, 2**20)):
                found += chunk
                if len(found) >= skip + count:
                    break
        if len(found) < skip + count:
            raise HubError(f"the Hub cut {shown(path)} of {self.where} off", hint="try again")
        return bytes(found[skip : skip + count])


@contextmanager
def telling(what: str) -> Iterator[None]:
    """Turn what huggingface_hub raises into one line about `what`; nothing of the request is repeated."""
    from huggingface_hub import constants, errors

    network: type[Exception] = errors.HTTPError  # type: ignore[attr-defined]  # of httpx or httpx2
    xet: type[Exception] = getattr(errors, "XetDownloadError", TimeoutError)
    try:
        with watched(Path(constants.HF_HUB_CACHE)):
            yield
    except errors.GatedRepoError:
        repo = what.rpartition(" of ")[2].partition("@")[0]
        raise RefusedError(
            f"{what} is gated, and its terms are not accepted yet",
            hint=f"accept them on the page of {repo}, then set HF_TOKEN or run: hf auth login",
        ) from None
    except errors.RevisionNotFoundError:
        raise SourceError(
            f"{what}: no such revision", hint="give a branch, a tag or a commit, or leave it out"
        ) from None
    except errors.RepositoryNotFoundError:
        raise SourceError(
            f"the Hub shows no model {what}",
            hint="look at the spelling; for a private one set HF_TOKEN or run: hf auth login",
        ) from None
    except errors.LocalEntryNotFoundError:
        raise HubError(
            f"{what} is not in the cache, and the Hub could not be reached", hint="is the network up?"
        ) from None
    except errors.EntryNotFoundError:
        raise SourceError(f"{what} is not on the Hub", hint="is the revision right?") from None
    except errors.HfHubHTTPError as error:
        raise _answer(what, error) from None
    except (network, xet, ConnectionError, TimeoutError) as error:
        raise HubError(
            f"the Hub could not be reached for {what} ({type(error).__name__})", hint="is the network up?"
        ) from None
    except (errors.HFValidationError, errors.FileMetadataError) as error:
        raise HubError(f"the Hub's answer about {what} is of no use ({type(error).__name__})") from None
    except OSError as error:
        raise HubError(
            f"{what} could not be stored ({error.strerror or type(error).__name__})",
            hint="is there room, and may the cache (HF_HOME) be written to?",
        ) from None


def _answer(what: str, error: Any) -> HubError:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return HubError(
            f"the Hub does not let this token read {what} ({status})", hint="set HF_TOKEN or run: hf auth login"
        )
    if status == 429:
        return HubError(f"the Hub asks for fewer requests ({what})", hint="wait five minutes, or set HF_TOKEN")
    return HubError(f"the Hub answered {status or 'nothing'} for {what}", hint="try again later")


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

"""A Hub: its address and token, one client of huggingface_hub, and every failure as one line without the token."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from sdhub.core.disk import full_disk
from sdhub.core.documents import shown
from sdhub.core.errors import HubError, RefusedError, SdhubError, SourceError, UsageError
from sdhub.core.progress import SILENT, Progress
from sdhub.core.quiet import quiet
from sdhub.core.retry import Patience, patiently, status_of

if TYPE_CHECKING:
    from huggingface_hub import HfApi

T = TypeVar("T")
PUBLIC = "https://huggingface.co"
LOCAL_TOKEN = "local"  # noqa: S105 — the embedded Hub takes any token for the user `local`
TOKENS_PAGE = "huggingface.co/settings/tokens"
LOGIN = f"log in with `hf auth login` or set HF_TOKEN; tokens are made at {TOKENS_PAGE}"
WRITE = f"take a token with write access to it from {TOKENS_PAGE}"
_ADVICE = {
    400: "the Hub takes no such content; see its message",
    401: LOGIN,
    403: WRITE,
    404: "check the name, and that the token may see it",
    409: "someone else changed it at the same time: run again",
    412: "someone else keeps changing it: run again",
    413: "a file is larger than this Hub takes",
    429: "too many requests: wait a few minutes and run again, what is done is kept",
}
SILENT_SECONDS = 60.0
_LATER = "the Hub is in trouble: run again later"
_TAG = re.compile(r"</?[A-Za-z][^<>]*>")


@dataclass(frozen=True)
class Hub:
    """A Hub's address, and the token to use there (never shown): plain data, fit for another process.

    Raises UsageError for an address that is none, or holds a password: addresses are shown and kept.
    """

    url: str = PUBLIC
    token: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        vet_address(self.url)
        object.__setattr__(self, "url", self.url.rstrip("/"))

    @property
    def name(self) -> str:
        """What it is known by: the embedded Hub of this home may have another address each time."""
        return "local" if self.token == LOCAL_TOKEN else self.url

    @property
    def option(self) -> str | None:
        """What `--hub` is to say for it, where it is not what commands take by themselves."""
        return None if self.url == (os.environ.get("HF_ENDPOINT") or PUBLIC).rstrip("/") else self.name

    @property
    def public(self) -> bool:
        """Whether this is huggingface.co, which stores with Xet."""
        host = urlsplit(self.url).hostname or ""
        return host == "hf.co" or host == "huggingface.co" or host.endswith(".huggingface.co")

    @property
    def api(self) -> HfApi:
        """A client of huggingface_hub that uses this token or none, whatever token is stored on the machine."""
        from huggingface_hub import HfApi

        return HfApi(endpoint=self.url, token=self.token or False, **_library())

    @property
    def headers(self) -> dict[str, str]:
        """Those of a request that `api` has no method for."""
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

        headers: dict[str, str] = build_hf_headers(token=self.token or False, **_library())
        return headers

    def redact(self, text: str) -> str:
        """The text without the token."""
        return text.replace(self.token, "***") if self.token else text

    def ask(self, doing: str, act: Callable[[], T], progress: Progress = SILENT) -> T:
        """What `act` returns, tried patiently and with libraries kept quiet. Raises as `telling`.

        Not for threads beside each other, which would swap the standard streams: those `read`.
        """
        with self.telling(doing), quiet():
            return patiently(doing, act, progress=progress)

    def read(self, source: str, act: Callable[[], T], progress: Progress | None = None) -> T:
        """What `act` reads of a source that the user named, tried patiently. Raises as `telling`.

        Where a server asks to wait for long, it is only done with a `progress` to say so to.
        """
        doing, patience = f"read {source}", Patience() if progress else Patience(most=SILENT_SECONDS)
        with self.telling(doing, source):
            return patiently(doing, act, patience=patience, progress=progress or SILENT)

    @contextmanager
    def telling(self, doing: str, source: str = "") -> Iterator[None]:
        """Turn any failure of huggingface_hub in the block into one line: "cannot {doing}: why", a HubError.

        `source` is what the user named, if that is read: where it is missing or gated, the Hub has not failed, and
        it is a SourceError or RefusedError. A full disk is an SdhubError.
        """
        from huggingface_hub import errors

        transport: type[Exception] = vars(errors)["HTTPError"]  # of httpx in hub 1.x, of httpx2 in 2.x
        xet: type[Exception] = getattr(errors, "XetDownloadError", OSError)
        try:
            yield
        except SdhubError:
            raise
        except (transport, xet, errors.EntryNotFoundError, OSError, RuntimeError, ValueError) as error:
            raise self._told(error, doing, source) from None

    def _told(self, error: Exception, doing: str, source: str) -> SdhubError:
        from huggingface_hub import constants

        full = full_disk(error, [Path(constants.HF_HUB_CACHE)])
        own = _of_source(error, source) if source else None
        if full or own:
            return full or own  # type: ignore[return-value]
        status, said = status_of(error), self._said(error)
        if status is not None:
            hint = LOGIN if source and status == 403 else _ADVICE.get(status, _LATER)
            return HubError(f"cannot {doing}: {status} {said}", hint=hint)
        if isinstance(error, ValueError):
            return HubError(f"cannot {doing}: {said}")
        if getattr(error, "filename", None) is not None:
            return HubError(f"cannot {doing}: {said}", hint="may the folder be written to? HF_HOME names another")
        return HubError(
            f"cannot {doing} at {self.url}: {said}", hint="check the network and the address, then run again"
        )

    def _said(self, error: Exception) -> str:
        said = getattr(error, "server_message", None) or str(error) or type(error).__name__
        return shown(" ".join(_TAG.sub(" ", self.redact(str(said))).split()), 300)


def _of_source(error: Exception, source: str) -> SdhubError | None:
    """What is the matter with a source that is there for others, or not at all."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        repo = source.rpartition(" of ")[2].partition("@")[0]
        return RefusedError(
            f"{source} is gated, and its terms are not accepted yet",
            hint=f"accept them on the page of {repo}, then set HF_TOKEN or run: hf auth login",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return SourceError(f"{source}: no such revision", hint="give a branch, a tag or a commit, or leave it out")
    if isinstance(error, errors.RepositoryNotFoundError):
        return SourceError(
            f"the Hub shows no model {source}",
            hint="look at the spelling; for a private one set HF_TOKEN or run: hf auth login",
        )
    if isinstance(error, errors.EntryNotFoundError) and not isinstance(error, errors.LocalEntryNotFoundError):
        return SourceError(f"{source} is not on the Hub", hint="is the revision right?")
    return None


def _library() -> dict[str, Any]:
    return {"library_name": "sdhub", "library_version": metadata.version("sdhub")}


def vet_address(url: str) -> None:
    """Raises UsageError unless this is http(s)://HOST[:PORT][/PATH] and no more; no secret in it is repeated."""
    secret = "@" in url or "?" in url or "#" in url
    try:
        parts = urlsplit(url)
        sound = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port or an IPv6 address that is none
        sound = False
    if secret:
        raise UsageError(
            f"the address {shown_address(url)} of a Hub holds more than a host",
            hint="no user, password or query goes into it: give the token in HF_TOKEN, or run: hf auth login",
        )
    if not sound or any(char.isspace() or not char.isprintable() for char in url):
        raise UsageError(f"{url[:100]} is no address of a Hub", hint="give http(s)://HOST, or local")


def shown_address(url: str) -> str:
    """An address without what may be secret in it: user, password, query and fragment."""
    bare = url.partition("?")[0].partition("#")[0]
    scheme, slashes, rest = bare.rpartition("://")
    return f"{scheme}{slashes}{rest.rpartition('@')[2]}"[:100] if "@" not in scheme else "***"

"""Talking to a Hub: one client, and every failure as one line that never shows the token."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from sdhub.core.disk import full_disk
from sdhub.core.errors import HubError, SdhubError
from sdhub.core.retry import patiently, status_of
from sdhub.core.text import plain

if TYPE_CHECKING:
    from huggingface_hub import HfApi

TOKENS_PAGE = "huggingface.co/settings/tokens"
_LOGIN = f"log in with `hf auth login` or set HF_TOKEN; tokens are made at {TOKENS_PAGE}"
_WRITE = f"take a token with write access to it from {TOKENS_PAGE}"
_ADVICE = {
    400: "the Hub takes no such content; see its message",
    401: _LOGIN,
    403: _WRITE,
    404: "check the name, and that the token may see it",
    409: "someone else changed it at the same time: run again",
    412: "someone else keeps changing it: run again",
    413: "a file is larger than this Hub takes",
    429: "too many requests: wait a few minutes and run again, what is done is kept",
}


def client(endpoint: str, token: str | None) -> HfApi:
    """A client of huggingface_hub that uses this token or none, whatever token is stored on the machine."""
    from huggingface_hub import HfApi

    return HfApi(
        endpoint=endpoint,
        token=token or False,
        library_name="sdhub",
        library_version=metadata.version("sdhub"),
    )


def is_public_hub(endpoint: str) -> bool:
    """Whether this is huggingface.co, which stores with Xet."""
    host = urlsplit(endpoint).hostname or ""
    return host == "hf.co" or host == "huggingface.co" or host.endswith(".huggingface.co")


def redact(text: str, token: str | None) -> str:
    """The text without the token."""
    return text.replace(token, "***") if token else text


@contextmanager
def speaking(doing: str, *, endpoint: str, token: str | None) -> Iterator[None]:
    """Turn any failure of huggingface_hub in the block into a HubError: "cannot {doing}: why"."""
    from huggingface_hub import errors

    transport: type[Exception] = vars(errors)["HTTPError"]  # of httpx in hub 1.x, of httpx2 in 2.x
    try:
        yield
    except SdhubError:
        raise
    except (transport, OSError, RuntimeError, ValueError) as error:
        full = full_disk(error)
        if full is not None:
            raise full from None
        status = status_of(error)
        said = _said(error, token)
        if status is None:
            here = isinstance(error, ValueError) or getattr(error, "filename", None) is not None
            where = "" if here else f" at {endpoint}"
            hint = "" if here else "check the network and the address, then run again"
            raise HubError(f"cannot {doing}{where}: {said}", hint=hint) from None
        hint = "the Hub is in trouble: run again later" if status >= 500 else _ADVICE.get(status, "")
        raise HubError(f"cannot {doing}: {status} {said}", hint=hint) from None


def check_token(endpoint: str, token: str | None, namespace: str | None = None, *, propose: bool = False) -> str:
    """The namespace to publish to, known to be writable as far as the token tells: its own if None.

    `propose` is for pull requests, which go to foreign namespaces too. Raises HubError for a token that is
    missing, unknown, read-only or of someone else, before any work is done.
    """
    if not token:
        raise HubError(f"there is no token for {endpoint}", hint=_LOGIN)
    with speaking("check the token", endpoint=endpoint, token=token):
        user = patiently("check the token", lambda: client(endpoint, token).whoami(token=token))
    name = str(user.get("name", ""))
    target = namespace or name
    access = _mapping(_mapping(user.get("auth")).get("accessToken"))
    if access.get("role") == "read":
        raise HubError(f"the token of {plain(name)} may only read", hint=_WRITE)
    if propose or user.get("everyNamespace") is True:  # the embedded Hub's open user
        return target
    orgs = {str(org.get("name")): org for org in map(_mapping, user.get("orgs") or ())}
    if target != name and target not in orgs:
        own = ", ".join(plain(each) for each in sorted({name, *orgs}))
        raise HubError(f"{plain(name)} is no member of {plain(target)}", hint=f"publish to one of: {own}")
    if target != name and orgs[target].get("roleInOrg") == "read":
        raise HubError(f"{plain(name)} may only read in {plain(target)}", hint="ask for write access")
    if access.get("role") == "fineGrained" and not _granted(access, target):
        raise HubError(f"the token of {plain(name)} has no write access to {plain(target)}", hint=_WRITE)
    return target


def _granted(access: Mapping[str, Any], namespace: str) -> bool:
    scoped = _mapping(access.get("fineGrained")).get("scoped")
    if not isinstance(scoped, list):
        return True
    for scope in map(_mapping, scoped):
        entity = str(_mapping(scope.get("entity")).get("name", ""))
        if entity.partition("/")[0] == namespace and "repo.write" in (scope.get("permissions") or ()):
            return True
    return False


def _said(error: BaseException, token: str | None) -> str:
    message = getattr(error, "server_message", None) or str(error) or type(error).__name__
    return plain(redact(str(message), token))


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}

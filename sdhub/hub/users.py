"""Who calls: users, their tokens and namespaces.

Without a users file the Hub is open: any token acts as the user `local`, who may read and write everything.
With one, a token is a user's or is refused. Of a token only the SHA-256 is kept in memory.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from dataclasses import dataclass
from pathlib import Path

from sdhub.hub.errors import Refusal, StartError
from sdhub.hub.names import check_name

LOCAL = "local"


@dataclass(frozen=True)
class Caller:
    """Who asks. `name` "" is nobody (no token); `everything` is the owner of all namespaces."""

    name: str = ""
    writes: bool = False
    orgs: tuple[str, ...] = ()
    everything: bool = False

    @property
    def anonymous(self) -> bool:
        """Whether there was no token."""
        return not self.name

    def owns(self, namespace: str) -> bool:
        """Whether the namespace is the caller's own or that of one of their organizations."""
        names = {name.lower() for name in (self.name, *self.orgs) if name}
        return self.everything or namespace.lower() in names


NOBODY = Caller()


@dataclass(frozen=True)
class _Account:
    caller: Caller
    token_sha256: bytes


class Users:
    """The accounts of a Hub; open when there is no users file."""

    def __init__(self, accounts: list[_Account] | None = None) -> None:
        self._accounts = accounts

    @property
    def open(self) -> bool:
        """Whether any token may do everything."""
        return self._accounts is None

    def identify(self, authorization: str | None) -> Caller:
        """The caller behind an `Authorization` header. 401 for a token that nobody has."""
        if not authorization:
            return NOBODY
        scheme, _, token = authorization.partition(" ")
        token = token.strip()
        if scheme.lower() != "bearer" or not token:
            raise _wrong_credentials()
        if self._accounts is None:
            return Caller(LOCAL, writes=True, everything=True)
        digest = _digest(token)
        found = [account for account in self._accounts if hmac.compare_digest(account.token_sha256, digest)]
        if not found:
            raise _wrong_credentials()
        return found[0].caller


def load_users(path: Path | None) -> Users:
    """Read a users file: a JSON list of `{"name", "token", "role": "write" | "read", "orgs": […]}`.

    Raises StartError, which never quotes the file.
    """
    if path is None:
        return Users()
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        return Users([_account(entry) for entry in entries])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, Refusal) as error:
        raise StartError(f"the users file {path} cannot be used: {type(error).__name__}") from None


def _account(entry: dict[str, object]) -> _Account:
    token, role, orgs = entry["token"], entry.get("role", "write"), entry.get("orgs", [])
    if not isinstance(token, str) or len(token) < 4 or role not in {"read", "write"} or not isinstance(orgs, list):
        raise ValueError("a token, role or orgs of the users file is not usable")
    names = tuple(check_name(org, "organization") for org in orgs)
    return _Account(Caller(check_name(entry["name"], "user name"), role == "write", names), _digest(token))


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def _wrong_credentials() -> Refusal:
    return Refusal(401, "Invalid credentials in Authorization header")

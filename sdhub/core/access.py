"""Whether a token may write where it is to write, known before any work."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sdhub.core.documents import shown
from sdhub.core.errors import HubError
from sdhub.core.hub import LOGIN, WRITE, Hub


def check_token(hub: Hub, namespace: str | None = None, *, propose: bool = False) -> str:
    """The namespace to publish to, known to be writable as far as the token tells: its own if None.

    `propose` is for pull requests, which go to foreign namespaces too. Raises HubError for a token that is
    missing, unknown, read-only or of someone else, before any work is done.
    """
    if not hub.token:
        raise HubError(f"there is no token for {hub.url}", hint=LOGIN)
    user = hub.ask("check the token", lambda: hub.api.whoami(token=hub.token))
    name = str(user.get("name", ""))
    target = namespace or name
    access = _mapping(_mapping(user.get("auth")).get("accessToken"))
    if access.get("role") == "read":
        raise HubError(f"the token of {shown(name)} may only read", hint=WRITE)
    if propose or user.get("everyNamespace") is True:  # the embedded Hub's open user
        return target
    orgs = {str(org.get("name")): org for org in map(_mapping, user.get("orgs") or ())}
    if target != name and target not in orgs:
        own = ", ".join(shown(each) for each in sorted({name, *orgs}))
        raise HubError(f"{shown(name)} is no member of {shown(target)}", hint=f"publish to one of: {own}")
    if target != name and orgs[target].get("roleInOrg") == "read":
        raise HubError(f"{shown(name)} may only read in {shown(target)}", hint="ask for write access")
    if access.get("role") == "fineGrained" and not _granted(access, target):
        raise HubError(f"the token of {shown(name)} has no write access to {shown(target)}", hint=WRITE)
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


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}

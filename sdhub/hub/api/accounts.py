"""Who am I, is this YAML right, and which server is this."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response
from starlette.routing import BaseRoute

from sdhub.hub.api.call import Call, answer, route
from sdhub.hub.cards import CardError, parse_front_matter, split_card
from sdhub.hub.errors import Refusal
from sdhub.hub.store import repositories

_TEXTS = ("license", "license_name", "license_link", "library_name", "pipeline_tag", "title", "sdk", "app_file")
_LISTS = ("tags", "datasets", "base_model", "language", "metrics")


def whoami(call: Call) -> Response:
    """`/api/whoami-v2`."""
    caller = call.caller
    if caller.anonymous:
        raise Refusal(401, "Invalid username or password.")
    orgs = caller.orgs or ()
    if caller.everything:
        found = repositories.namespaces(call.hub.database.connection())
        orgs = tuple(name for name in found if name.lower() != caller.name)
    role = "write" if caller.writes else "read"
    return answer(
        {
            "type": "user",
            "id": caller.name,
            "name": caller.name,
            "fullname": caller.name,
            "email": None,
            "isPro": False,
            "canPay": False,
            "periodEnd": None,
            "avatarUrl": "",
            "orgs": [_org(name, role) for name in orgs],
            "everyNamespace": caller.everything,
            "auth": {
                "type": "access_token",
                "accessToken": {"displayName": "token", "role": role, "createdAt": "2026-01-01T00:00:00.000Z"},
            },
        }
    )


def _org(name: str, role: str) -> dict[str, Any]:
    return {
        "type": "org",
        "id": name,
        "name": name,
        "fullname": name,
        "email": None,
        "isEnterprise": False,
        "canPay": False,
        "avatarUrl": "",
        "roleInOrg": role,
    }


def validate_yaml(call: Call) -> Response:
    """`/api/validate-yaml`: the front matter of a card, read for real."""
    content = call.body.get("content")
    source = split_card(content)[0] if isinstance(content, str) else ""
    if not source.strip():
        return answer({"errors": [], "warnings": [{"message": "empty or missing yaml metadata in repo card"}]})
    try:
        problems = _problems(parse_front_matter(source))
    except CardError as error:
        problems = [str(error)]
    errors = [{"message": problem} for problem in problems]
    body = {"errors": errors, "warnings": []}
    return answer({**body, "error": "Invalid YAML metadata"}, 400) if errors else answer(body)


def _problems(data: dict[str, Any]) -> list[str]:
    found = []
    for key in _TEXTS:
        value = data.get(key)
        allowed = isinstance(value, str) or (key == "license" and _is_texts(value))
        if value is not None and not allowed:
            found.append(f'"{key}" must be a string')
    for key in _LISTS:
        value = data.get(key)
        if value is not None and not isinstance(value, str) and not _is_texts(value):
            found.append(f'"{key}" must be a list of strings')
    return found


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def embedded(call: Call) -> Response:
    """`/api/embedded`: says to programs on this machine that this is an embedded Hub, and of which folder."""
    if not call.hub.loopback:
        raise Refusal(404, "Not found")
    hub = call.hub
    return answer({"embedded": True, "root": str(hub.root), "store": hub.store_id, "lasting": hub.lasting})


ROUTES: list[BaseRoute] = [
    route("/api/whoami-v2", whoami),
    route("/api/validate-yaml", validate_yaml, "POST"),
    route("/api/embedded", embedded),
]

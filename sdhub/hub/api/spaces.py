"""Spaces: runtime, hardware, variables and secrets; and having them run, where the server does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from starlette.responses import Response
from starlette.routing import BaseRoute

from sdhub.hub.api.call import Call, Handler, answer, route
from sdhub.hub.errors import Refusal, bad_request
from sdhub.hub.hub import EmbeddedHub
from sdhub.hub.store import spaces
from sdhub.hub.store.repositories import Repo
from sdhub.hub.store.spaces import Runtime

MAX_SLEEP = 10**9


def as_runtime(hub: EmbeddedHub, repo: Repo, runtime: Runtime) -> dict[str, Any]:
    """A runtime as the API shows it; `url` is where the app answers."""
    url = hub.runner.url_of(repo) if hub.runner else None
    message = hub.runner.message_of(repo) if hub.runner else None
    document: dict[str, Any] = {
        "stage": runtime.stage,
        "hardware": {"current": runtime.hardware if url else None, "requested": runtime.hardware},
        "gcTimeout": runtime.sleep_seconds,
        "storage": None,
        "replicas": {"requested": 1},
    }
    if url:
        document |= {"url": url, "domains": [{"domain": url.partition("://")[2], "stage": "READY"}]}
    if message:
        document["errorMessage"] = message
    return document


def changed(call: Call, repo: Repo) -> None:
    """Run what is new in a Space; where Spaces do not run, it sleeps."""
    if repo.type != "space" or repo.sdk == "static":
        return
    if call.hub.runner:
        call.hub.runner.start(repo)
        return
    with call.hub.database.write() as connection:
        spaces.set_stage(connection, repo, "SLEEPING")


def _space(call: Call) -> Repo:
    call.params["types"] = "spaces"
    return call.own_repo()


def get_runtime(call: Call) -> Response:
    """`GET /api/spaces/{repo}/runtime`."""
    call.params["types"] = "spaces"
    return answer(as_runtime(call.hub, call.repo, spaces.runtime(call.hub.database.connection(), call.repo)))


def _changed(call: Call, change: Callable[[Any, Repo], None]) -> Response:
    repo = _space(call)
    with call.hub.database.write() as connection:
        spaces.runtime(connection, repo)
        change(connection, repo)
        return answer(as_runtime(call.hub, repo, spaces.runtime(connection, repo)))


def hardware(call: Call) -> Response:
    """`POST …/hardware` `{flavor, sleepTimeSeconds?}`."""
    flavor, seconds = call.body.get("flavor"), call.body.get("sleepTimeSeconds")
    if not isinstance(flavor, str) or not 0 < len(flavor) <= 64:
        raise bad_request("flavor names a hardware")

    def change(connection: Any, repo: Repo) -> None:
        spaces.set_hardware(connection, repo, flavor)
        if seconds is not None:
            spaces.set_sleep(connection, repo, _seconds(seconds))

    return _changed(call, change)


def sleep_time(call: Call) -> Response:
    """`POST …/sleeptime` `{seconds}`; -1 is never."""
    seconds = _seconds(call.body.get("seconds"))
    return _changed(call, lambda connection, repo: spaces.set_sleep(connection, repo, seconds))


def _seconds(value: object) -> int | None:
    if not isinstance(value, int) or isinstance(value, bool) or not -1 <= value <= MAX_SLEEP:
        raise bad_request("seconds is a number")
    return None if value == -1 else value


def pause(call: Call) -> Response:
    """`POST …/pause`."""
    if call.hub.runner:
        call.hub.runner.stop(_space(call))
    return _changed(call, lambda connection, repo: spaces.set_stage(connection, repo, "PAUSED"))


def restart(call: Call) -> Response:
    """`POST …/restart`: in name alone where no Spaces run."""
    runner, repo = call.hub.runner, _space(call)
    if runner and repo.sdk != "static":
        spaces.runtime(call.hub.database.connection(), repo)
        runner.start(repo)
        return get_runtime(call)
    return _changed(call, lambda connection, repo: spaces.set_stage(connection, repo, "RUNNING"))


def values_of(kind: str) -> Handler:
    """`GET`, `POST` and `DELETE` of `…/secrets` or `…/variables`. Secret values are never shown."""

    def handler(call: Call) -> Response:
        repo = _space(call)
        if repo.type != "space":
            raise Refusal(404, "This repository is not a Space")
        key, value = call.body.get("key"), call.body.get("value")
        if call.request.method != "GET":
            with call.hub.database.write() as connection:
                if call.request.method == "POST":
                    spaces.set_value(connection, repo, kind, key, value, call.body.get("description"))
                else:
                    spaces.delete_value(connection, repo, kind, key)
        return answer(spaces.values(call.hub.database.connection(), repo, kind))

    return handler


_SPACE = "/api/spaces/{namespace}/{name}"
ROUTES: list[BaseRoute] = [
    route(f"{_SPACE}/runtime", get_runtime),
    route(f"{_SPACE}/hardware", hardware, "POST"),
    route(f"{_SPACE}/sleeptime", sleep_time, "POST"),
    route(f"{_SPACE}/pause", pause, "POST"),
    route(f"{_SPACE}/restart", restart, "POST"),
    route(f"{_SPACE}/secrets", values_of("secret"), "GET", "POST", "DELETE"),
    route(f"{_SPACE}/variables", values_of("variable"), "GET", "POST", "DELETE"),
]

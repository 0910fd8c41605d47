"""Discussions and pull requests."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response
from starlette.routing import BaseRoute

from sdhub.hub.api.call import Call, answer, api_routes
from sdhub.hub.diffs import unified_diff
from sdhub.hub.errors import Refusal, bad_request
from sdhub.hub.store import discussions
from sdhub.hub.store.discussions import Discussion, Event
from sdhub.hub.store.repositories import Repo

PAGE = 50
MAX_TEXT = 65_536


def as_discussion(repo: Repo, discussion: Discussion) -> dict[str, Any]:
    """A discussion as the API lists it."""
    return {
        "num": discussion.num,
        "title": discussion.title,
        "status": discussion.status,
        "isPullRequest": discussion.pull,
        "author": {"name": discussion.author},
        "createdAt": discussion.created_at,
        "repo": {"name": repo.full_name, "type": repo.type},
        "pinned": False,
    }


def as_event(event: Event) -> dict[str, Any]:
    """An event as the API shows it."""
    data = event.data
    if event.type == "comment":
        latest = {"raw": data["text"], "html": "", "updatedAt": event.created_at}
        data = {"edited": False, "hidden": False, "latest": latest, "numEdits": 0}
    return {
        "id": f"{event.id:024x}",
        "type": event.type,
        "author": {"name": event.author},
        "createdAt": event.created_at,
        "data": data,
    }


def list_discussions(call: Call) -> Response:
    """`GET …/discussions?type=&status=&author=&p=`."""
    found = discussions.list_discussions(call.hub.database.connection(), call.repo)
    kind, status, author = call.query("type", "all"), call.query("status", "all"), call.query("author")
    if kind != "all":
        found = [item for item in found if item.pull == (kind == "pull_request")]
    if status != "all":
        found = [item for item in found if (item.status in {"open", "draft"}) == (status == "open")]
    if author:
        found = [item for item in found if item.author == author]
    start = PAGE * call.number("p", 0, 10**6)
    page = [as_discussion(call.repo, item) for item in found[start : start + PAGE]]
    return answer({"discussions": page, "count": len(found), "start": start})


def create(call: Call) -> Response:
    """`POST …/discussions` `{title, description, pullRequest}`; a pull request starts as a draft."""
    repo = call.contribute_repo()
    pull = call.body.get("pullRequest") is True
    title, text = _text(call, "title"), _text(call, "description", empty=True)
    with call.hub.database.write() as connection:
        made = discussions.open_discussion(connection, repo, call.caller.name, title, text, pull=pull, draft=pull)
    return answer({**as_discussion(repo, made), "url": f"{call.base}{repo.url_path}/discussions/{made.num}"})


def details(call: Call) -> Response:
    """`GET …/discussions/{num}[?diff=1]`."""
    connection = call.hub.database.connection()
    item = discussions.get_discussion(connection, call.repo, _number(call))
    document = as_discussion(call.repo, item)
    document["events"] = [as_event(event) for event in discussions.events(connection, item)]
    if item.pull:
        document["filesWithConflicts"] = discussions.conflicts(connection, item)
        document["changes"] = {"base": item.base, "mergeCommitId": item.merge_oid or None}
        if call.flag("diff"):
            call.hub.require_files(call.caller, call.repo)
            document["diff"] = unified_diff(call.hub, *discussions.pull_trees(connection, item))
    return answer(document)


def comment(call: Call) -> Response:
    """`POST …/discussions/{num}/comment` `{comment}`."""
    repo, number, text = call.contribute_repo(), _number(call), _text(call, "comment")
    with call.hub.database.write() as connection:
        discussions.get_discussion(connection, repo, number)
        event = discussions.add_comment(connection, repo, number, call.caller.name, text)
    return answer({"newMessage": as_event(event)})


def status(call: Call) -> Response:
    """`POST …/discussions/{num}/status` `{status, comment?}`; by its author or the owner."""
    repo, number, wanted = _moderated(call), _number(call), _text(call, "status")
    with call.hub.database.write() as connection:
        event = discussions.set_status(connection, repo, number, call.caller.name, wanted)
        _remark(call, connection, repo, number)
    return answer({"newStatus": as_event(event)})


def title(call: Call) -> Response:
    """`POST …/discussions/{num}/title` `{title}`; by its author or the owner."""
    repo, number, wanted = _moderated(call), _number(call), _text(call, "title")
    with call.hub.database.write() as connection:
        event = discussions.set_title(connection, repo, number, call.caller.name, wanted)
    return answer({"newTitle": as_event(event)})


def merge(call: Call) -> Response:
    """`POST …/discussions/{num}/merge` `{comment?}`; by the owner."""
    repo, number = call.own_repo(), _number(call)
    with call.hub.database.write() as connection:
        made = discussions.merge(connection, repo, number, call.caller.name)
        _remark(call, connection, repo, number)
    return answer({"commitOid": made.oid})


def _remark(call: Call, connection: Any, repo: Repo, number: int) -> None:
    if call.body.get("comment"):
        discussions.add_comment(connection, repo, number, call.caller.name, _text(call, "comment"))


def _moderated(call: Call) -> Repo:
    repo = call.contribute_repo()
    item = discussions.get_discussion(call.hub.database.connection(), repo, _number(call))
    return repo if item.author == call.caller.name else call.own_repo()


def _number(call: Call) -> int:
    text = call.params["num"]
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise Refusal(404, "There is no such discussion")
    return int(text)


def _text(call: Call, key: str, *, empty: bool = False) -> str:
    value = call.body.get(key)
    if empty and value is None:
        return ""
    if not isinstance(value, str) or len(value) > MAX_TEXT or not (value.strip() or empty):
        raise bad_request(f"{key} is a text of at most {MAX_TEXT} characters")
    return value


ROUTES: list[BaseRoute] = [
    *api_routes("/discussions", list_discussions),
    *api_routes("/discussions", create, "POST"),
    *api_routes("/discussions/{num}", details),
    *api_routes("/discussions/{num}/comment", comment, "POST"),
    *api_routes("/discussions/{num}/status", status, "POST"),
    *api_routes("/discussions/{num}/title", title, "POST"),
    *api_routes("/discussions/{num}/merge", merge, "POST"),
]

"""Collections: named lists of repositories."""

from __future__ import annotations

from typing import Any

from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute

from sdhub.hub.api.call import Call, answer, route
from sdhub.hub.errors import Refusal, bad_request
from sdhub.hub.names import check_name
from sdhub.hub.store import collections
from sdhub.hub.store.collections import Collection


def as_collection(call: Call, collection: Collection) -> dict[str, Any]:
    """A collection as the API shows it."""
    items = collections.items(call.hub.database.connection(), collection)
    return {
        "slug": collection.slug,
        "title": collection.title,
        "description": collection.description,
        "owner": {"type": "user", "name": collection.namespace, "fullname": collection.namespace},
        "items": [
            {
                "_id": item.id,
                "id": item.item_id,
                "type": item.type,
                "position": item.position,
                **({"note": {"text": item.note, "html": ""}} if item.note else {}),
            }
            for item in items
        ],
        "lastUpdated": collection.updated_at,
        "position": 0,
        "private": collection.private,
        "theme": collection.theme,
        "upvotes": 0,
        "gating": False,
    }


def list_collections(call: Call) -> Response:
    """`GET /api/collections?owner=`."""
    owners = call.request.query_params.getlist("owner") or [""]
    found = [item for owner in owners for item in collections.search(call.hub.database.connection(), owner)]
    visible = [item for item in found if _visible(call, item)]
    shown = [as_collection(call, item) for item in visible[: call.number("limit", 100, 100)]]
    # In a list the place says it, and huggingface_hub counts for itself.
    return answer([{name: value for name, value in each.items() if name != "position"} for each in shown])


def create(call: Call) -> Response:
    """`POST /api/collections` `{title, namespace, description, private}`."""
    namespace = check_name(call.body.get("namespace") or call.caller.name or "-", "namespace")
    call.hub.require_owner(call.caller, namespace)
    private = call.body.get("private") is True
    with call.hub.database.write() as connection:
        made = collections.create(
            connection, namespace, call.body.get("title"), call.body.get("description"), private
        )
    item = call.body.get("item")
    if isinstance(item, dict):
        _add(call, made, item, "")
    return answer(as_collection(call, made))


def get(call: Call) -> Response:
    """`GET /api/collections/{slug}`."""
    return answer(as_collection(call, find(call)))


def update(call: Call) -> Response:
    """`PATCH /api/collections/{slug}`."""
    collection = _own(call)
    with call.hub.database.write() as connection:
        collections.update(connection, collection, call.body)
        changed = collections.find(connection, collection.slug)
    return answer({"success": True, "data": as_collection(call, changed)})


def delete(call: Call) -> Response:
    """`DELETE /api/collections/{slug}`."""
    collection = _own(call)
    with call.hub.database.write() as connection:
        collections.delete(connection, collection)
    return PlainTextResponse("OK")


def add_item(call: Call) -> Response:
    """`POST …/items` `{item: {type, id}, note}`."""
    collection, note = _own(call), call.body.get("note")
    _add(call, collection, call.body.get("item"), note if isinstance(note, str) else "")
    return answer(as_collection(call, collection))


def _add(call: Call, collection: Collection, item: object, note: str) -> None:
    kind, name = (item.get("type"), item.get("id")) if isinstance(item, dict) else (None, None)
    if kind not in {"model", "dataset", "space", "paper", "collection"} or not isinstance(name, str):
        raise bad_request("An item has a type and an id")
    if kind in {"model", "dataset", "space"}:
        call.hub.readable(call.caller, kind, *(name.split("/", 1) if "/" in name else ("", name)))
    with call.hub.database.write() as connection:
        collections.add_item(connection, collection, kind, name[:300], note)


def update_item(call: Call) -> Response:
    """`PATCH …/items/{item}` `{note, position}`."""
    collection = _own(call)
    with call.hub.database.write() as connection:
        collections.update_item(connection, collection, call.params["item"], call.body)
    return answer({"success": True})


def delete_item(call: Call) -> Response:
    """`DELETE …/items/{item}`."""
    collection = _own(call)
    with call.hub.database.write() as connection:
        collections.delete_item(connection, collection, call.params["item"])
    return PlainTextResponse("OK")


def _visible(call: Call, collection: Collection) -> bool:
    return not collection.private or call.caller.owns(collection.namespace)


def find(call: Call) -> Collection:
    """The collection in the path, which the caller may see. 404 otherwise."""
    collection = collections.find(call.hub.database.connection(), call.params["slug"])
    if not _visible(call, collection):
        raise Refusal(404, "Collection not found")
    return collection


def _own(call: Call) -> Collection:
    call.hub.require_writer(call.caller)
    collection = find(call)
    call.hub.require_owner(call.caller, collection.namespace)
    return collection


_SLUG = "/api/collections/{namespace}/{slug}"
ROUTES: list[BaseRoute] = [
    route("/api/collections", list_collections),
    route("/api/collections", create, "POST"),
    route(_SLUG, get),
    route(_SLUG, update, "PATCH"),
    route(_SLUG, delete, "DELETE"),
    route(f"{_SLUG}/items", add_item, "POST"),
    route(f"{_SLUG}/items/{{item}}", update_item, "PATCH"),
    route(f"{_SLUG}/items/{{item}}", delete_item, "DELETE"),
]

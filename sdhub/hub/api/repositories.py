"""Repositories: create, delete, move, settings, list, info, refs."""

from __future__ import annotations

from typing import Any

from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute

from sdhub.hub.api.call import TYPE_PATHS, Call, answer, api_routes, route, site_routes
from sdhub.hub.api.spaces import as_runtime
from sdhub.hub.cards import card_data, derived_tags, texts
from sdhub.hub.errors import Refusal, bad_request
from sdhub.hub.names import check_name, check_type
from sdhub.hub.store import repositories, revisions, spaces
from sdhub.hub.store.repositories import Repo
from sdhub.hub.store.revisions import Ref, Revision
from sdhub.hub.store.trees import Tree, git_blob_oid, load_tree, make_tree, regular_file

PAGE = 1000
LFS_EXTENSIONS = (
    *("7z", "arrow", "bin", "bz2", "ckpt", "ftz", "gz", "h5", "joblib", "lfs.*", "mlmodel", "model", "msgpack"),
    *("npy", "npz", "onnx", "ot", "parquet", "pb", "pickle", "pkl", "pt", "pth", "rar", "safetensors", "tar"),
    *("tflite", "tgz", "wasm", "xz", "zip", "zst"),
)
GITATTRIBUTES = "".join(f"*.{name} filter=lfs diff=lfs merge=lfs -text\n" for name in LFS_EXTENSIONS).encode()


def create(call: Call) -> Response:
    """`POST /api/repos/create`. 409, with the address, when it is there."""
    kind, body = check_type(call.body.get("type")), call.body
    call.hub.require_writer(call.caller)
    namespace = check_name(body.get("organization") or call.caller.name, "namespace")
    name = check_name(body.get("name"))
    call.hub.require_owner(call.caller, namespace)
    sdk = str(body.get("sdk") or "") if kind == "space" else ""
    if kind == "space" and sdk not in spaces.SDKS:
        raise bad_request("A Space needs an sdk: gradio, docker, static or streamlit")
    try:
        repo = _create(call, kind, namespace, name, sdk)
    except Refusal as refusal:
        if refusal.status != 409:
            raise
        taken = call.hub.readable(call.caller, kind, namespace, name)
        raise Refusal(409, refusal.message, body=_address(call, taken)) from None
    return answer(_address(call, repo))


def _create(call: Call, kind: str, namespace: str, name: str, sdk: str) -> Repo:
    private = is_private(call.body)
    with call.hub.blobs.stage() as file:
        file.write(GITATTRIBUTES)
        staged = file.finish()
    try:
        with call.hub.database.write() as connection:
            repo = repositories.create(connection, kind, namespace, name, private=bool(private), sdk=sdk)
            call.hub.blobs.install(connection, repo.id, staged)
            oid = git_blob_oid(GITATTRIBUTES)
            tree = make_tree([regular_file(".gitattributes", oid, staged.size, staged.sha256)])
            first = revisions.record(connection, repo.id, None, tree, call.caller.name, "initial commit", "")
            revisions.create_ref(connection, repo.id, Ref("branch", revisions.MAIN, first.oid))
            if kind == "space":
                _configure_space(call, connection=connection, repo=repo)
    finally:
        staged.discard()
    return repo


def _configure_space(call: Call, *, connection: Any, repo: Repo) -> None:
    sleep = call.body.get("sleepTimeSeconds")
    hardware = str(call.body.get("hardware") or "cpu-basic")[:64]
    spaces.create_runtime(connection, repo, hardware, sleep if isinstance(sleep, int) else None)
    for kind, plural in (("secret", "secrets"), ("variable", "variables")):
        for entry in call.body.get(plural) or []:
            if isinstance(entry, dict):
                spaces.set_value(
                    connection, repo, kind, entry.get("key"), entry.get("value"), entry.get("description")
                )


def is_private(body: dict[str, Any]) -> bool | None:
    """What a body says of visibility, in the words of any client; None where it says nothing."""
    visibility = body.get("visibility")
    if visibility is not None:
        if visibility not in {"public", "private", "protected"}:
            raise bad_request("visibility is public or private")
        return bool(visibility != "public")
    private = body.get("private")
    return private if isinstance(private, bool) else None


def _address(call: Call, repo: Repo) -> dict[str, str]:
    return {"url": call.base + repo.url_path, "name": repo.full_name, "id": repo.full_name}


def delete(call: Call) -> Response:
    """`DELETE /api/repos/delete`."""
    kind = check_type(call.body.get("type"))
    call.hub.require_writer(call.caller)
    namespace = check_name(call.body.get("organization") or call.caller.name, "namespace")
    repo = call.hub.readable(call.caller, kind, namespace, check_name(call.body.get("name")))
    call.hub.require_owner(call.caller, repo.namespace)
    with call.hub.database.write() as connection:
        held = repositories.delete(connection, repo)
    if call.hub.runner:
        call.hub.runner.stop(repo)
    call.hub.blobs.collect(held)
    return PlainTextResponse("OK")


def move(call: Call) -> Response:
    """`POST /api/repos/move`."""
    kind = check_type(call.body.get("type"))
    call.hub.require_writer(call.caller)
    old, new = _full_name(call.body.get("fromRepo")), _full_name(call.body.get("toRepo"))
    repo = call.hub.readable(call.caller, kind, *old)
    call.hub.require_owner(call.caller, repo.namespace)
    call.hub.require_owner(call.caller, new[0])
    with call.hub.database.write() as connection:
        repositories.move(connection, repo, *new)
    return PlainTextResponse("OK")


def _full_name(value: object) -> tuple[str, str]:
    namespace, slash, name = value.partition("/") if isinstance(value, str) else ("", "", "")
    if not slash:
        raise bad_request("A repository is namespace/name")
    return check_name(namespace, "namespace"), check_name(name)


def settings(call: Call) -> Response:
    """`PUT /api/{types}/{repo}/settings`: visibility and gating."""
    repo = call.own_repo()
    private, gated = is_private(call.body), call.body.get("gated")
    if gated is not None:
        gated = "" if gated is False else str(gated)
    with call.hub.database.write() as connection:
        repositories.configure(connection, repo, private=private, gated=gated)
    return answer({"private": repo.private if private is None else private, "gated": gated or False})


def grant(call: Call) -> Response:
    """`POST …/user-access-request/grant`: let a user read a gated repository."""
    repo, user = call.own_repo(), call.body.get("user")
    with call.hub.database.write() as connection:
        repositories.grant(connection, repo, check_name(user, "user name"))
    return PlainTextResponse("OK")


def ask_access(call: Call) -> Response:
    """`POST /{repo}/ask-access`: let in at once where the gate is automatic."""
    if call.caller.anonymous:
        raise Refusal(401, "Invalid username or password.")
    if call.repo.gated == "auto":
        with call.hub.database.write() as connection:
            repositories.grant(connection, call.repo, call.caller.name)
    return PlainTextResponse("OK")


def auth_check(call: Call) -> Response:
    """`GET …/auth-check[/write]`: whether the caller may read files, or write."""
    if call.request.url.path.endswith("/write"):
        call.own_repo()
    else:
        call.hub.require_files(call.caller, call.repo)
    return answer({})


def list_repos(call: Call) -> Response:
    """`GET /api/models` and its like: `author`, `search`, `filter`, `limit`, `full`, with Link pages."""
    limit, start = call.number("limit", PAGE, PAGE), call.number("cursor", 0, 10**9)
    found = repositories.search(
        call.hub.database.connection(), call.repo_type, author=call.query("author"), text=call.query("search")
    )
    visible = [repo for repo in found if not repo.private or call.caller.owns(repo.namespace)]
    wanted = {word for text in call.request.query_params.getlist("filter") for word in text.split(",") if word}
    if wanted:
        visible = [repo for repo in visible if wanted <= set(describe(call, repo, files="none")["tags"])]
    page = [describe(call, repo, files="none") for repo in visible[start : start + limit]]
    if not (
        call.flag("full") or call.flag("cardData") or "cardData" in call.request.query_params.getlist("expand")
    ):
        for document in page:
            document.pop("cardData", None)
    more = limit and start + limit < len(visible)
    return answer(page, headers=call.next_page(cursor=start + limit) if more else None)


def info(call: Call) -> Response:
    """`GET /api/{types}/{repo}[/revision/{rev}]`; `blobs=true` adds sizes and ids."""
    detail = "blobs" if call.flag("blobs") else "names"
    return answer(describe(call, call.repo, files=detail, rev=call.params.get("rev", revisions.MAIN)))


def describe(call: Call, repo: Repo, *, files: str, rev: str = revisions.MAIN) -> dict[str, Any]:
    """A repository as the API shows it; `files` is "none", "names" or "blobs"."""
    connection = call.hub.database.connection()
    revision = revisions.resolve(connection, repo.id, rev)
    tree = load_tree(connection, repo.id, revision.tree)
    data = card_data(call.hub, tree)
    document: dict[str, Any] = {
        "_id": f"{repo.id:024x}",
        "id": repo.full_name,
        "author": repo.namespace,
        "sha": revision.oid,
        "createdAt": repo.created_at,
        "lastModified": _last_modified(repo, revision, rev),
        "private": repo.private,
        "gated": repo.gated or False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": derived_tags(data),
        "cardData": data,
    }
    if repo.type == "model":
        document.update(_model_fields(repo, tree, data or {}))
    if repo.type == "space":
        runtime = as_runtime(call.hub, repo, spaces.runtime(connection, repo))
        document.update({"sdk": repo.sdk, "runtime": runtime, "host": runtime.get("url"), "subdomain": None})
    if files != "none":
        document["siblings"] = _siblings(tree, blobs=files == "blobs")
        document["usedStorage"] = repositories.used_bytes(connection, repo.id)
    return document


def _last_modified(repo: Repo, revision: Revision, rev: str) -> str:
    return repo.updated_at if rev == revisions.MAIN else revision.created_at


def _model_fields(repo: Repo, tree: Tree, data: dict[str, Any]) -> dict[str, Any]:
    library = texts(data.get("library_name"))[:1] or (["diffusers"] if "model_index.json" in tree.files else [])
    pipeline = texts(data.get("pipeline_tag"))[:1]
    fields: dict[str, Any] = {"modelId": repo.full_name}
    if library:
        fields["library_name"] = library[0]
    if pipeline:
        fields["pipeline_tag"] = pipeline[0]
    return fields


def _siblings(tree: Tree, *, blobs: bool) -> list[dict[str, Any]]:
    siblings: list[dict[str, Any]] = []
    for file in tree.files.values():
        entry: dict[str, Any] = {"rfilename": file.path}
        if blobs:
            entry.update({"blobId": file.oid, "size": file.size})
            if file.lfs:
                entry["lfs"] = {"sha256": file.sha256, "size": file.size, "pointerSize": file.pointer_size}
        siblings.append(entry)
    return siblings


def refs(call: Call) -> Response:
    """`GET …/refs`."""
    found = revisions.refs(call.hub.database.connection(), call.repo.id)

    def entries(kind: str) -> list[dict[str, str]]:
        return [{"name": ref.name, "ref": ref.full, "targetCommit": ref.oid} for ref in found if ref.kind == kind]

    document: dict[str, Any] = {"branches": entries("branch"), "converts": [], "tags": entries("tag")}
    pulls = [{"name": ref["ref"], "ref": ref["ref"], "targetCommit": ref["targetCommit"]} for ref in entries("pr")]
    return answer({**document, "pullRequests": pulls})


ROUTES: list[BaseRoute] = [
    route("/api/repos/create", create, "POST"),
    route("/api/repos/delete", delete, "DELETE"),
    route("/api/repos/move", move, "POST"),
    *(route(f"/api/{types}", list_repos, types=types) for types in TYPE_PATHS),
    *api_routes("", info),
    *api_routes("/revision/{rev}", info),
    *api_routes("/settings", settings, "PUT"),
    *api_routes("/refs", refs),
    *api_routes("/auth-check", auth_check),
    *api_routes("/auth-check/write", auth_check),
    *api_routes("/user-access-request/grant", grant, "POST"),
    *site_routes("/ask-access", ask_access, "POST"),
]

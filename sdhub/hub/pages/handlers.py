"""The pages: what is here, a repository's card, files, history, discussions."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from markupsafe import Markup
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute

from sdhub.hub.api.call import TYPE_PATHS, Call, route, site_routes
from sdhub.hub.api.collections import find as find_collection
from sdhub.hub.api.files import IMAGES, list_folder
from sdhub.hub.cards import README, card_data, card_text, derived_tags, read_text, split_card, texts
from sdhub.hub.diffs import changes
from sdhub.hub.errors import Refusal, no_entry
from sdhub.hub.names import is_name
from sdhub.hub.pages import view
from sdhub.hub.pages.markdown import Place, render
from sdhub.hub.store import collections, discussions, repositories, revisions, spaces
from sdhub.hub.store.repositories import Repo
from sdhub.hub.store.revisions import MAIN, Revision
from sdhub.hub.store.trees import Tree, load_tree, make_tree

REPOS_A_PAGE = 48
COMMITS_A_PAGE = 50
MAX_TEXT = 256 * 2**10
MAX_TAGS = 24
MAX_PICTURES = 12
MAX_DISCUSSIONS = 500

RUN_SPACES = "have it run with: sdhub hub serve --spaces present"


def index(call: Call) -> Response:
    """The list of repositories, by type, namespace and search."""
    connection, text = call.hub.database.connection(), call.query("search")[:100].strip()
    types = [call.params["types"]] if "types" in call.params else ["models", "spaces", "datasets"]
    author = call.params.get("namespace", "")
    if author and not is_name(author):
        raise no_entry("There is no such page")
    found = [
        repo
        for name in types
        for repo in repositories.search(connection, TYPE_PATHS[name], author=author, text=text)
        if not repo.private or call.caller.owns(repo.namespace)
    ]
    found.sort(key=lambda repo: repo.updated_at, reverse=True)
    start = REPOS_A_PAGE * call.number("p", 0, 10**6)
    return view.page(
        "index.html",
        repos=[_summary(call, repo) for repo in found[start : start + REPOS_A_PAGE]],
        count=len(found),
        search=text,
        author=author,
        types=call.params.get("types", ""),
        previous=start // REPOS_A_PAGE - 1 if start else None,
        next=start // REPOS_A_PAGE + 1 if start + REPOS_A_PAGE < len(found) else None,
        base=call.base,
    )


def collection(call: Call) -> Response:
    """A collection: its repositories that the caller may see, in its order."""
    found, connection = find_collection(call), call.hub.database.connection()
    rows = []
    for item in collections.items(connection, found):
        namespace, _, name = item.item_id.partition("/")
        repo = (
            repositories.find(connection, item.type, namespace, name) if item.type in TYPE_PATHS.values() else None
        )
        if repo and (not repo.private or call.caller.owns(repo.namespace)):
            rows.append({**_summary(call, repo), "note": item.note})
    return view.page("collection.html", collection=found, repos=rows, base=call.base)


def _summary(call: Call, repo: Repo) -> dict[str, Any]:
    revision, tree = _main(call, repo)
    data = card_data(call.hub, tree) or {}
    shown = view.pictures(tree, 1) if not repo.gated else []
    thumbnail = data.get("thumbnail")
    if isinstance(thumbnail, str) and thumbnail in tree.files and not repo.gated:
        shown = [thumbnail]
    return {
        "repo": repo,
        "note": "",
        "pipeline": (texts(data.get("pipeline_tag")) or [repo.sdk])[0],
        "library": (texts(data.get("library_name")) or [""])[0],
        "size": sum(file.size for file in tree.files.values()),
        "picture": view.path_url(repo, "resolve", revision.oid, shown[0]) if shown else "",
    }


def _main(call: Call, repo: Repo) -> tuple[Revision, Tree]:
    connection = call.hub.database.connection()
    revision = revisions.resolve(connection, repo.id, MAIN)
    return revision, load_tree(connection, repo.id, revision.tree)


def _frame(call: Call, tab: str, tree: Tree | None = None) -> dict[str, Any]:
    """What every page of a repository shows at its top."""
    connection = call.hub.database.connection()
    tree = tree or _main(call, call.repo)[1]
    data = card_data(call.hub, tree) or {}
    talks = discussions.list_discussions(connection, call.repo)
    return {
        "repo": call.repo,
        "tab": tab,
        "data": data,
        "tags": [tag for tag in derived_tags(data) if ":" not in tag][:MAX_TAGS],
        "open_talks": sum(talk.status in {"open", "draft"} for talk in talks),
        "base": call.base,
        "app": _app(call),
    }


def _app(call: Call) -> dict[str, str | None] | None:
    """The app of a Space that may run here; a visit wakes it."""
    if call.repo.type != "space" or call.repo.sdk == "static":
        return None
    runner, stage = call.hub.runner, spaces.runtime(call.hub.database.connection(), call.repo).stage
    if runner and stage == "SLEEPING":
        runner.start(call.repo)
        stage = "BUILDING"
    return {
        "stage": stage.lower().replace("_", " "),
        "url": runner.url_of(call.repo) if runner else None,
        "message": runner.message_of(call.repo) if runner else RUN_SPACES,
    }


def repository(call: Call) -> Response:
    """A repository: its card, pictures, files, last commits, and how to use it."""
    revision, tree = _main(call, call.repo)
    closed = _closed(call)
    connection = call.hub.database.connection()
    frame = _frame(call, "card", tree)
    return view.page(
        "repository.html",
        **frame,
        card=_card(call, revision, tree),
        facts=_facts(frame["data"]),
        pictures=[] if closed else _gallery(call, revision, tree),
        files=list_folder(tree, "", recursive=False),
        file_count=len(tree.files),
        size=sum(file.size for file in tree.files.values()),
        commits=revisions.history(connection, call.repo.id, revision.oid, limit=5),
        commit_count=revisions.count_history(connection, call.repo.id, revision.oid),
        snippets=view.snippets(call.base, call.repo, tree, frame["data"]),
        closed=closed,
    )


def _closed(call: Call) -> bool:
    try:
        call.hub.require_files(call.caller, call.repo)
    except Refusal:
        return True
    return False


def _card(call: Call, revision: Revision, tree: Tree) -> Markup:
    if README not in tree.files:
        return Markup("")
    return _rendered(split_card(card_text(call.hub, tree))[1], call.repo, revision.oid, tree.key, _Unhashed(tree))


class _Unhashed:
    """Carries a tree past a cache whose key names it already."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Unhashed)

    def __hash__(self) -> int:
        return 0


@lru_cache(maxsize=64)
def _rendered(text: str, repo: Repo, oid: str, key: str, tree: _Unhashed) -> Markup:
    return Markup(render(text, Place(repo, tree.tree, oid)))  # noqa: S704 — rendered without the author's HTML


def _facts(data: dict[str, Any]) -> list[tuple[str, list[str]]]:
    licences = [name for name in texts(data.get("license_name")) or texts(data.get("license")) if name]
    rows = [
        ("Licence", licences),
        ("Base model", texts(data.get("base_model"))),
        ("Relation", texts(data.get("base_model_relation"))),
        ("Library", texts(data.get("library_name"))),
        ("Task", texts(data.get("pipeline_tag"))),
        ("Language", texts(data.get("language"))),
    ]
    return [(label, [value[:120] for value in values[:8]]) for label, values in rows if values]


def _gallery(call: Call, revision: Revision, tree: Tree) -> list[dict[str, str]]:
    body = split_card(card_text(call.hub, tree))[1]
    shown = [path for path in view.pictures(tree, 200) if path.rpartition("/")[2] not in body]
    return [
        {
            "path": path,
            "url": view.path_url(call.repo, "resolve", revision.oid, path),
            "page": view.path_url(call.repo, "blob", MAIN, path),
        }
        for path in shown[:MAX_PICTURES]
    ]


def tree_page(call: Call) -> Response:
    """A folder, with the last commit of each entry."""
    revision = call.revision()
    tree, folder = call.tree(revision), call.params.get("path", "").strip("/")
    if folder in tree.files:
        return RedirectResponse(view.path_url(call.repo, "blob", call.params["rev"], folder))
    if folder and folder not in tree.folders:
        raise no_entry("There is no such folder")
    connection = call.hub.database.connection()
    return view.page(
        "tree.html",
        **_frame(call, "files"),
        rev=call.params["rev"],
        revision=revision,
        folder=folder,
        crumbs=_crumbs(folder),
        files=list_folder(tree, folder, recursive=False),
        changes=revisions.last_changes(connection, call.repo.id, revision.oid, folder),
        refs=revisions.refs(connection, call.repo.id),
        size=sum(file.size for file in tree.below(folder)[1]),
    )


def _crumbs(path: str) -> list[tuple[str, str]]:
    parts = path.split("/") if path else []
    return [(part, "/".join(parts[: number + 1])) for number, part in enumerate(parts)]


def blob_page(call: Call) -> Response:
    """A file: a picture, a text, or what is known of it."""
    revision = call.revision()
    call.hub.require_files(call.caller, call.repo)
    file = call.tree(revision).files.get(call.params["path"])
    if file is None:
        raise no_entry("There is no such file")
    extension = file.path.rpartition(".")[2].lower()
    text = read_text(call.hub, file, MAX_TEXT) if extension not in IMAGES else None
    return view.page(
        "blob.html",
        **_frame(call, "files"),
        rev=call.params["rev"],
        revision=revision,
        file=file,
        crumbs=_crumbs(file.path),
        raw=view.path_url(call.repo, "resolve", revision.oid, file.path),
        picture=extension in IMAGES,
        text=None if text is None or "\0" in text else text,
    )


def commits_page(call: Call) -> Response:
    """The history of a revision."""
    start, connection = call.revision(), call.hub.database.connection()
    number = call.number("p", 0, 10**6)
    found = revisions.history(
        connection, call.repo.id, start.oid, skip=number * COMMITS_A_PAGE, limit=COMMITS_A_PAGE + 1
    )
    return view.page(
        "commits.html",
        **_frame(call, "commits"),
        rev=call.params["rev"],
        commits=found[:COMMITS_A_PAGE],
        previous=number - 1 if number else None,
        next=number + 1 if len(found) > COMMITS_A_PAGE else None,
    )


def commit_page(call: Call) -> Response:
    """A commit: its message and what it changed."""
    revision, connection = call.revision(), call.hub.database.connection()
    parent = revisions.get(connection, call.repo.id, revision.parent) if revision.parent else None
    before = call.tree(parent) if parent else make_tree([])
    return view.page(
        "commit.html",
        **_frame(call, "commits"),
        revision=revision,
        changes=[] if _closed(call) else changes(call.hub, before, call.tree(revision)),
    )


def discussions_page(call: Call) -> Response:
    """Discussions and pull requests."""
    talks = discussions.list_discussions(call.hub.database.connection(), call.repo)
    return view.page("discussions.html", **_frame(call, "community"), talks=talks[:MAX_DISCUSSIONS])


def discussion_page(call: Call) -> Response:
    """A discussion with its events; a pull request also with its changed files."""
    connection, number = call.hub.database.connection(), call.params["num"]
    if not number.isascii() or not number.isdigit() or len(number) > 9:
        raise no_entry("There is no such discussion")
    talk = discussions.get_discussion(connection, call.repo, int(number))
    events = [
        {"event": event, "html": Markup(render(event.data["text"])) if event.type == "comment" else ""}  # noqa: S704
        for event in discussions.events(connection, talk)
    ]
    found = []
    if talk.pull and not _closed(call):
        found = changes(call.hub, *discussions.pull_trees(connection, talk))
    return view.page(
        "discussion.html",
        **_frame(call, "community"),
        talk=talk,
        events=events,
        changes=found,
        conflicts=discussions.conflicts(connection, talk),
    )


def style(_call: Call) -> Response:
    """The style sheet."""
    return Response(view.style(), media_type="text/css", headers={"Cache-Control": "max-age=31536000, immutable"})


ROUTES: list[BaseRoute] = [
    route("/", index),
    *(route(f"/{types}", index, types=types) for types in TYPE_PATHS),
    route("/static/style.css", style),
    route("/collections/{namespace}/{slug}", collection),
    *site_routes("", repository),
    *site_routes("/tree/{rev}", tree_page),
    *site_routes("/tree/{rev}/{path:path}", tree_page),
    *site_routes("/blob/{rev}/{path:path}", blob_page),
    *site_routes("/commits/{rev}", commits_page),
    *site_routes("/commit/{rev}", commit_page),
    *site_routes("/discussions", discussions_page),
    *site_routes("/discussions/{num}", discussion_page),
    route("/{namespace}", index),
]

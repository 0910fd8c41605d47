"""Reading files: trees, path infos, and the content itself."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from starlette.responses import FileResponse, Response
from starlette.routing import BaseRoute

from sdhub.hub.api.call import Call, answer, api_routes, site_routes
from sdhub.hub.errors import bad_request, no_entry
from sdhub.hub.store.revisions import Revision, last_changes
from sdhub.hub.store.trees import File, Tree

PAGE = 1000

# Nothing that strangers uploaded may act on this origin: no sniffing, no scripts, no embedding of a document.
SANDBOX = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; sandbox",
    "Cross-Origin-Resource-Policy": "same-origin",
}

IMAGES = {
    "avif": "image/avif",
    "bmp": "image/bmp",
    "gif": "image/gif",
    "ico": "image/x-icon",
    "jpeg": "image/jpeg",
    "jpg": "image/jpeg",
    "png": "image/png",
    "svg": "image/svg+xml",
    "webp": "image/webp",
}
_MEDIA = {**IMAGES, "json": "application/json", "mp4": "video/mp4", "webm": "video/webm", "wav": "audio/wav"}
_TEXT = frozenset(
    {"cff", "cfg", "conf", "css", "csv", "gitattributes", "gitignore", "html", "ini", "js", "jinja", "jsonl"}
    | {"license", "lock", "log", "md", "mjs", "py", "rst", "sh", "swift", "toml", "ts", "tsv", "txt", "xml"}
    | {"yaml", "yml"}
)


@dataclass(frozen=True)
class Listed:
    """One line of a tree listing; a folder when `file` is None."""

    path: str
    oid: str
    file: File | None


class BlobResponse(FileResponse):
    """A file in large pieces, with ranges."""

    chunk_size = 2**20


def media_type(path: str) -> str:
    """How a file is sent: images, video and text as what they are, HTML and scripts as plain text."""
    extension = path.rpartition("/")[2].rpartition(".")[2].lower()
    if extension in _MEDIA:
        return _MEDIA[extension]
    return "text/plain; charset=utf-8" if extension in _TEXT else "application/octet-stream"


def resolve(call: Call) -> Response:
    """`/{repo}/resolve/{rev}/{path}`: a file's content, HEAD and GET, whole or in ranges."""
    revision = call.revision()
    call.hub.require_files(call.caller, call.repo)
    file = call.tree(revision).files.get(call.params["path"])
    if file is None:
        raise no_entry(commit=revision.oid)
    headers = _file_headers(call, revision, file)
    if headers["ETag"] in call.request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    path = call.hub.blobs.path(file.sha256)
    try:
        found = os.stat(path)  # noqa: PTH116 — FileResponse takes the result
    except FileNotFoundError:
        raise no_entry("The repository was deleted") from None
    return BlobResponse(path, headers=headers, media_type=media_type(file.path), stat_result=found)


def _file_headers(call: Call, revision: Revision, file: File) -> dict[str, str]:
    etag = f'"{file.sha256 if file.lfs else file.oid}"'
    attached = call.flag("download") or media_type(file.path) == "application/octet-stream"
    name = quote(file.path.rpartition("/")[2])
    headers = {
        "X-Repo-Commit": revision.oid,
        "ETag": etag,
        "Cache-Control": "no-cache",
        "Content-Disposition": f"{'attachment' if attached else 'inline'}; filename*=UTF-8''{name}",
        **SANDBOX,
    }
    if file.lfs:
        headers.update({"X-Linked-Etag": etag, "X-Linked-Size": str(file.size)})
    return headers


def tree(call: Call) -> Response:
    """`GET …/tree/{rev}[/{path}]?recursive=&expand=`, in pages."""
    revision = call.revision()
    folder = call.params.get("path", "").strip("/")
    found = call.tree(revision)
    if folder and folder not in found.folders:
        raise no_entry(f"{folder} does not exist on this revision", commit=revision.oid)
    listed = list_folder(found, folder, recursive=call.flag("recursive"))
    limit, start = max(1, call.number("limit", PAGE, PAGE)), call.number("cursor", 0, 10**9)
    changes = _changes(call, revision, folder) if call.flag("expand") else {}
    page = [as_entry(item, changes.get(item.path)) for item in listed[start : start + limit]]
    more = start + limit < len(listed)
    return answer(page, headers=call.next_page(cursor=start + limit) if more else None)


def list_folder(found: Tree, folder: str, *, recursive: bool) -> list[Listed]:
    """What is in a folder: folders first, or everything below it by path when recursive."""
    folders, files = found.below(folder) if recursive else found.children(folder)
    listed = [Listed(path, found.folders[path], None) for path in folders]
    listed += [Listed(file.path, file.oid, file) for file in files]
    return sorted(listed, key=lambda item: item.path) if recursive else listed


def _changes(call: Call, revision: Revision, folder: str) -> dict[str, Revision]:
    return last_changes(call.hub.database.connection(), call.repo.id, revision.oid, folder)


def as_entry(item: Listed, changed: Revision | None = None) -> dict[str, Any]:
    """A line of a listing as the API shows it."""
    entry: dict[str, Any] = {"type": "directory", "oid": item.oid, "size": 0, "path": item.path}
    if item.file is not None:
        entry.update({"type": "file", "size": item.file.size})
        if item.file.lfs:
            entry["lfs"] = {
                "oid": item.file.sha256,
                "size": item.file.size,
                "pointerSize": item.file.pointer_size,
            }
    if changed is not None:
        entry["lastCommit"] = {"id": changed.oid, "title": changed.title, "date": changed.created_at}
    return entry


def paths_info(call: Call) -> Response:
    """`POST …/paths-info/{rev}`: entries of the paths that exist (form-encoded, or JSON)."""
    revision = call.revision()
    found = call.tree(revision)
    wanted = call.body.get("paths", [])
    wanted = [wanted] if isinstance(wanted, str) else wanted
    if not isinstance(wanted, list) or not all(isinstance(path, str) for path in wanted):
        raise bad_request("paths is a list of texts")
    expand = str(call.body.get("expand", "")).strip("[]'").lower() == "true"
    changes = _changes(call, revision, "") if expand else {}
    entries = []
    for path in dict.fromkeys(path.strip("/") for path in wanted):
        item = _lookup(found, path)
        if item is not None:
            entries.append(as_entry(item, changes.get(path)))
    return answer(entries)


def _lookup(found: Tree, path: str) -> Listed | None:
    if path in found.files:
        return Listed(path, found.files[path].oid, found.files[path])
    return Listed(path, found.folders[path], None) if path and path in found.folders else None


ROUTES: list[BaseRoute] = [
    *api_routes("/tree/{rev}", tree),
    *api_routes("/tree/{rev}/{path:path}", tree),
    *api_routes("/paths-info/{rev}", paths_info, "POST"),
    *site_routes("/resolve/{rev}/{path:path}", resolve, "GET", "HEAD"),
    *site_routes("/raw/{rev}/{path:path}", resolve, "GET", "HEAD"),
]

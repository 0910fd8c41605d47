"""Writing history: commits as NDJSON, branches, tags; and reading it."""

from __future__ import annotations

import base64
import binascii
import json
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute

from sdhub.hub.api import spaces
from sdhub.hub.api.call import Call, answer, api_paths, api_routes, buffered, streaming
from sdhub.hub.errors import Refusal, bad_request, no_revision
from sdhub.hub.hub import EmbeddedHub
from sdhub.hub.names import check_path, check_ref, is_commit, is_sha256
from sdhub.hub.store import discussions, revisions
from sdhub.hub.store.commits import AddFile, AddLfs, CopyFile, DeleteFile, DeleteFolder, Message, Operation, commit
from sdhub.hub.store.repositories import Repo
from sdhub.hub.store.revisions import Ref, Revision
from sdhub.hub.store.trees import git_blob_oid

MAX_LINE = 32 * 2**20
MAX_COMMIT = 2 * 2**30
MAX_OPERATIONS = 25_000
MAX_TITLE, MAX_DESCRIPTION = 500, 65_536
PAGE = 50


class CommitReader:
    """The lines of a commit, read as they arrive: a header, then operations. Contents are staged on disk."""

    def __init__(self, hub: EmbeddedHub) -> None:
        self._hub = hub
        self._rest = bytearray()
        self._received = 0
        self.header: dict[str, Any] | None = None
        self.operations: list[Operation] = []

    def feed(self, piece: bytes) -> None:
        """Take the next bytes. 400 or 413 for what is not allowed."""
        self._received += len(piece)
        if self._received > MAX_COMMIT:
            raise Refusal(413, f"A commit has at most {MAX_COMMIT} bytes; send large files by LFS")
        start = 0
        while (end := piece.find(b"\n", start)) >= 0:
            self._rest += piece[start:end]
            self._line(self._rest)
            self._rest = bytearray()
            start = end + 1
        self._rest += piece[start:]
        if len(self._rest) > MAX_LINE:
            raise Refusal(413, f"A line of a commit has at most {MAX_LINE} bytes; send large files by LFS")

    def finish(self) -> None:
        """The last line may lack its newline. 400 when there was no header."""
        self._line(self._rest)
        if self.header is None:
            raise bad_request("The commit has no header")
        self._hub.blobs.sync([item.staged for item in self.operations if isinstance(item, AddFile)])

    def discard(self) -> None:
        """Remove what was staged and not kept."""
        for operation in self.operations:
            if isinstance(operation, AddFile):
                operation.staged.discard()

    def _line(self, line: bytes | bytearray) -> None:
        if not line.strip():
            return
        if len(line) > MAX_LINE:
            raise Refusal(413, f"A line of a commit has at most {MAX_LINE} bytes; send large files by LFS")
        try:
            entry = json.loads(line)
            key, value = entry["key"], entry["value"]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise bad_request("A line of the commit is not an object with key and value") from None
        if not isinstance(value, dict):
            raise bad_request("A line of the commit has a value that is no object")
        if self.header is None and key != "header":
            raise bad_request("The first line of a commit is its header")
        if key == "header":
            self.header = value
        elif len(self.operations) >= MAX_OPERATIONS:
            raise bad_request(f"A commit has at most {MAX_OPERATIONS} operations")
        else:
            self.operations.append(self._operation(key, value))

    def _operation(self, key: object, value: dict[str, Any]) -> Operation:
        path = value.get("path")
        if key == "deletedFolder":
            folder = path.strip("/") if isinstance(path, str) else path
            return DeleteFolder("" if folder in {"", "."} else check_path(folder))
        path = check_path(path)
        if key == "file":
            return self._file(path, value)
        if key == "lfsFile":
            return _lfs(path, value)
        if key == "deletedFile":
            return DeleteFile(path)
        if key == "copyFile":
            revision = value.get("srcRevision") or ""
            return CopyFile(path, check_path(value.get("srcPath")), str(revision))
        raise bad_request("A line of the commit has an unknown key")

    def _file(self, path: str, value: dict[str, Any]) -> AddFile:
        content, encoding = value.get("content"), value.get("encoding", "utf-8")
        if not isinstance(content, str):
            raise bad_request(f"The content of {path} is no text")
        try:
            data = base64.b64decode(content, validate=True) if encoding == "base64" else content.encode()
        except (binascii.Error, ValueError):
            raise bad_request(f"The content of {path} is not base64") from None
        with self._hub.blobs.stage() as file:
            file.write(data)
            return AddFile(path, git_blob_oid(data), file.finish(sync=False))


def _lfs(path: str, value: dict[str, Any]) -> AddLfs:
    sha256, size = value.get("oid"), value.get("size")
    if not is_sha256(sha256) or value.get("algo", "sha256") != "sha256":
        raise bad_request(f"The LFS object of {path} is not named by its SHA-256")
    if size is not None and (not isinstance(size, int) or isinstance(size, bool)):
        raise bad_request(f"The size of {path} is no number")
    return AddLfs(path, str(sha256), size)


async def create_commit(call: Call) -> Response:
    """`POST …/commit/{rev}[?create_pr=1]`: all of the operations in one transaction, or nothing."""
    await run_in_threadpool(_check_access, call)
    reader = CommitReader(call.hub)
    try:
        async for piece in buffered(call.request, 2**20):
            await run_in_threadpool(reader.feed, piece)
        await run_in_threadpool(reader.finish)
        return await run_in_threadpool(_commit, call, reader)
    finally:
        reader.discard()


def _check_access(call: Call) -> None:
    if call.flag("create_pr"):
        call.contribute_repo()
    else:
        _target(call)


def _target(call: Call) -> tuple[Repo, Ref]:
    """The branch or pull request to commit to, if the caller may."""
    repo = call.contribute_repo()
    connection = call.hub.database.connection()
    ref = revisions.find_ref(connection, repo.id, call.params["rev"])
    if ref is None or ref.kind == "tag":
        raise no_revision(call.params["rev"])
    if ref.kind == "pr":
        pull = discussions.get_discussion(connection, repo, int(ref.name))
        if pull.status not in {"open", "draft"}:
            raise bad_request("The pull request is not open")
        if pull.author == call.caller.name:
            return repo, ref
    call.own_repo()
    return repo, ref


def _commit(call: Call, reader: CommitReader) -> Response:
    header = reader.header or {}
    title, description, parent = _header(header)
    message = Message(call.caller.name, title, description)
    with call.hub.database.write() as connection:
        number = None
        if call.flag("create_pr"):
            repo = call.contribute_repo()
            pull = discussions.open_discussion(
                connection, repo, call.caller.name, title, description, pull=True, base=call.params["rev"]
            )
            number = pull.num
            ref = Ref("pr", str(number), pull.base_oid)
        else:
            repo, ref = _target(call)
        made = commit(connection, call.hub.blobs, repo, ref, reader.operations, message, parent=parent)
        if ref.kind == "pr" and made.oid != ref.oid:
            discussions.add_commit(connection, repo, int(ref.name), made)
    if ref == Ref("branch", revisions.MAIN, ref.oid) and made.oid != ref.oid:
        spaces.changed(call, repo)
    return answer(_committed(call, repo, made, number))


def _header(header: dict[str, Any]) -> tuple[str, str, str]:
    title, description = header.get("summary"), header.get("description") or ""
    if not isinstance(title, str) or not title.strip() or not isinstance(description, str):
        raise bad_request("A commit has a summary")
    parent = header.get("parentCommit") or ""
    if parent and not is_commit(parent):
        raise bad_request("parentCommit is a full commit id")
    return title.strip()[:MAX_TITLE], description[:MAX_DESCRIPTION], str(parent)


def _committed(call: Call, repo: Repo, made: Revision, number: int | None) -> dict[str, Any]:
    page = call.base + repo.url_path
    return {
        "success": True,
        "commitOid": made.oid,
        "commitUrl": f"{page}/commit/{made.oid}",
        "hookOutput": "",
        "pullRequestUrl": f"{page}/discussions/{number}" if number else None,
    }


def list_commits(call: Call) -> Response:
    """`GET …/commits/{rev}`, newest first, in pages."""
    start = call.revision()
    limit, page = max(1, call.number("limit", PAGE, 1000)), call.number("p", 0, 10**7)
    found = revisions.history(
        call.hub.database.connection(), call.repo.id, start.oid, skip=page * limit, limit=limit + 1
    )
    document = [
        {
            "id": item.oid,
            "title": item.title,
            "message": item.message,
            "authors": [{"user": item.author, "avatar": ""}],
            "date": item.created_at,
        }
        for item in found[:limit]
    ]
    total = {
        "X-Total-Count": str(revisions.count_history(call.hub.database.connection(), call.repo.id, start.oid))
    }
    return answer(document, headers={**total, **(call.next_page(p=page + 1) if len(found) > limit else {})})


def branch(call: Call) -> Response:
    """`POST` (with `startingPoint`) and `DELETE` of `…/branch/{branch}`."""
    repo, name = call.own_repo(), check_ref(call.params["ref"])
    with call.hub.database.write() as connection:
        if call.request.method == "DELETE":
            revisions.delete_ref(connection, repo.id, "branch", name)
        else:
            start = revisions.resolve(connection, repo.id, str(call.body.get("startingPoint") or revisions.MAIN))
            revisions.create_ref(connection, repo.id, Ref("branch", name, start.oid))
    return PlainTextResponse("OK")


def create_tag(call: Call) -> Response:
    """`POST …/tag/{rev}` `{tag}`."""
    repo, name = call.own_repo(), check_ref(call.body.get("tag"))
    with call.hub.database.write() as connection:
        start = revisions.resolve(connection, repo.id, call.params["rev"])
        revisions.create_ref(connection, repo.id, Ref("tag", name, start.oid))
    return PlainTextResponse("OK")


def delete_tag(call: Call) -> Response:
    """`DELETE …/tag/{tag}`."""
    repo = call.own_repo()
    with call.hub.database.write() as connection:
        revisions.delete_ref(connection, repo.id, "tag", call.params["rev"])
    return PlainTextResponse("OK")


ROUTES: list[BaseRoute] = [
    *(streaming(path, create_commit, "POST", types=types) for types, path in api_paths("/commit/{rev}")),
    *api_routes("/commits/{rev}", list_commits),
    *api_routes("/branch/{ref}", branch, "POST", "DELETE"),
    *api_routes("/tag/{rev}", create_tag, "POST"),
    *api_routes("/tag/{rev}", delete_tag, "DELETE"),
]

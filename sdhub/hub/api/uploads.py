"""Uploading contents: preupload (which way), and git-lfs batch, PUT and verify.

A file goes the LFS way when its name is one of git-lfs's usual suspects or it is larger than 10 MiB, else it
travels inside the commit. Clients with `hf_xet` send LFS files by Xet instead (`api/xet.py`).
"""

from __future__ import annotations

import hmac
import re
import time
from typing import Any
from urllib.parse import urlencode

from starlette.concurrency import run_in_threadpool
from starlette.responses import Response
from starlette.routing import BaseRoute

from sdhub.hub.api.call import Call, answer, api_routes, buffered, site_paths, site_routes, streaming
from sdhub.hub.api.repositories import LFS_EXTENSIONS
from sdhub.hub.errors import Refusal, bad_request
from sdhub.hub.hub import no_repository
from sdhub.hub.names import check_path, is_sha256
from sdhub.hub.store import repositories
from sdhub.hub.store.blobs import Staged
from sdhub.hub.store.repositories import Repo
from sdhub.hub.users import NOBODY

MAX_REGULAR = 10 * 2**20
MAX_LFS = 64 * 2**30
MAX_BATCH = 1000
LINK_SECONDS = 24 * 3600
WRITE_BYTES = 4 * 2**20

_LFS_NAME = re.compile(r".*\.(?:" + "|".join(LFS_EXTENSIONS).replace("lfs.*", r"lfs\..*") + r")", re.DOTALL)


def is_lfs(path: str, size: int) -> bool:
    """Whether a file of this name and size goes the LFS way."""
    return size > 0 and (size > MAX_REGULAR or _LFS_NAME.fullmatch(path.rpartition("/")[2]) is not None)


def preupload(call: Call) -> Response:
    """`POST …/preupload/{rev}`: for each file, which way it goes, and the id of what is there already."""
    call.contribute_repo()
    present = call.tree(call.revision()).files
    files = call.body.get("files")
    if not isinstance(files, list) or len(files) > MAX_BATCH:
        raise bad_request(f"files is a list of at most {MAX_BATCH}")
    answers: list[dict[str, Any]] = []
    for entry in files:
        path, size = _named_size(entry, "path")
        lfs = is_lfs(check_path(path), size)
        there = present.get(path)
        oid = None
        if there is not None and there.lfs == lfs:
            oid = there.sha256 if lfs else there.oid
        mode = "lfs" if lfs else "regular"
        answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False, **({"oid": oid} if oid else {})})
    return answer({"files": answers})


def _named_size(entry: object, key: str) -> tuple[str, int]:
    name = entry.get(key) if isinstance(entry, dict) else None
    size = entry.get("size") if isinstance(entry, dict) else None
    if not isinstance(name, str) or not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise bad_request(f"each object has {key} and size")
    return name, size


def batch(call: Call) -> Response:
    """`POST /{repo}.git/info/lfs/objects/batch`: where to PUT each object; no action for those that are held."""
    repo = call.contribute_repo()
    objects = call.body.get("objects")
    if call.body.get("operation") != "upload" or not isinstance(objects, list) or len(objects) > MAX_BATCH:
        raise bad_request(f"Only the upload of up to {MAX_BATCH} objects at once is supported")
    pairs = [_named_size(entry, "oid") for entry in objects]
    answers = [_batch_answer(call, repo, oid, size) for oid, size in pairs]
    document = {"transfer": "basic", "hash_algo": "sha256", "objects": answers}
    return answer(document, headers={"Content-Type": "application/vnd.git-lfs+json"})


def _batch_answer(call: Call, repo: Repo, oid: str, size: int) -> dict[str, Any]:
    base: dict[str, Any] = {"oid": oid, "size": size, "authenticated": True}
    if not is_sha256(oid):
        return {**base, "error": {"code": 422, "message": "the oid is not a SHA-256"}}
    if size > MAX_LFS:
        return {**base, "error": {"code": 422, "message": f"an object has at most {MAX_LFS} bytes"}}
    held = call.hub.blobs.held_size(call.hub.database.connection(), repo.id, oid)
    if held == size:
        return base
    until = int(time.time()) + LINK_SECONDS
    query = urlencode({"size": size, "until": until, "sign": call.hub.sign("lfs", repo.id, oid, size, until)})
    place = f"{call.base}{repo.url_path}.git/info/lfs/objects"
    return {
        **base,
        "actions": {"upload": {"href": f"{place}/{oid}?{query}"}, "verify": {"href": f"{place}/verify"}},
    }


async def put(call: Call) -> Response:
    """`PUT` of an object to the signed address that `batch` gave. What does not fit its name is not kept."""
    repo, size = await run_in_threadpool(_permitted, call)
    staged = await _receive(call, size)
    try:
        if staged.size != size or staged.sha256 != call.params["oid"]:
            raise bad_request("The content has not the size and SHA-256 it was announced with")
        await run_in_threadpool(_keep, call, repo, staged)
    finally:
        staged.discard()
    return answer({}, headers={"ETag": f'"{staged.sha256}"'})


def _permitted(call: Call) -> tuple[Repo, int]:
    repo = repositories.find(
        call.hub.database.connection(), call.repo_type, call.params["namespace"], call.params["name"]
    )
    if repo is None:
        raise no_repository(NOBODY)
    size, until = call.number("size", 0, MAX_LFS), call.number("until", 0, 10**11)
    expected = call.hub.sign("lfs", repo.id, call.params["oid"], size, until)
    if not hmac.compare_digest(expected.encode(), call.query("sign").encode()) or until < time.time():
        raise Refusal(403, "The upload address is not valid, or no longer")
    call.hub.blobs.require_space(size)
    return repo, size


async def _receive(call: Call, size: int) -> Staged:
    with call.hub.blobs.stage() as target:
        async for piece in buffered(call.request, WRITE_BYTES):
            if target.size + len(piece) > size:
                raise bad_request("The content is larger than it was announced")
            await run_in_threadpool(target.write, piece)
        return await run_in_threadpool(target.finish)


def _keep(call: Call, repo: Repo, staged: Staged) -> None:
    with call.hub.database.write() as connection:
        call.hub.blobs.install(connection, repo.id, staged)


def verify(call: Call) -> Response:
    """`POST …/objects/verify`: whether an object arrived whole. 404 otherwise."""
    repo = call.contribute_repo()
    oid, size = _named_size(call.body, "oid")
    if call.hub.blobs.held_size(call.hub.database.connection(), repo.id, oid) != size:
        raise Refusal(404, "The object is not here, or has another size")
    return answer({})


_OBJECTS = ".git/info/lfs/objects"
ROUTES: list[BaseRoute] = [
    *api_routes("/preupload/{rev}", preupload, "POST"),
    *site_routes(f"{_OBJECTS}/batch", batch, "POST"),
    *site_routes(f"{_OBJECTS}/verify", verify, "POST"),
    *(streaming(path, put, "PUT", types=types) for types, path in site_paths(f"{_OBJECTS}/{{oid}}")),
]

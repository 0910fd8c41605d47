"""Jobs and the buckets that they write to. Both are their owner's: to any other token they are not there."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import time
from collections.abc import AsyncIterator
from itertools import permutations
from pathlib import Path, PurePosixPath
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import BaseRoute

from sdhub.hub.api.call import Call, answer, route, streaming
from sdhub.hub.api.repositories import is_private
from sdhub.hub.errors import Refusal, bad_request
from sdhub.hub.hardware import FLAVORS, listing
from sdhub.hub.jobs import log_of
from sdhub.hub.names import check_name
from sdhub.hub.store import buckets, jobs, revisions
from sdhub.hub.store.buckets import Bucket
from sdhub.hub.store.jobs import Job

PAGE = 100
TIMEOUT_SECONDS, MAX_TIMEOUT = 30 * 60, 7 * 86_400
MAX_WORDS, MAX_TEXT, MAX_VOLUMES = 1000, 64 * 2**10, 20
LOOK_SECONDS, ALIVE_SECONDS = 0.2, 15.0
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_MOUNT = re.compile(r"(/[A-Za-z0-9_][A-Za-z0-9._-]{0,199})+")


def _owned(call: Call) -> str:
    """The namespace of the path, which is the caller's. 401, or 404 for that of someone else."""
    if call.caller.anonymous:
        raise Refusal(401, "Invalid username or password.")
    namespace = call.params["namespace"]
    if not call.caller.owns(namespace):
        raise jobs.no_job()
    return namespace


def _job(call: Call) -> Job:
    return jobs.find(call.hub.database.connection(), _owned(call), call.params["job"])


def create(call: Call) -> Response:
    """`POST /api/jobs/{namespace}`: 501 where no jobs run."""
    namespace = check_name(_owned(call), "namespace")
    call.hub.require_owner(call.caller, namespace)
    if call.hub.jobs is None:
        raise Refusal(501, "This Hub runs no jobs: start it with --jobs")
    spec, labels = _spec(call), jobs.check_labels(call.body.get("labels"))
    secrets = _variables(call.body.get("secrets"), "secrets")
    with call.hub.database.write() as connection:
        job = jobs.create(connection, namespace, call.caller.name, spec, labels)
    log_of(call.hub.root, job).parent.mkdir(parents=True, exist_ok=True)
    call.hub.jobs.submit(job, secrets)
    return answer(job.document())


def _spec(call: Call) -> dict[str, Any]:
    body = call.body
    if body.get("expose") or (body.get("ssh") or {}).get("enabled"):
        raise Refusal(501, "Jobs of this Hub have neither ports nor SSH")
    image, space = body.get("dockerImage"), body.get("spaceId")
    if not isinstance(image or space, str):
        raise bad_request("A job has a dockerImage or a spaceId")
    command = _words(body.get("command"), "command")
    if not command:
        raise bad_request("A job has a command")
    flavor = body.get("flavor") or "cpu-basic"
    if flavor not in FLAVORS:
        raise bad_request(f"flavor is one of: {', '.join(sorted(FLAVORS))}")
    seconds = body.get("timeoutSeconds") or TIMEOUT_SECONDS
    if not isinstance(seconds, int) or not 0 < seconds <= MAX_TIMEOUT:
        raise bad_request(f"timeoutSeconds is at most {MAX_TIMEOUT}")
    return {
        "dockerImage": image,
        "spaceId": space,
        "command": command,
        "arguments": _words(body.get("arguments"), "arguments"),
        "environment": _variables(body.get("environment"), "environment"),
        "flavor": flavor,
        "timeoutSeconds": seconds,
        "volumes": _volumes(call),
    }


def _words(value: Any, name: str) -> list[str]:
    words = value or []
    fit = isinstance(words, list) and len(words) <= MAX_WORDS and all(isinstance(each, str) for each in words)
    if not fit or sum(map(len, words)) > MAX_TEXT or any("\0" in each for each in words):
        raise bad_request(f"{name} is a list of texts, {MAX_TEXT} characters in all")
    return list(words)


def _variables(value: Any, name: str) -> dict[str, str]:
    given = value or {}
    if not isinstance(given, dict) or not all(
        _VARIABLE.fullmatch(key) and isinstance(each, (str, int, float)) for key, each in given.items()
    ):
        raise bad_request(f"{name} are variables with texts")
    found = {key: str(each) for key, each in given.items()}
    if sum(map(len, found.values())) > MAX_TEXT or any("\0" in each for each in found.values()):
        raise bad_request(f"{name} have at most {MAX_TEXT} characters in all")
    return found


def _volumes(call: Call) -> list[dict[str, Any]]:
    given = call.body.get("volumes") or []
    sound = isinstance(given, list) and all(isinstance(each, dict) for each in given)
    if not sound or len(given) > MAX_VOLUMES:
        raise bad_request(f"volumes is a list of at most {MAX_VOLUMES}")
    found = [_volume(call, each) for each in given]
    places = [PurePosixPath(each["mountPath"]) for each in found]
    if any(one.is_relative_to(other) for one, other in permutations(places, 2)):
        raise bad_request("A volume is mounted in another one")
    return found


def _volume(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    kind, source, place = given.get("type", "model"), given.get("source"), given.get("mountPath")
    path, revision = given.get("path"), given.get("revision")
    if not isinstance(place, str) or not _MOUNT.fullmatch(place) or ".." in place.split("/"):
        raise bad_request("mountPath is an absolute path")
    if not isinstance(source, str) or source.count("/") != 1:
        raise bad_request("source is NAMESPACE/NAME")
    if path is not None and (not isinstance(path, str) or not _MOUNT.fullmatch(f"/{path.strip('/')}")):
        raise bad_request("path is a folder in the volume")
    namespace, _, name = source.partition("/")
    if kind == "bucket":
        _bucket(call, namespace, name)
    elif kind in ("model", "dataset", "space"):
        repo = call.hub.readable(call.caller, kind, namespace, name)
        call.hub.require_files(call.caller, repo)
        revisions.resolve(call.hub.database.connection(), repo.id, str(revision or revisions.MAIN))
    else:
        raise bad_request("type is bucket, model, dataset or space")
    read_only = kind != "bucket" or given.get("readOnly") is True
    volume = {"type": kind, "source": source, "mountPath": place, "readOnly": read_only}
    return volume | {key: given[key] for key in ("path", "revision") if given.get(key)}


def search(call: Call) -> Response:
    """`GET /api/jobs/{namespace}?stage=&label=KEY=VALUE`, newest first, in pages."""
    namespace, asked = _owned(call), call.request.query_params
    pairs = [each.partition("=") for each in asked.getlist("label")]
    found = jobs.search(
        call.hub.database.connection(),
        namespace,
        stages=[each.upper() for each in asked.getlist("stage")],
        labels={key: value for key, _, value in pairs},
        before=call.number("before", 0, 2**53) or None,
        limit=PAGE,
    )
    more = call.next_page(before=found[-1].number) if len(found) == PAGE else None
    return answer([each.document() for each in found], headers=more)


def inspect(call: Call) -> Response:
    """`GET /api/jobs/{namespace}/{job}`."""
    return answer(_job(call).document())


def cancel(call: Call) -> Response:
    """`POST …/cancel`. Of a job that has ended, nothing changes."""
    job = _job(call)
    call.hub.require_owner(call.caller, job.namespace)
    if not job.ended:
        if call.hub.jobs is None:
            raise Refusal(501, "Another server of this Hub runs its jobs")
        call.hub.jobs.cancel(job)
    return inspect(call)


def label(call: Call) -> Response:
    """`PUT …/labels` `{labels}`: all that it has."""
    job, labels = _job(call), jobs.check_labels(call.body.get("labels"))
    call.hub.require_owner(call.caller, job.namespace)
    with call.hub.database.write() as connection:
        return answer(jobs.set_labels(connection, job, labels).document())


async def logs(call: Call) -> Response:
    """`GET …/logs?tail=`: server-sent events, all lines from the first on, until the job has ended."""
    job = await run_in_threadpool(_job, call)
    tail = call.number("tail", 0, 10**6)
    return StreamingResponse(_events(call, job, tail), media_type="text/event-stream")


async def _events(call: Call, job: Job, tail: int) -> AsyncIterator[str]:
    log, position, alive = log_of(call.hub.root, job), 0, time.monotonic()

    def look(position: int) -> tuple[bool, list[str], int]:
        """Whether the job has ended, and then the whole lines after `position`."""
        ended = jobs.find(call.hub.database.connection(), job.namespace, job.id).ended
        return ended, *_lines_after(log, position)

    while True:
        ended, lines, position = await run_in_threadpool(look, position)
        for line in lines[-tail:]:
            stamp, _, text = line.partition("\t")
            yield f"data: {json.dumps({'data': text, 'timestamp': stamp})}\n\n"
        tail = 0
        if ended:
            return
        if lines:
            alive = time.monotonic()
        elif time.monotonic() > alive + ALIVE_SECONDS:
            alive = time.monotonic()
            yield ": keep-alive\n\n"
        await asyncio.sleep(LOOK_SECONDS)


def _lines_after(log: Path, position: int) -> tuple[list[str], int]:
    if not log.exists():
        return [], position
    with log.open("rb") as stream:
        stream.seek(position)
        whole = stream.read().rpartition(b"\n")[0]
    if not whole:
        return [], position
    return whole.decode("utf-8").split("\n"), position + len(whole) + 1


def hardware(call: Call) -> Response:
    """`GET /api/jobs/hardware`."""
    return answer(listing())


def _bucket(call: Call, namespace: str, name: str) -> Bucket:
    """A bucket that the caller may use. 401 or 404 otherwise."""
    found = buckets.find(call.hub.database.connection(), namespace, name)
    if found is None or not call.caller.owns(found.namespace):
        raise Refusal(404, "Bucket not found", code="RepoNotFound")
    return found


def create_bucket(call: Call) -> Response:
    """`POST /api/buckets/{namespace}/{name}` `{private}`. 409, with the address, when it is there."""
    call.hub.require_writer(call.caller)
    given = call.params["namespace"]
    own = given == "me" and not call.caller.owns(given)  # the client's word for the caller
    namespace = check_name(call.caller.name if own else given, "namespace")
    name = check_name(call.params["name"], "bucket name")
    call.hub.require_owner(call.caller, namespace)
    address = {"url": f"{call.base}/buckets/{namespace}/{name}", "id": f"{namespace}/{name}"}
    try:
        with call.hub.database.write() as connection:
            buckets.create(connection, namespace, name, private=bool(is_private(call.body)))
    except Refusal as refusal:
        raise Refusal(refusal.status, refusal.message, body=address) from None
    return answer(address)


def get_bucket(call: Call) -> Response:
    """`GET /api/buckets/{namespace}/{name}`."""
    return answer(_as_bucket(call, _bucket(call, call.params["namespace"], call.params["name"])))


def list_buckets(call: Call) -> Response:
    """`GET /api/buckets/{namespace}`."""
    found = buckets.search(call.hub.database.connection(), _owned(call))
    return answer([_as_bucket(call, each) for each in found])


def delete_bucket(call: Call) -> Response:
    """`DELETE /api/buckets/{namespace}/{name}`."""
    bucket = _bucket(call, call.params["namespace"], call.params["name"])
    call.hub.require_owner(call.caller, bucket.namespace)
    with call.hub.database.write() as connection:
        buckets.delete(connection, bucket)
    shutil.rmtree(bucket.folder(call.hub.root), ignore_errors=True)
    return PlainTextResponse("OK")


def _as_bucket(call: Call, bucket: Bucket) -> dict[str, Any]:
    folder = bucket.folder(call.hub.root)
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()] if folder.is_dir() else []
    return {
        "id": bucket.full_name,
        "private": bucket.private,
        "createdAt": bucket.created_at,
        "size": sum(sizes),
        "totalFiles": len(sizes),
    }


_JOB = "/api/jobs/{namespace}/{job}"
_BUCKET = "/api/buckets/{namespace}/{name}"
ROUTES: list[BaseRoute] = [
    route("/api/jobs/hardware", hardware),
    route("/api/jobs/{namespace}", create, "POST"),
    route("/api/jobs/{namespace}", search),
    route(_JOB, inspect),
    route(f"{_JOB}/cancel", cancel, "POST"),
    route(f"{_JOB}/labels", label, "PUT"),
    streaming(f"{_JOB}/logs", logs),
    route("/api/buckets/{namespace}", list_buckets),
    route(_BUCKET, create_bucket, "POST"),
    route(_BUCKET, get_bucket),
    route(_BUCKET, delete_bucket, "DELETE"),
]

"""The Xet endpoints for uploads: token, xorbs, shards. Downloads never need them."""

from __future__ import annotations

from starlette.concurrency import run_in_threadpool
from starlette.responses import Response
from starlette.routing import BaseRoute

from sdhub.hub.api.call import Call, answer, api_routes, buffered, read_limited, route, streaming
from sdhub.hub.errors import Refusal, bad_request
from sdhub.hub.xet import sessions
from sdhub.hub.xet.formats import MAX_SHARD_BYTES, MAX_XORB_BYTES, XetError, check_xorb, parse_shard
from sdhub.hub.xet.sessions import Session

WRITE_BYTES = 4 * 2**20


def write_token(call: Call) -> Response:
    """`GET …/xet-write-token/{rev}`: begins an upload session."""
    repo = call.contribute_repo()
    session, token, until = sessions.begin(call.hub, repo.id)
    address = f"{call.base}/xet/{session.id}"
    headers = {
        "X-Xet-Cas-Url": address,
        "X-Xet-Access-Token": token,
        "X-Xet-Token-Expiration": str(until),
        "Cache-Control": "no-store",
    }
    return answer({"casUrl": address, "accessToken": token, "exp": until}, headers=headers)


def _session(call: Call) -> Session:
    return sessions.find(call.hub, call.params["session"], call.request.headers.get("authorization"))


def chunk(call: Call) -> Response:
    """`GET /v1/chunks/…`: no chunk is known from elsewhere."""
    _session(call)
    raise Refusal(404, "No such chunk")


async def xorb(call: Call) -> Response:
    """`POST /v1/xorbs/default/{hash}`."""
    session = await run_in_threadpool(_session, call)
    target = session.xorb(call.params["hash"])
    await run_in_threadpool(call.hub.blobs.require_space, MAX_XORB_BYTES)
    with call.hub.blobs.stage() as file:
        async for piece in buffered(call.request, WRITE_BYTES):
            if file.size + len(piece) > MAX_XORB_BYTES:
                raise Refusal(413, f"A xorb has at most {MAX_XORB_BYTES} bytes")
            await run_in_threadpool(file.write, piece)
        staged = await run_in_threadpool(file.finish)
    try:
        await run_in_threadpool(check_xorb, staged.path)
        await run_in_threadpool(sessions.active, call.hub, session)
        session.folder.mkdir(parents=True, exist_ok=True)
        staged.path.replace(target)
    except XetError as error:
        raise bad_request(f"Xet: {error}") from None
    finally:
        staged.discard()
    return answer({"was_inserted": True})


async def shard(call: Call) -> Response:
    """`POST /v1/shards`: the files are put together and kept before this answers."""
    session = await run_in_threadpool(_session, call)
    data = await read_limited(call.request, MAX_SHARD_BYTES)
    await run_in_threadpool(_take_shard, call, session, data)
    return answer({"result": 1})


def _take_shard(call: Call, session: Session, data: bytes) -> None:
    try:
        files = parse_shard(data)
    except XetError as error:
        raise bad_request(f"Xet: {error}") from None
    sessions.active(call.hub, session)
    sessions.assemble(call.hub, session, files)
    sessions.active(call.hub, session, shards=1)


ROUTES: list[BaseRoute] = [
    *api_routes("/xet-write-token/{rev}", write_token),
    route("/xet/{session}/v1/chunks/{prefix}/{hash}", chunk, users=False),
    streaming("/xet/{session}/v1/xorbs/{prefix}/{hash}", xorb, "POST", users=False),
    streaming("/xet/{session}/v1/shards", shard, "POST", users=False),
    streaming("/xet/{session}/shards", shard, "POST", users=False),
]

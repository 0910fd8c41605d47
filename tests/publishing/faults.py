"""Publishing through a Hub that fails in every way a network can, run after run from a seed.

A run that leaves a repository neither whole nor as it was raises AssertionError. The client is the real one.
`benchmarks/faults.py` runs two hundred of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import huggingface_hub.utils._http as http
import uvicorn
from huggingface_hub import CommitOperationAdd, HfApi, set_client_factory

from sdhub.core.errors import HubError
from sdhub.core.hub import Hub
from sdhub.hub.app import make_app
from sdhub.hub.hub import open_hub
from sdhub.hub.server import listen
from sdhub.hub.users import Users
from sdhub.publishing.push import push

TOKEN = "hf_secret_of_the_fault_runs"
TIMEOUT = 1.0
KINDS = (
    *("429 in seconds", "429 as the Hub", "500", "502", "503", "504", "delay", "cut early", "cut upload"),
    *("lost answer", "error after", "cut answer", "short answer", "hang"),
)


class Faults:
    """ASGI middleware: from a seed, some requests fail; `off`, it passes all on."""

    def __init__(self, app) -> None:
        self.app = app
        self.happened: Counter[str] = Counter()
        self.off()

    def on(self, seed: int, rate: float, outage: int | None) -> None:
        """Fail this share of requests, and all from number `outage` on."""
        self.source, self.rate, self.outage, self.count = random.Random(seed), rate, outage, 0

    def off(self) -> None:
        self.rate, self.outage, self.count = 0.0, None, 0

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http" or not self.rate:
            await self.app(scope, receive, send)
            return
        self.count += 1
        down = self.outage is not None and self.count > self.outage
        if not down and self.source.random() >= self.rate:
            await self.app(scope, receive, send)
            return
        kind = self.source.choice(KINDS if not down else ("502", "503", "cut early"))
        self.happened[kind] += 1
        await self._fail(kind, scope, receive, send)

    async def _fail(self, kind: str, scope, receive, send) -> None:
        cut = send.__self__.transport.abort  # of uvicorn: nothing gentler breaks a line
        if kind == "429 in seconds":
            await _status(send, 429, (b"retry-after", b"7"))
        elif kind == "429 as the Hub":
            await _status(send, 429, (b"ratelimit", b'"api";r=0;t=55'))
        elif kind.isdigit():
            await _status(send, int(kind))
        elif kind == "delay":
            await asyncio.sleep(self.source.random() * 0.05)
            await self.app(scope, receive, send)
        elif kind == "cut early":
            cut()
        elif kind == "cut upload":
            await receive()
            cut()
        elif kind == "hang":
            await asyncio.sleep(2 * TIMEOUT)
            cut()
        else:
            await self._after(kind, scope, receive, send, cut)

    async def _after(self, kind: str, scope, receive, send, cut) -> None:
        """The request is done, and its answer does not arrive as it was."""
        said = []

        async def keep(message) -> None:
            said.append(message)

        await self.app(scope, receive, keep)
        body = b"".join(message.get("body", b"") for message in said[1:])
        headers = [pair for pair in said[0]["headers"] if pair[0].lower() != b"content-length"]
        if kind == "lost answer":
            cut()
        elif kind == "error after":
            await _status(send, self.source.choice([500, 502, 503]))
        else:
            length = len(body) if kind == "cut answer" else len(body) // 2
            started = {**said[0], "headers": [*headers, (b"content-length", str(length).encode())]}
            await send(started)
            await send({"type": "http.response.body", "body": body[: len(body) // 2], "more_body": True})
            if kind == "cut answer":
                await asyncio.sleep(0)
                cut()
            else:
                await send({"type": "http.response.body"})


async def _status(send, status: int, *headers: tuple[bytes, bytes]) -> None:
    pairs = [(b"content-length", b"5"), (b"content-type", b"text/plain"), *headers]
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": b"fault"})


@contextlib.contextmanager
def faulty_hub(root: Path) -> Iterator[tuple[str, Faults]]:
    """An embedded Hub in a thread, behind faults that are off."""
    faults = Faults(make_app(open_hub(root, Users(), loopback=True)))
    listener = listen("127.0.0.1", 0)
    config = uvicorn.Config(faults, log_config=None, log_level="critical", access_log=False, lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", faults
    finally:
        server.should_exit = server.force_exit = True
        thread.join()
        listener.close()


@contextlib.contextmanager
def hasty() -> Iterator[list[float]]:
    """Nobody sleeps, and answers are not waited for long; gives the waits that were asked for."""
    waits: list[float] = []
    asleep = time.sleep

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        asleep(0)

    def factory():
        session = http.default_client_factory()
        session.timeout = TIMEOUT
        return session

    set_client_factory(factory)
    try:
        with mock.patch.object(time, "sleep", sleep):
            yield waits
    finally:
        set_client_factory(http.default_client_factory)


@dataclass(frozen=True)
class Outcome:
    """What a run came to: "published", "as it was" or "left empty"; `said` is the error, if there was one."""

    became: str
    said: str | None
    waited: float


def make_folder(folder: Path, source: random.Random) -> dict[str, bytes]:
    """A tiny repository with regular files, LFS files and its `sdhub.json`."""
    files = {
        "README.md": b"---\nlicense: mit\n---\n# " + source.randbytes(8).hex().encode() + b"\n",
        "model_index.json": json.dumps({"n": source.random()}).encode(),
        "unet/model.bin": source.randbytes(source.randrange(1, 60_000)),
        "vae/model.safetensors": source.randbytes(source.randrange(1, 20_000)),
        f"only/{source.randrange(3)}.txt": b"x",
    }
    listed = {name: {"bytes": len(b), "sha256": hashlib.sha256(b).hexdigest()} for name, b in files.items()}
    files["sdhub.json"] = json.dumps({"files": listed}).encode()
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return files


def run(seed: int, url: str, faults: Faults, folder: Path) -> Outcome:
    """One publish through faults, and its retry without. Raises AssertionError where anything is half done."""
    source = random.Random(seed)
    api, repo_id = HfApi(endpoint=url, token=TOKEN), f"faults/run-{seed}"
    old: dict[str, bytes] = {}
    existed = source.random() < 0.6
    if existed:
        old = make_folder(folder / "old", source)
        push(folder / "old", repo_id, hub=Hub(url, TOKEN), message="earlier")
        api.create_commit(repo_id, [CommitOperationAdd("theirs.txt", b"theirs")], commit_message="theirs")
        old["theirs.txt"] = b"theirs"
    new = make_folder(folder / "new", source)
    create_pr = existed and source.random() < 0.3
    commits = len(api.list_repo_commits(repo_id)) if existed else 1
    wanted = {**new, **({"theirs.txt": b"theirs"} if existed else {})}

    def publish():
        return push(folder / "new", repo_id, hub=Hub(url, TOKEN), message=f"run {seed}", create_pr=create_pr)

    outage = source.randrange(2, 60) if source.random() < 0.3 else None
    said, pushed = None, None
    faults.on(seed, source.choice([0.15, 0.3, 0.45, 0.6]), outage)
    with hasty() as waits:
        try:
            pushed = publish()
        except HubError as error:
            said = error.message
            assert "\n" not in said, said
            assert TOKEN not in said + error.hint
    faults.off()
    http.close_session()

    became = _state(api, repo_id, old, wanted, existed=existed, create_pr=create_pr)
    if pushed:
        assert became == "published", f"{pushed.status}, and the repository is {became}"
        if not create_pr:
            assert len(api.list_repo_commits(repo_id)) == commits + 1
    again = publish()
    assert again.status in ({"proposed"} if create_pr else {"published", "unchanged"})
    assert _state(api, repo_id, old, wanted, existed=existed, create_pr=create_pr) == "published"
    if not create_pr:
        assert len(api.list_repo_commits(repo_id)) == commits + 1
    assert publish().uploaded_bytes == 0
    return Outcome(became, said, sum(waits))


def _state(api: HfApi, repo_id: str, old, wanted, *, existed: bool, create_pr: bool) -> str:
    """What the repository holds, byte for byte. Raises AssertionError for anything in between."""
    if not api.repo_exists(repo_id):
        assert not existed, "the repository is gone"
        return "as it was"
    if create_pr:
        assert _contents(api, repo_id, "main") == old, "a pull request changed main"
        pulls = [each.num for each in api.get_repo_discussions(repo_id) if each.is_pull_request]
        assert len(pulls) <= 1, "two pull requests"
        found = _contents(api, repo_id, f"refs/pr/{pulls[0]}") if pulls else old
    else:
        found = _contents(api, repo_id, "main")
    if found == wanted:
        return "published"
    assert found == old, f"half published: {sorted(found)}"
    return "as it was" if existed else "left empty"


def _contents(api: HfApi, repo_id: str, revision: str) -> dict[str, bytes]:
    session = http.get_session()
    contents = {}
    for name in api.list_repo_files(repo_id, revision=revision):
        if name != ".gitattributes":
            url = f"{api.endpoint}/{repo_id}/resolve/{revision.replace('/', '%2F')}/{name}"
            answer = session.get(url, follow_redirects=True)
            assert answer.status_code == 200, (name, answer.status_code)
            contents[name] = answer.content
    return contents


def runs(seeds) -> Iterator[tuple[int, Outcome]]:
    """The outcome of each seed."""
    with (
        tempfile.TemporaryDirectory() as temporary,
        faulty_hub(Path(temporary) / "hub") as (url, faults),
    ):
        for seed in seeds:
            try:
                yield seed, run(seed, url, faults, Path(temporary) / str(seed))
            except AssertionError as error:
                raise AssertionError(f"seed {seed}: {error}") from error
        print(dict(sorted(faults.happened.items())), file=sys.stderr)  # noqa: T201

"""What strangers may ask of the Spaces: sizes and times are bounded, turns are in order."""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import sys
import tempfile
import threading
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import pytest
import uvicorn
from fastapi import FastAPI

from sdhub.checkpoint.resolve import resolve
from sdhub.core.errors import UnsupportedError, UsageError
from sdhub.core.hub import Hub
from sdhub.core.work import Work
from sdhub.spaces.sources import space_files
from sdhub.watching.orders import Order, Task
from sdhub.workflow.options import Options
from tests.spaces.sources import space_module

bounds = space_module("publisher", "bounds")
limits = space_module("publisher", "limits")
making = space_module("publisher", "making")
HUB = Hub("http://127.0.0.1:9", "token-of-the-visitor")
PREFIX = "/gradio_api"


@pytest.fixture(scope="module")
def port(tmp_path_factory):
    """A Gradio page as both Spaces serve theirs, behind the bounds."""
    folder = tmp_path_factory.mktemp("gradio")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(folder))
        app = FastAPI()

        async def own(request):
            from starlette.responses import PlainTextResponse

            return PlainTextResponse(str(len(await request.body())))

        app.router.add_route("/webhook", own, methods=["POST"])
        with gr.Blocks(analytics_enabled=False) as blocks:
            text = gr.Textbox()
            text.submit(lambda given: given, [text], [text], api_name="echo")
        app = gr.mount_gradio_app(app, blocks, path="/", ssr_mode=False)
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            config = uvicorn.Config(bounds.Bounded(app, own=["/webhook"], seconds=1.0), log_level="error")
            server = uvicorn.Server(config)
            thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
            thread.start()
            while not server.started:
                time.sleep(0.02)
            yield listener.getsockname()[1]
            server.should_exit = True
            thread.join(10)
        assert not [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size > 10**6]


def post(port, path, body, *, chunked=False, headers=None, method="POST"):
    """The status; a server that answers before all was sent may close its side."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    pieces = iter([body[at : at + 65536] for at in range(0, len(body), 65536)]) if chunked else body
    with contextlib.suppress(OSError):
        connection.request(method, path, pieces, headers or {}, encode_chunked=chunked)
    try:
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


FORM = {"Content-Type": "multipart/form-data; boundary=x"}
FILE = (
    b'--x\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\n'
    + b"x" * 20_000_000
    + b"\r\n--x--\r\n"
)


@pytest.mark.parametrize(
    "path", [f"{PREFIX}/upload", "/upload", f"{PREFIX}/UPLOAD/", f"{PREFIX}/upload?upload_id=7"]
)
@pytest.mark.parametrize("chunked", [False, True])
def test_nothing_is_uploaded(path, chunked, port):
    headers = FORM | ({"Transfer-Encoding": "chunked"} if chunked else {})
    small = FILE[:100] + b"\r\n--x--\r\n"
    assert post(port, path, small, chunked=chunked, headers=headers) == 404
    assert post(port, path, FILE, chunked=chunked, headers=headers) in {404, None}


@pytest.mark.parametrize("path", [f"{PREFIX}/queue/join", f"{PREFIX}/call/echo", "/", f"{PREFIX}/anything"])
@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("method", ["POST", "PUT", "GET"])
def test_bodies_are_bounded(path, chunked, method, port):
    headers = {"Content-Type": "application/json"} | ({"Transfer-Encoding": "chunked"} if chunked else {})
    body = b'"' + b"x" * bounds.MAX_BODY + b'"'
    assert post(port, path, body, chunked=chunked, headers=headers, method=method) == 413


def test_a_call_goes_through(port):
    body = b'{"data": ["pizza"]}'
    assert post(port, f"{PREFIX}/call/echo", body, headers={"Content-Type": "application/json"}) == 200
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request("GET", "/config")
    assert connection.getresponse().status == 200
    connection.close()
    assert post(port, "/webhook", b"x" * (bounds.MAX_BODY + 1)) == 200  # it bounds itself


def test_a_body_that_never_ends_is_not_waited_for(port):
    with socket.create_connection(("127.0.0.1", port), timeout=20) as visitor:
        visitor.sendall(b"POST /gradio_api/queue/join HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        assert visitor.recv(100).startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize("name", ["demo", "publisher"])
def test_both_spaces_are_bounded(name):
    files = space_files(name)
    assert b"uvicorn.run(Bounded(app" in files["app.py"].replace(b"\n        ", b"").replace(b"run(\n", b"run(")
    assert "bounds.py" in files


# Publications.

CHILDREN = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print("begun", file=sys.stderr, flush=True)
time.sleep(60)
"""


def run_as(monkeypatch, code):
    monkeypatch.setattr(making, "COMMAND", [sys.executable, "-c", code])


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Small bounds, and nothing of this machine's own caches and passing folders within reach."""
    monkeypatch.setenv("SDHUB_HOME", str(tmp_path))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setattr(making, "clear_downloads", partial(making.clear_downloads, folder=tmp_path / "hub"))
    monkeypatch.setattr(making, "LOOK_SECONDS", 0.05)
    return limits.Limits(seconds=20.0, waiting=2)


def group(number):
    """Processes of a process group that live."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            state, _, pgid = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
        except (OSError, ValueError):
            continue
        if pgid == str(number) and state != "Z":
            found.append(entry)
    return found


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="looks into /proc")
@pytest.mark.parametrize("way", ["time", "leaving"])
def test_a_job_is_ended_with_all_it_started(way, small, monkeypatch):
    run_as(monkeypatch, CHILDREN)
    started = []
    popen = making.subprocess.Popen
    monkeypatch.setattr(making.subprocess, "Popen", lambda *a, **k: started.append(popen(*a, **k)) or started[-1])
    line = making.Line("publication")
    telling = making.make([], HUB, limits.Limits(seconds=1.5) if way == "time" else small, line)
    if way == "time":
        *_, last = telling
        assert "longer than" in last.error
        assert last.ended
    else:
        assert any(told.line == "begun" for told in telling)
        telling.close()
    assert group(started[0].pid) == []
    assert len(line) == 0


def test_a_result_and_an_error(small, monkeypatch):
    run_as(monkeypatch, "import os; print('{\"token\": \"' + os.environ['HF_TOKEN'] + '\"}')")
    *_, told = making.make([], HUB, small, making.Line("publication"))
    assert told.result == {"token": "token-of-the-visitor"}
    run_as(monkeypatch, "import sys; sys.exit('error: no')")
    *_, told = making.make([], HUB, small, making.Line("publication"))
    assert (told.error, told.result, told.code) == ("error: no", None, 1)


def test_a_queue_says_its_length_and_the_place(small, monkeypatch):
    run_as(monkeypatch, "import time; print('busy', flush=True); time.sleep(0.5)")
    line = making.Line("publication")
    first = line.join(small.waiting)
    second, third = (making.make([], HUB, small, line) for _ in range(2))
    assert next(second).line.startswith("Place 1 of 1 in the queue")
    assert next(third).line.startswith("Place 2 of 2 in the queue")
    assert str(line) == "One publication is being made, 2 wait."
    (refused,) = making.make([], HUB, small, line)
    assert "2 publications wait already" in refused.error
    second.close()  # a visitor who leaves
    assert any(told.line.startswith("Place 1 of 1") for told in (next(third), next(third)))
    line.leave(first)
    *_, last = third
    assert last.ended
    assert len(line) == 0


def test_the_work_folder_is_bounded(small, tmp_path, monkeypatch):
    for number in range(3):
        Work(tmp_path / "work").stage("s", {"k": number}, lambda out: (out / "x").write_bytes(b"x" * 1000))
    looked = [cached(tmp_path / "hub", name, name * 40, 1500, 1e9 + day) for day, name in enumerate("ab")]
    run_as(monkeypatch, "print('{}')")
    list(making.make([], HUB, limits.Limits(kept=2000), making.Line("publication")))
    assert [path.exists() for path in looked] == [False, True]
    kept = [path for path in (tmp_path / "work" / "s").iterdir() if path.is_dir()]
    assert len(kept) == 2


def test_settings(monkeypatch):
    monkeypatch.setenv("PUBLISH_GB", "3.5")
    monkeypatch.setenv("PUBLISH_MINUTES", "7")
    found = limits.from_environment()
    assert (found.source, found.seconds) == (3.5e9, 420)
    assert "7 minutes" in str(found)
    for wrong in ("many", "-1", "0", "nan", "inf"):
        monkeypatch.setenv("PUBLISH_QUEUE", wrong)
        with pytest.raises(UsageError, match="PUBLISH_QUEUE"):
            limits.from_environment()


def test_too_large_a_checkpoint_is_told():
    looking = space_module("publisher", "looking")
    with pytest.raises(UnsupportedError, match=r"has 34\.0 GB of weights; this Space takes up to 12 GB"):
        looking.require_size(SimpleNamespace(id="org/huge", bytes=34e9), limits.Limits())


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ('print(\'{"variants": [{"name": "openvino-int8", "status": "published", "url": "u"}]}\')', "done"),
        (
            'print(\'{"variants": [{"name": "openvino-int8", "status": "failed"}]}\'); raise SystemExit(1)',
            "failed",
        ),
        ("import sys; print('error: no licence', file=sys.stderr); sys.exit(3)", "refused"),
        ("import os; os.abort()", "failed"),
        ("print('{\"variants\": []}')", "failed"),
    ],
)
def test_the_webhook_publishes_apart(code, status, small, monkeypatch):
    hooks = space_module("publisher", "hooks")
    monkeypatch.setattr(hooks.looking, "inspected", lambda *_: resolve("demo"))
    run_as(monkeypatch, code)
    task = Task("org/m", "a" * 40, "r" * 64, "openvino-int8", "openvino", "me/m")
    ((_, (outcome,)),) = hooks.Isolated(Options(namespace="me"), HUB, small)([Order((task,))])
    assert outcome.status == status


def test_the_bound_of_memory_is_the_webhook_s_too(small, monkeypatch):
    hooks = space_module("publisher", "hooks")
    monkeypatch.setattr(hooks.looking, "inspected", lambda *_: resolve("demo"))
    run_as(monkeypatch, "raise SystemExit('was run')")
    task = Task("org/m", "a" * 40, "r" * 64, "openvino-int8", "openvino", "me/m")
    little = limits.Limits(memory=1e6)
    ((_, (outcome,)),) = hooks.Isolated(Options(namespace="me"), HUB, little)([Order((task,))])
    assert outcome.status == "refused"
    assert "making it needs" in outcome.detail and "of memory" in outcome.detail


def cached(cache, name, commit, size, used):
    """A repository in a cache as huggingface_hub lays it out, its file last read at `used` (s since 1970)."""
    repository = cache / f"models--org--{name}"
    blob = repository / "blobs" / commit
    snapshot = repository / "snapshots" / commit
    blob.parent.mkdir(parents=True, exist_ok=True)
    snapshot.mkdir(parents=True)
    blob.write_bytes(b"x" * size)
    (snapshot / "w.safetensors").symlink_to(blob)
    os.utime(blob, (used, used))
    return snapshot


def test_downloads_are_bounded(tmp_path):
    downloads = space_module("demo", "downloads")
    assert downloads.clear_downloads(10, tmp_path / "none") == 0
    made = [cached(tmp_path, name, name * 40, 1000, 1e9 + day) for day, name in enumerate("abcd")]
    assert downloads.clear_downloads(4000, tmp_path) == 0
    assert downloads.clear_downloads(2500, tmp_path, keep=["a" * 40]) == 2000
    assert [path.exists() for path in made] == [True, False, False, True]
    assert downloads.clear_downloads(0, tmp_path) == 2000

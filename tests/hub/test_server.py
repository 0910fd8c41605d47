"""The server as a program, and its pages."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from sdhub.hub.server import address, is_loopback, listen
from tests.hub.web import Browser, file
from tests.hubs import HubProcess


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sdhub.hub", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_taken_port_is_one_clear_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = run("--root", str(tmp_path), "--port", str(port))
    assert done.returncode == 1
    assert done.stderr.strip().splitlines() == [
        f"error: cannot listen on 127.0.0.1:{port}: Address already in use"
    ]


def test_root_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = run("--root", str(tmp_path / "file" / "below"), "--port", "0")
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_ends_when_told(tmp_path: Path, number: signal.Signals) -> None:
    hub = HubProcess(tmp_path / "root")
    assert httpx.get(hub.url, trust_env=False).status_code == 200
    hub.process.send_signal(number)
    assert hub.process.wait(timeout=20) == 0
    hub.stop()


def test_ends_with_its_parent(tmp_path: Path) -> None:
    hub = HubProcess(tmp_path / "root")
    assert hub.process.stdin is not None
    hub.process.stdin.close()
    assert hub.process.wait(timeout=20) == 0


def test_what_is_kept_survives(tmp_path: Path) -> None:
    hub = HubProcess(tmp_path / "root")
    Browser(hub.url).create("acme/kept")
    Browser(hub.url).commit("acme/kept", file("a", b"kept"))
    hub.stop()
    hub = HubProcess(tmp_path / "root")
    try:
        assert httpx.get(f"{hub.url}/acme/kept/resolve/main/a", trust_env=False).content == b"kept"
    finally:
        hub.stop()


def test_addresses() -> None:
    assert [is_loopback(host) for host in ("127.0.0.1", "localhost", "::1", "0.0.0.0", "example.org")] == [
        True,
        True,
        True,
        False,
        False,
    ]
    with listen("127.0.0.1", 0) as listener:
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+", address("127.0.0.1", listener))


def test_the_command_is_light() -> None:
    code = "import sys, sdhub.hub, sdhub.hub.__main__; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", f"import json; {code}"], capture_output=True, text=True, check=True
    )
    heavy = {"starlette", "uvicorn", "jinja2", "torch", "huggingface_hub", "markdown_it"}
    assert heavy.isdisjoint(json.loads(done.stdout))


def test_the_hub_knows_nothing_of_the_rest() -> None:
    folder = Path(__file__).resolve().parents[2] / "sdhub" / "hub"
    for path in folder.rglob("*.py"):
        for found in re.findall(r"^\s*(?:from|import) (sdhub[\w.]*)", path.read_text(), re.MULTILINE):
            assert found.startswith("sdhub.hub"), (path, found)


@pytest.fixture
def shown(web: Browser, repo: str) -> str:
    card = (
        "---\nlicense: mit\nbase_model: org/base\nlibrary_name: diffusers\ntags: [core-ml]\n---\n"
        "# The title\n\n![A picture](images/a.png)\n\n[weights](unet) | [site](https://example.org)\n\n"
        "| a | b |\n|---|--:|\n| 1 | 2 |\n"
    )
    web.commit(
        repo,
        file("README.md", card.encode()),
        file("images/a.png", b"\x89PNG\r\n\x1a\n"),
        file("images/b.png", b"\x89PNG\r\n\x1a\nb"),
        file("unet/config.json", b'{"a": 1}'),
        file("model_index.json", b"{}"),
        summary="Add everything",
    )
    return repo


def test_repository_page(visitor: Browser, shown: str, hub_url: str) -> None:
    page = visitor.http.get(f"/{shown}").text
    for text in ("The title", "org/base", "mit", "core-ml", "model_index.json", "Add everything"):
        assert text in page
    assert f"from_pretrained(&#34;{shown}&#34;)" in page
    assert f"HF_ENDPOINT={hub_url}" in page
    sources = re.findall(r'<img src="([^"]+)"', page)
    assert [source.rpartition("/")[2] for source in sources] == ["a.png", "b.png"]
    for source in sources:
        assert visitor.http.get(source).headers["Content-Type"] == "image/png"


def test_lines_that_would_not_load_are_not_shown(web: Browser, visitor: Browser, repo: str) -> None:
    """diffusers loads no Core ML packages."""
    assert web.commit(repo, file("model_index.json", b"{}")).status_code == 200
    assert "from_pretrained" in visitor.http.get(f"/{repo}").text
    assert web.commit(repo, file("unet.mlpackage/Manifest.json", b"{}")).status_code == 200
    page = visitor.http.get(f"/{repo}").text
    assert "from_pretrained" not in page
    assert f"hf download {repo}" in page


def test_every_link_leads_somewhere(web: Browser, visitor: Browser, shown: str) -> None:
    pull = web.http.post(f"/api/models/{shown}/discussions", json={"title": "A pull", "pullRequest": True}).json()[
        "num"
    ]
    web.commit(shown, file("unet/config.json", b'{"a": 2}'), rev=f"refs%2Fpr%2F{pull}")
    web.http.post(f"/api/models/{shown}/discussions", json={"title": "A talk", "description": "**hello**"})
    seen, waiting = set(), [f"/{shown}", "/", "/models", "/spaces", "/datasets", "/acme"]
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        answer = visitor.http.get(path, headers={"Accept": "text/html"}, follow_redirects=True)
        assert answer.status_code == 200, path
        if "text/html" in answer.headers["Content-Type"] and shown in path:
            found = re.findall(r'(?:href|src)="(/[^"#]*)"', answer.text)
            waiting += [link.replace("&amp;", "&") for link in found if shown in link]
    words = {path.removeprefix(f"/{shown}/").partition("/")[0] for path in seen if path.startswith(f"/{shown}/")}
    assert {"tree", "blob", "resolve", "commits", "commit", "discussions"} <= words
    diff = visitor.http.get(f"/{shown}/discussions/{pull}").text
    assert "+{&#34;a&#34;: 2}" in diff


def test_absent_pages(visitor: Browser) -> None:
    for path in (
        "/acme/absent-page",
        "/acme/absent-page/tree/main",
        "/a/b/c/d/e",
        "/acme/absent-page/discussions/1",
    ):
        answer = visitor.http.get(path, headers={"Accept": "text/html"})
        assert answer.status_code == 404
        assert answer.headers["Content-Type"].startswith("text/html")
        assert "<h1>404</h1>" in answer.text

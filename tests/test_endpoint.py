"""Which Hub: addresses without secrets, and several embedded ones at once."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from sdhub.core.endpoint import LOCAL_PORT, connect, embedded, endpoint
from sdhub.core.errors import UsageError
from sdhub.core.hub import Hub, shown_address
from tests.runs import environment, sdhub, sdhub_json

SECRETS = [
    "http://user:secret@host.example",
    "https://secret@host.example/path",
    "http://user:secret@",
    "user:secret@host.example",
    "htp://user:secret@host.example:99999",
    "http://user:sec@ret@host.example",
    "http://host.example/?token=secret",
    "http://host.example/#secret",
    "http://user:secret@[::1",
]


@pytest.mark.parametrize("url", SECRETS)
def test_addresses_with_secrets_are_refused_without_repeating_them(url, monkeypatch):
    for act in (lambda: endpoint(url), lambda: Hub(url, "token")):
        with pytest.raises(UsageError) as refused:
            act()
        said = refused.value.message + refused.value.hint
        assert "secret" not in said
        assert "user:" not in said
        assert "ret@" not in said
        assert "HF_TOKEN" in said
    monkeypatch.setenv("HF_ENDPOINT", url)
    with pytest.raises(UsageError):
        endpoint(None)
    assert "secret" not in shown_address(url)


@pytest.mark.parametrize(
    "url", ["host", "ftp://host", "http://", "http://host:99999", "http://[x", "http://a b", "http://h\x1b"]
)
def test_what_is_no_address_is_told(url):
    with pytest.raises(UsageError, match="no address"):
        endpoint(url)


def test_plain_addresses_are_taken():
    for url in ("https://huggingface.co", "http://127.0.0.1:8420", "http://[::1]:80", "https://host/mirror"):
        assert endpoint(f"{url}/").url == url


@pytest.mark.parametrize(
    "command", [["push", "FOLDER", "me/x"], ["watch", "--author", "a", "--once"], ["inspect", "a/b"]]
)
def test_the_program_never_prints_them(command, tmp_path):
    url = "http://user:secret@127.0.0.1:9"
    words = [str(tmp_path) if word == "FOLDER" else word for word in command]
    given = [] if command[0] == "inspect" else ["--hub", url]
    done = sdhub(*words, *given, home=tmp_path, endpoint=url if not given else None, code=2)
    assert "secret" not in done.stdout + done.stderr


def test_three_at_once_share_one_root(tmp_path):
    """As `publish --hub local` in three terminals; all is there afterwards."""
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "file.txt").write_text("words")
    command = [sys.executable, "-m", "sdhub", "push", str(folder)]
    running = [
        subprocess.Popen(
            [*command, f"demo/number-{number}", "--hub", "local"],
            env=environment(tmp_path),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(3)
    ]
    said = [each.communicate(timeout=120) for each in running]
    assert [each.returncode for each in running] == [0, 0, 0], said
    again = sdhub_json("push", str(folder), "demo/number-1", "--hub", "local", home=tmp_path)
    assert again["status"] == "unchanged"


def test_a_port_that_another_takes_in_between(tmp_path, monkeypatch):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        monkeypatch.setattr("sdhub.core.endpoint._free", lambda _: True)
        with embedded(tmp_path / "hub", port) as url:
            assert url != f"http://127.0.0.1:{port}"
            assert url != f"http://127.0.0.1:{LOCAL_PORT}"


def test_a_hub_ends_with_a_killed_owner(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from sdhub.core.endpoint import embedded\n"
        "with embedded(Path(sys.argv[1])) as url: print(url, flush=True); time.sleep(60)\n"
    )
    owner = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    port = int(owner.stdout.readline().rpartition(":")[2])
    os.kill(owner.pid, signal.SIGKILL)
    owner.communicate()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return
        time.sleep(0.05)
    raise AssertionError("it still answers")


def test_the_default_is_the_environments(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.example")
    with connect(None) as at:
        assert at.url == "http://hub.example"

from __future__ import annotations

import json
import pickle
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from sdhub.core import retry
from sdhub.core.access import check_token
from sdhub.core.errors import HubError
from sdhub.core.hub import Hub
from sdhub.publishing.remote import git_blob_id

TOKEN = "hf_very_secret"


@contextmanager
def answering(status: int, body: object, headers: dict[str, str] | None = None):
    """A server that answers every request alike."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            content = json.dumps(body).encode()
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_GET

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def _user(role: str = "write", **more: object) -> dict[str, object]:
    orgs = [{"name": "club", "roleInOrg": "write"}, {"name": "museum", "roleInOrg": "read"}]
    return {"name": "me", "type": "user", "orgs": orgs, "auth": {"accessToken": {"role": role, **more}}}


def _fine(*names: str) -> dict[str, object]:
    scoped = [{"entity": {"name": name}, "permissions": ["repo.content.read", "repo.write"]} for name in names]
    return _user("fineGrained", fineGrained={"scoped": scoped})


@pytest.mark.parametrize(
    ("user", "namespace", "target"),
    [
        (_user(), None, "me"),
        (_user(), "me", "me"),
        (_user(), "club", "club"),
        (_fine("me"), None, "me"),
        (_fine("club/one"), "club", "club"),
        ({"name": "job", "auth": {"type": "oidc"}}, None, "job"),
    ],
)
def test_tokens_that_may_write(user, namespace, target):
    with answering(200, user) as url:
        assert check_token(Hub(url, TOKEN), namespace) == target


@pytest.mark.parametrize(
    ("user", "namespace", "why"),
    [
        (_user("read"), None, "may only read"),
        (_user(), "stranger", "no member of stranger"),
        (_user(), "museum", "may only read in museum"),
        (_fine("club"), "me", "no write access to me"),
    ],
)
def test_tokens_that_may_not(user, namespace, why):
    with answering(200, user) as url, pytest.raises(HubError, match=why) as refused:
        check_token(Hub(url, TOKEN), namespace)
    _decent(refused.value)


def test_proposals_go_to_foreign_namespaces():
    with answering(200, _user()) as url:
        assert check_token(Hub(url, TOKEN), "stranger", propose=True) == "stranger"


def test_missing_token_says_how_to_log_in():
    with pytest.raises(HubError) as refused:
        check_token(Hub("https://huggingface.co"))
    assert "hf auth login" in refused.value.hint


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 413, 429, 500, 503])
def test_every_status_is_one_line_without_the_token(status):
    said = {"X-Error-Message": f"no: {TOKEN} is wrong"}
    with answering(status, {"error": f"{TOKEN}\nline two"}, said) as url:
        hub = Hub(url, TOKEN)
        for _ in range(2):
            with pytest.raises(HubError) as refused, hub.telling("look at it"):
                hub.api.list_repo_refs("a/b")
            assert str(status) in refused.value.message
            assert refused.value.message.startswith("cannot look at it")
            assert refused.value.hint
            _decent(refused.value)


def test_an_invalid_token():
    with answering(401, {"error": "Invalid credentials"}) as url, pytest.raises(HubError) as refused:
        check_token(Hub(url, TOKEN))
    assert "401" in refused.value.message
    _decent(refused.value)


def test_nobody_there(monkeypatch):
    monkeypatch.setattr(retry.time, "sleep", lambda _: None)
    with pytest.raises(HubError) as refused:
        check_token(Hub("http://127.0.0.1:9", TOKEN))
    assert "http://127.0.0.1:9" in refused.value.message
    assert "network" in refused.value.hint
    _decent(refused.value)


def test_the_stored_token_is_not_sent(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    headers = Hub("http://127.0.0.1:9").api._build_hf_headers()
    assert "authorization" not in headers


@pytest.mark.parametrize(
    ("url", "public"),
    [
        ("https://huggingface.co", True),
        ("https://hub-ci.huggingface.co", True),
        ("http://127.0.0.1:8420", False),
        ("https://huggingface.co.evil.example", False),
        ("https://nothuggingface.co", False),
    ],
)
def test_which_hub_has_xet(url, public):
    assert Hub(url).public is public


def test_redact():
    assert Hub(token=TOKEN).redact(f"a {TOKEN} b") == "a *** b"
    assert Hub().redact("a") == "a"


def test_a_hub_is_plain_data_and_shows_no_token():
    hub = Hub("http://127.0.0.1:9/", TOKEN)
    assert pickle.loads(pickle.dumps(hub)) == hub == Hub("http://127.0.0.1:9", TOKEN)
    assert TOKEN not in repr(hub) and TOKEN not in str(hub)


def test_git_blob_id(tmp_path):
    (tmp_path / "x").write_bytes(b"hello\n")
    assert git_blob_id(tmp_path / "x") == "ce013625030ba8dba906f756967f9e9ca394464a"


def _decent(error: HubError) -> None:
    assert TOKEN not in error.message + error.hint + repr(error)
    assert "\n" not in error.message + error.hint
    assert len(error.message) < 500

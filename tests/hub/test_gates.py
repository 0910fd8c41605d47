"""With a users file: tokens, roles, namespaces, private and gated repositories."""

from __future__ import annotations

from pathlib import Path

import pytest

from sdhub.hub.errors import StartError
from sdhub.hub.users import load_users
from tests.hub.web import Browser, file


@pytest.fixture
def as_user(closed_url: str) -> dict[str, Browser]:
    callers = {name: Browser(closed_url, f"token-of-{name}") for name in ("ada", "bob", "eve")}
    return {**callers, "nobody": Browser(closed_url, None), "stranger": Browser(closed_url, "some-other-token")}


@pytest.fixture
def repo(as_user: dict[str, Browser], request: pytest.FixtureRequest) -> str:
    name = "lab/" + "".join(character for character in request.node.name if character.isalnum())[:60]
    assert as_user["ada"].create(name).status_code in {200, 409}
    assert as_user["ada"].commit(name, file("a.txt", b"content")).status_code == 200
    return name


def test_who_is_who(as_user: dict[str, Browser]) -> None:
    ada = as_user["ada"].http.get("/api/whoami-v2").json()
    assert (ada["name"], [org["name"] for org in ada["orgs"]]) == ("ada", ["lab"])
    assert as_user["eve"].http.get("/api/whoami-v2").json()["auth"]["accessToken"]["role"] == "read"
    assert as_user["nobody"].http.get("/api/whoami-v2").status_code == 401
    stranger = as_user["stranger"].http.get("/api/models")
    assert stranger.status_code == 401
    assert stranger.headers["X-Error-Message"] == "Invalid credentials in Authorization header"


@pytest.mark.parametrize(("name", "status"), [("nobody", 401), ("stranger", 401), ("eve", 403), ("bob", 403)])
def test_who_may_write(as_user: dict[str, Browser], repo: str, name: str, status: int) -> None:
    caller = as_user[name]
    assert caller.create("lab/new").status_code == status
    assert caller.commit(repo, file("b", b"b")).status_code == status
    assert caller.http.put(f"/api/models/{repo}/settings", json={"private": True}).status_code == status
    assert caller.http.post(f"/api/models/{repo}/branch/x", json={}).status_code == status
    assert caller.http.post(f"/api/models/{repo}/tag/main", json={"tag": "x"}).status_code == status
    gone = {"name": repo.partition("/")[2], "organization": "lab"}
    assert caller.http.request("DELETE", "/api/repos/delete", json=gone).status_code == status
    moved = {"fromRepo": repo, "toRepo": "bob/mine", "type": "model"}
    assert caller.http.post("/api/repos/move", json=moved).status_code == status


def test_any_writer_may_propose(as_user: dict[str, Browser], repo: str) -> None:
    bob, ada = as_user["bob"], as_user["ada"]
    made = bob.http.post(
        f"/api/models/{repo}/commit/main?create_pr=1",
        content=b'{"key":"header","value":{"summary":"Mine"}}\n{"key":"file","value":{"path":"p","content":"x"}}\n',
    )
    number = int(made.json()["pullRequestUrl"].rpartition("/")[2])
    ref = f"refs%2Fpr%2F{number}"
    assert bob.commit(repo, file("q", b"q"), rev=ref).status_code == 200
    assert as_user["eve"].commit(repo, file("r", b"r"), rev=ref).status_code == 403
    assert bob.http.post(f"/api/models/{repo}/discussions/{number}/merge", json={}).status_code == 403
    assert (
        bob.http.post(f"/api/models/{repo}/discussions/{number}/comment", json={"comment": "?"}).status_code == 200
    )
    assert ada.http.post(f"/api/models/{repo}/discussions/{number}/merge", json={}).status_code == 200
    assert ada.http.get(f"/{repo}/resolve/main/q").content == b"q"


def test_private_is_not_there(as_user: dict[str, Browser], repo: str) -> None:
    ada = as_user["ada"]
    assert ada.http.put(f"/api/models/{repo}/settings", json={"visibility": "private"}).status_code == 200
    paths = (f"/{repo}/resolve/main/a.txt", f"/api/models/{repo}", f"/api/models/{repo}/tree/main", f"/{repo}")
    for name, status in (("nobody", 401), ("bob", 404)):
        for path in paths:
            hidden = as_user[name].http.get(path)
            absent = as_user[name].http.get(path.replace(repo, "lab/absent"))
            assert hidden.status_code == absent.status_code == status
            assert hidden.text.replace(repo, "") == absent.text.replace("lab/absent", "")
            assert hidden.headers["X-Error-Code"] == "RepoNotFound"
        assert repo not in as_user[name].http.get("/api/models").text
        assert repo not in as_user[name].http.get("/").text
    assert as_user["eve"].http.get(f"/{repo}/resolve/main/a.txt").content == b"content"
    assert as_user["bob"].commit(repo, file("b", b"b")).status_code == 404


def test_gated_files(as_user: dict[str, Browser], repo: str) -> None:
    ada, bob, nobody = as_user["ada"], as_user["bob"], as_user["nobody"]
    card = b"# A gated card\n\n![p](p.png)\n"
    ada.commit(repo, file("README.md", card), file("p.png", b"\x89PNG"))
    assert ada.http.put(f"/api/models/{repo}/settings", json={"gated": "manual"}).status_code == 200
    assert nobody.http.get(f"/api/models/{repo}").json()["gated"] == "manual"
    for caller, status in ((nobody, 401), (bob, 403)):
        answer = caller.http.get(f"/{repo}/resolve/main/a.txt")
        assert (answer.status_code, answer.headers["X-Error-Code"]) == (status, "GatedRepo")
        assert caller.http.get(f"/{repo}/blob/main/a.txt").status_code == status
        assert "content" not in caller.http.get(f"/{repo}/commit/main").text.split("</header>")[1]
    assert nobody.http.get(f"/{repo}").status_code == 200
    assert bob.http.post(f"/{repo}/ask-access").status_code == 200
    assert bob.http.get(f"/{repo}/resolve/main/a.txt").status_code == 403
    grant = {"user": "bob"}
    assert bob.http.post(f"/api/models/{repo}/user-access-request/grant", json=grant).status_code == 403
    assert ada.http.post(f"/api/models/{repo}/user-access-request/grant", json=grant).status_code == 200
    assert bob.http.get(f"/{repo}/resolve/main/a.txt").content == b"content"


def test_secrets_stay_secret(as_user: dict[str, Browser]) -> None:
    ada = as_user["ada"]
    ada.create("lab/space", type="space", sdk="gradio", secrets=[{"key": "FIRST", "value": "hush-hush-1"}])
    added = ada.http.post("/api/spaces/lab/space/secrets", json={"key": "SECOND", "value": "hush-hush-2"})
    assert added.status_code == 200
    shown = ada.http.get("/api/spaces/lab/space/secrets")
    assert shown.json().keys() == {"FIRST", "SECOND"}
    everything = (
        shown.text
        + added.text
        + ada.http.get("/api/spaces/lab/space").text
        + ada.http.get("/spaces/lab/space").text
    )
    assert "hush" not in everything
    for name in ("bob", "eve", "nobody"):
        assert as_user[name].http.get("/api/spaces/lab/space/secrets").status_code in {401, 403}


def test_open_hub_needs_a_token_to_write(visitor: Browser, web: Browser) -> None:
    web.create("acme/open-gate")
    assert visitor.create("acme/other").status_code == 401
    assert visitor.commit("acme/open-gate", file("a", b"a")).status_code == 401
    assert visitor.http.get("/api/models/acme/open-gate").status_code == 200
    web.create("acme/open-private", private=True)
    assert visitor.http.get("/api/models/acme/open-private").status_code == 401
    assert web.http.get("/api/models/acme/open-private").status_code == 200


@pytest.mark.parametrize("text", ["{", "[1]", '[{"name": "a"}]', '[{"name": "a b", "token": "SECRET-TOKEN"}]'])
def test_broken_users_files_are_not_quoted(tmp_path: Path, text: str) -> None:
    path = tmp_path / "users.json"
    path.write_text(text)
    with pytest.raises(StartError) as error:
        load_users(path)
    assert "SECRET" not in str(error.value)

"""Reading: ranges, headers, absence, pages of lists."""

from __future__ import annotations

import os

import pytest

from tests.hub.web import Browser, file, lfs

CONTENT = bytes(range(256)) * 40


@pytest.fixture
def stored(web: Browser, repo: str) -> str:
    assert web.put_lfs(repo, CONTENT).status_code == 200
    assert web.commit(repo, lfs("weights.bin", CONTENT), file("note.txt", b"hello")).status_code == 200
    return repo


@pytest.mark.parametrize(
    ("asked", "start", "end"),
    [
        ("bytes=0-99", 0, 100),
        ("bytes=100-", 100, 10240),
        ("bytes=-10", 10230, 10240),
        ("bytes=5-999999", 5, 10240),
    ],
)
def test_ranges(web: Browser, stored: str, asked: str, start: int, end: int) -> None:
    answer = web.http.get(f"/{stored}/resolve/main/weights.bin", headers={"Range": asked})
    assert answer.status_code == 206
    assert answer.content == CONTENT[start:end]
    assert answer.headers["Content-Range"] == f"bytes {start}-{end - 1}/10240"


def test_range_beyond_the_end(web: Browser, stored: str) -> None:
    answer = web.http.get(f"/{stored}/resolve/main/weights.bin", headers={"Range": "bytes=20000-"})
    assert answer.status_code == 416
    assert answer.headers["Content-Range"] == "bytes */10240"


def test_headers(web: Browser, stored: str) -> None:
    sha = web.http.get(f"/api/models/{stored}").json()["sha"]
    large = web.http.head(f"/{stored}/resolve/main/weights.bin")
    small = web.http.head(f"/{stored}/resolve/main/note.txt")
    tree = {item["path"]: item for item in web.http.get(f"/api/models/{stored}/tree/main").json()}
    assert large.headers["X-Repo-Commit"] == small.headers["X-Repo-Commit"] == sha
    assert large.headers["X-Linked-Size"] == large.headers["Content-Length"] == "10240"
    assert large.headers["X-Linked-Etag"] == large.headers["ETag"] == f'"{tree["weights.bin"]["lfs"]["oid"]}"'
    assert small.headers["ETag"] == f'"{tree["note.txt"]["oid"]}"'
    again = web.http.get(f"/{stored}/resolve/main/note.txt", headers={"If-None-Match": small.headers["ETag"]})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize(
    ("address", "status", "code"),
    [
        ("/{repo}/resolve/main/absent", 404, "EntryNotFound"),
        ("/{repo}/resolve/absent/note.txt", 404, "RevisionNotFound"),
        ("/{repo}/resolve/refs%2Fpr%2F9/note.txt", 404, "RevisionNotFound"),
        ("/acme/absent/resolve/main/note.txt", 404, "RepoNotFound"),
        ("/api/models/acme/absent", 404, "RepoNotFound"),
        ("/api/models/gpt2", 404, "RepoNotFound"),
        ("/gpt2/resolve/main/config.json", 404, "RepoNotFound"),
        ("/api/models/{repo}/revision/" + "0" * 40, 404, "RevisionNotFound"),
        ("/api/models/{repo}/tree/main/absent", 404, "EntryNotFound"),
    ],
)
def test_absence(web: Browser, stored: str, address: str, status: int, code: str) -> None:
    answer = web.http.get(address.format(repo=stored))
    assert (answer.status_code, answer.headers["X-Error-Code"]) == (status, code)
    if code == "EntryNotFound":
        assert answer.headers["X-Repo-Commit"] == web.http.get(f"/api/models/{stored}").json()["sha"]


def test_list_pages_search_and_filter(web: Browser, repo: str) -> None:
    names = [f"{repo}-list-{number}" for number in range(5)]
    for number, name in enumerate(names):
        web.create(name)
        card = f"---\ntags: [t{number % 2}]\n---\n".encode()
        assert web.commit(name, file("README.md", card)).status_code == 200
    word = repo.partition("/")[2] + "-LIST"
    found, address = [], f"/api/models?author=acme&search={word}&limit=2"
    while address:
        answer = web.http.get(address)
        found += [item["id"] for item in answer.json()]
        address = answer.links.get("next", {}).get("url", "")
    assert found == names[::-1]
    tagged = web.http.get(f"/api/models?search={word}&filter=t1").json()
    assert [item["id"] for item in tagged] == [names[3], names[1]]
    assert web.http.get("/api/models?search=%25").json() == []


def test_large_file_is_whole(web: Browser, repo: str) -> None:
    content = os.urandom(9 * 2**20 + 17)
    assert web.put_lfs(repo, content).status_code == 200
    assert web.commit(repo, lfs("large.bin", content)).status_code == 200
    assert web.http.get(f"/{repo}/resolve/main/large.bin").content == content
    batch = web.http.post(
        f"/{repo}.git/info/lfs/objects/batch",
        json={"operation": "upload", "objects": [{"oid": lfs("", content)["value"]["oid"], "size": len(content)}]},
    )
    assert "actions" not in batch.json()["objects"][0]


def test_copy_and_history(web: Browser, stored: str) -> None:
    first = web.http.get(f"/api/models/{stored}").json()["sha"]
    copy = {"path": "sub/copy.bin", "srcPath": "weights.bin", "srcRevision": first}
    remove = {"key": "deletedFile", "value": {"path": "weights.bin"}}
    assert web.commit(stored, remove, {"key": "copyFile", "value": copy}).status_code == 200
    assert web.http.get(f"/{stored}/resolve/main/sub/copy.bin").content == CONTENT
    assert web.http.get(f"/{stored}/resolve/main/weights.bin").status_code == 404
    assert web.http.get(f"/{stored}/resolve/{first}/weights.bin").content == CONTENT
    assert web.http.get(f"/{stored}/resolve/{first[:8]}/weights.bin").content == CONTENT


def test_pull_request_with_conflict(web: Browser, stored: str) -> None:
    made = web.http.post(
        f"/api/models/{stored}/discussions", json={"title": "Change it", "description": "", "pullRequest": True}
    )
    number = made.json()["num"]
    assert web.commit(stored, file("note.txt", b"theirs"), rev=f"refs%2Fpr%2F{number}").status_code == 200
    assert web.commit(stored, file("note.txt", b"ours")).status_code == 200
    details = web.http.get(f"/api/models/{stored}/discussions/{number}").json()
    assert details["filesWithConflicts"] == ["note.txt"]
    assert web.http.post(f"/api/models/{stored}/discussions/{number}/merge", json={}).status_code == 409
    assert web.http.get(f"/{stored}/resolve/main/note.txt").content == b"ours"
    assert web.commit(stored, file("note.txt", b"ours"), rev=f"refs%2Fpr%2F{number}").status_code == 200
    assert web.http.post(f"/api/models/{stored}/discussions/{number}/merge", json={}).status_code == 200
    assert web.commit(stored, file("a", b"b"), rev=f"refs%2Fpr%2F{number}").status_code == 400

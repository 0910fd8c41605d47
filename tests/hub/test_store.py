"""Object ids against git's own, atomicity, concurrency, and what a kill leaves."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import subprocess
import sys
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from sdhub.hub.store.trees import lfs_file, make_tree, regular_file
from tests.hub.web import Browser, file, lfs
from tests.hubs import HubProcess

COMMITTER = """
import base64, json, sys, httpx
url, worker = sys.argv[1:]
with httpx.Client(base_url=url, headers={"Authorization": "Bearer any"}, trust_env=False, timeout=120) as http:
    for number in range(25):
        value = {"path": f"w{worker}/{number}.txt", "content": f"{worker} {number}"}
        config = {"_class_name": "DDIMScheduler", "num_train_timesteps": 1000 + 25 * int(worker) + number}
        scheduler = {"path": "scheduler/scheduler_config.json", "content": json.dumps(config)}
        lines = [{"key": "header", "value": {"summary": f"{worker} {number}"}}]
        lines += [{"key": "file", "value": each} for each in (value, scheduler)]
        body = "".join(json.dumps(line) + chr(10) for line in lines)
        http.post("/api/models/acme/busy/commit/main", content=body.encode()).raise_for_status()
"""


LOADER = """
import json, sys
from diffusers import DDIMScheduler
found = {}
for title, oid in json.loads(sys.argv[1]):
    scheduler = DDIMScheduler.from_pretrained("acme/busy", subfolder="scheduler", revision=oid)
    found[title] = scheduler.config.num_train_timesteps
print(json.dumps(found))
"""


def test_tree_ids_are_those_of_git(tmp_path: Path) -> None:
    content = {"a.txt": b"one", "a/b/c.txt": b"two", "a.b": b"three", "a/z": b"", "ünï/ö": b"four"}

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-c", "core.autocrlf=false", *arguments],
            cwd=tmp_path,
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()

    git("init", "-q")
    files = []
    for path, data in content.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(data)
        files.append(regular_file(path, git("hash-object", path), len(data), hashlib.sha256(data).hexdigest()))
    git("add", "-A")
    tree = make_tree(files)
    assert tree.folders[""] == git("write-tree")
    assert tree.folders["a/b"] == git("rev-parse", f"{git('write-tree')}:a/b")


def test_lfs_ids_are_those_of_the_pointer() -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4d" * 32 + b"\nsize 12345\n"
    found = lfs_file("weights.bin", "4d" * 32, 12345)
    assert found.pointer_size == len(pointer)
    assert found.oid == hashlib.sha1(b"blob %d\0" % len(pointer) + pointer).hexdigest()


def test_a_commit_is_all_or_nothing(web: Browser, repo: str) -> None:
    head = web.http.get(f"/api/models/{repo}").json()["sha"]
    missing = web.commit(repo, file("good.txt", b"good"), lfs("bad.bin", b"never uploaded"))
    assert missing.status_code == 400
    absent = web.commit(repo, file("good.txt", b"good"), {"key": "deletedFile", "value": {"path": "absent"}})
    assert (absent.status_code, absent.headers["X-Error-Code"]) == (404, "EntryNotFound")
    info = web.http.get(f"/api/models/{repo}").json()
    assert info["sha"] == head
    assert [item["rfilename"] for item in info["siblings"]] == [".gitattributes"]


def test_stale_parent_is_refused(web: Browser, repo: str) -> None:
    first = web.commit(repo, file("a", b"1")).json()["commitOid"]
    second = web.commit(repo, file("a", b"2"), parentCommit=first)
    assert second.status_code == 200
    assert web.commit(repo, file("a", b"3"), parentCommit=first).status_code == 412
    assert web.http.get(f"/{repo}/resolve/main/a").content == b"2"


def test_nothing_changed_makes_no_commit(web: Browser, repo: str) -> None:
    first = web.commit(repo, file("a", b"1")).json()["commitOid"]
    assert web.commit(repo, file("a", b"1")).json()["commitOid"] == first


def test_lfs_object_that_is_not_what_it_says(web: Browser, repo: str) -> None:
    honest, other = b"a" * 1000, b"b" * 1000
    assert web.put_lfs(repo, other, announced=honest).status_code == 400
    assert web.put_lfs(repo, honest[:-1], announced=honest).status_code == 400
    assert web.put_lfs(repo, honest + b"more", announced=honest).status_code == 400
    assert web.commit(repo, lfs("a.bin", honest)).status_code == 400
    assert web.put_lfs(repo, honest).status_code == 200
    assert web.commit(repo, lfs("a.bin", honest, size=999)).status_code == 400
    assert web.commit(repo, lfs("a.bin", honest)).status_code == 200
    assert web.http.get(f"/{repo}/resolve/main/a.bin").content == honest


def test_upload_addresses_cannot_be_made_up(web: Browser, repo: str) -> None:
    content = b"content" * 100
    oid = hashlib.sha256(content).hexdigest()
    batch = web.http.post(
        f"/{repo}.git/info/lfs/objects/batch",
        json={"operation": "upload", "objects": [{"oid": oid, "size": len(content)}]},
    )
    href = httpx.URL(batch.json()["objects"][0]["actions"]["upload"]["href"])
    for change in ({"size": "5"}, {"until": "99999999999"}, {"sign": "0" * 64}, {"sign": ""}):
        assert httpx.put(href.copy_merge_params(change), content=content, trust_env=False).status_code == 403
    elsewhere = str(href).replace(oid, "0" * 64)
    assert httpx.put(elsewhere, content=content, trust_env=False).status_code == 403
    assert httpx.put(href, content=content, trust_env=False).status_code == 200


def test_an_object_of_one_repository_is_not_in_another(web: Browser, repo: str) -> None:
    secret = b"weights of a private repository" * 10
    assert web.create(f"{repo}-private", private=True).status_code == 200
    assert web.put_lfs(f"{repo}-private", secret).status_code == 200
    assert web.commit(repo, lfs("stolen.bin", secret)).status_code == 400


def test_deleting_frees_what_nobody_else_has(web: Browser, repo: str, hub_url: str) -> None:
    shared, own = os.urandom(5000), os.urandom(5000)
    web.create(f"{repo}-two")
    for name, contents in ((repo, [shared]), (f"{repo}-two", [shared, own])):
        for number, content in enumerate(contents):
            assert web.put_lfs(name, content).status_code == 200
            assert web.commit(name, lfs(f"{number}.bin", content)).status_code == 200
    root = Path(web.http.get("/api/embedded").json()["root"])
    stored = {path.name for path in (root / "blobs").glob("??/??/*")}
    assert {hashlib.sha256(content).hexdigest() for content in (shared, own)} <= stored
    body = {"name": f"{repo}-two".partition("/")[2], "organization": "acme"}
    assert web.http.request("DELETE", "/api/repos/delete", json=body).status_code == 200
    stored = {path.name for path in (root / "blobs").glob("??/??/*")}
    assert hashlib.sha256(own).hexdigest() not in stored
    assert web.http.get(f"/{repo}/resolve/main/0.bin").content == shared


def _load_at_every_commit(url: str, commits: list[dict[str, str]], cache: Path) -> dict[str, int]:
    """What diffusers reads at each commit, by the commit's title; in a process that looks nowhere else."""
    variables = {**os.environ, "HF_ENDPOINT": url, "HF_HOME": str(cache), "HF_HUB_DISABLE_TELEMETRY": "1"}
    done = subprocess.run(
        [sys.executable, "-c", LOADER, json.dumps([[item["title"], item["id"]] for item in commits])],
        env=variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_commits_of_many_processes_make_one_line(tmp_path: Path) -> None:
    servers = [HubProcess(tmp_path / "root") for _ in range(2)]
    try:
        web = Browser(servers[0].url)
        assert web.create("acme/busy").status_code == 200
        workers = [
            subprocess.Popen([sys.executable, "-c", COMMITTER, servers[number % 2].url, str(number)])
            for number in range(4)
        ]
        assert [worker.wait(timeout=240) for worker in workers] == [0] * 4
        commits = web.http.get("/api/models/acme/busy/commits/main?limit=1000").json()
        files = Browser(servers[1].url).http.get("/api/models/acme/busy").json()["siblings"]
        loaded = _load_at_every_commit(servers[1].url, commits[:-1], tmp_path / "cache")
    finally:
        for server in servers:
            server.stop()
    assert len(commits) == 101
    assert len(files) == 102
    assert loaded == {
        f"{worker} {number}": 1000 + 25 * worker + number for worker in range(4) for number in range(25)
    }
    rows = (
        sqlite3.connect(tmp_path / "root" / "hub.sqlite3").execute("SELECT oid, parent FROM revision").fetchall()
    )
    parents = dict(rows)
    assert len(parents) == 101
    assert len(set(parents.values())) == 101, "two commits share a parent"
    for worker in range(4):  # each worker's own commits are in the order it made them
        mine = [item["title"] for item in reversed(commits) if item["title"].startswith(f"{worker} ")]
        assert mine == [f"{worker} {number}" for number in range(25)]


def test_a_killed_server_leaves_whole_things(tmp_path: Path) -> None:
    root = tmp_path / "root"
    acknowledged: dict[str, bytes] = {}
    for life in range(3):
        server = HubProcess(root)
        web = Browser(server.url)
        web.create("acme/killed")
        stop = threading.Event()

        def work(worker: int, url: str = server.url, life: int = life, stop: threading.Event = stop) -> None:
            mine = Browser(url)
            for number in range(10_000):
                content = os.urandom(60_000)
                path = f"{life}/{worker}/{number}.bin"
                try:
                    if mine.put_lfs("acme/killed", content).status_code != 200:
                        return
                    if (
                        mine.commit("acme/killed", lfs(path, content), file(path + ".txt", content)).status_code
                        == 200
                    ):
                        acknowledged[path] = content
                except httpx.HTTPError:
                    return
                if stop.is_set():
                    return

        with ThreadPoolExecutor(3) as pool:
            running = [pool.submit(work, worker) for worker in range(3)]
            target = len(acknowledged) + 5 + 3 * life
            while len(acknowledged) < target and not all(job.done() for job in running):
                stop.wait(0.005)
            server.kill()
            stop.set()
        assert not any(job.exception() for job in running)
    check_whole(root)
    server = HubProcess(root)
    try:
        web = Browser(server.url)
        for path, content in acknowledged.items():
            assert web.http.get(f"/acme/killed/resolve/main/{path}").content == content
            assert web.http.get(f"/acme/killed/resolve/main/{path}.txt").content == content
    finally:
        server.stop()
    check_whole(root)
    held = {row[0] for row in sqlite3.connect(root / "hub.sqlite3").execute("SELECT sha256 FROM object")}
    assert {path.name for path in (root / "blobs").glob("??/??/*")} == held, "the sweep left unheld blobs"


def check_whole(root: Path) -> None:
    """Every commit has its tree, every file of every tree its blob, every blob its name."""
    database = sqlite3.connect(root / "hub.sqlite3")
    assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert database.execute("PRAGMA foreign_key_check").fetchall() == []
    trees = dict(database.execute("SELECT key, listing FROM tree"))
    commits = database.execute("SELECT oid, parent, tree FROM revision").fetchall()
    known = {oid for oid, _, _ in commits}
    for _, parent, tree in commits:
        assert parent is None or parent in known
        assert tree in trees
    for (oid,) in database.execute("SELECT oid FROM ref"):
        assert oid in known
    for listing in trees.values():
        for _, _, size, sha256, _ in json.loads(zlib.decompress(listing)):
            assert (root / "blobs" / sha256[:2] / sha256[2:4] / sha256).stat().st_size == size
    for path in (root / "blobs").glob("??/??/*"):
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name


@pytest.mark.parametrize("count", [300])
def test_many_small_files_at_once(web: Browser, repo: str, count: int) -> None:
    made = web.commit(repo, *(file(f"d{n % 7}/f{n}.txt", b"%d" % n) for n in range(count)))
    assert made.status_code == 200
    pages, address = [], f"/api/models/{repo}/tree/main?recursive=true&limit=100"
    while address:
        answer = web.http.get(address)
        pages.append(answer.json())
        address = answer.links.get("next", {}).get("url", "")
    paths = [item["path"] for page in pages for item in page]
    assert [len(page) for page in pages] == [100, 100, 100, 8]
    assert len(set(paths)) == count + 7 + 1

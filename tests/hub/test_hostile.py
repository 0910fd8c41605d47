"""What strangers may send: names, paths, bodies, hosts, files and cards."""

from __future__ import annotations

import json
from html.parser import HTMLParser

import httpx
import pytest

from sdhub.hub.cards import CardError, parse_front_matter, split_card
from sdhub.hub.errors import Refusal
from sdhub.hub.names import check_path, check_ref
from sdhub.hub.pages.markdown import render
from tests.hub.web import Browser, file, lfs

BAD_PATHS = [
    "",
    "/etc/passwd",
    "../up",
    "a/../../up",
    "a//b",
    "a/",
    "./a",
    "a/./b",
    "a\\b",
    "..\\up",
    "a\0b",
    "a\nb",
    "a\x7fb",
    ".git/config",
    "a/.GIT/hooks/x",
    "C:/windows",
    "c:x",
    "a" * 256,
    "/".join(["abc"] * 300),
    "a\ud800b",
]


@pytest.mark.parametrize("path", BAD_PATHS)
def test_paths(web: Browser, repo: str, path: str) -> None:
    with pytest.raises(Refusal) as refusal:
        check_path(path)
    assert refusal.value.status == 400
    head = web.http.get(f"/api/models/{repo}").json()["sha"]
    content = {"path": path, "content": "eA==", "encoding": "base64"}
    for line in (
        {"key": "file", "value": content},
        lfs(path, b"x"),
        {"key": "deletedFile", "value": {"path": path}},
    ):
        assert web.commit(repo, line).status_code == 400
    files = {"files": [{"path": path, "sample": "", "size": 1}]}
    body = json.dumps(files).encode()
    assert web.http.post(f"/api/models/{repo}/preupload/main", content=body).status_code == 400
    assert web.http.get(f"/api/models/{repo}").json()["sha"] == head


@pytest.mark.parametrize(
    "path", ["a", "a b/ü.txt", ".gitignore", "...", "a..b", ".hidden/x", "日本/語.png", "-x", "ab:c"]
)
def test_good_paths(path: str) -> None:
    assert check_path(path) == path


def test_files_and_folders_do_not_collide(web: Browser, repo: str) -> None:
    assert web.commit(repo, file("a", b"1"), file("a", b"2")).status_code == 400
    assert web.commit(repo, file("a", b"1"), file("a/b", b"2")).status_code == 400
    assert web.commit(repo, file("a/b", b"1")).status_code == 200
    assert web.commit(repo, file("a", b"1")).status_code == 400
    assert web.commit(repo, file("a/b/c", b"1")).status_code == 400
    swap = {"key": "deletedFolder", "value": {"path": "a/"}}
    assert web.commit(repo, file("a", b"1"), swap).status_code == 200


@pytest.mark.parametrize(
    "name",
    [
        "..",
        ".",
        "a..b",
        "-a",
        "a-",
        "a.git",
        "a b",
        "a/b",
        "",
        "a" * 97,
        "api",
        "Datasets",
        "a\n",
        "ä",
        "a--b",
        None,
        5,
        [],
    ],
)
def test_names(web: Browser, name: object) -> None:
    assert web.http.post("/api/repos/create", json={"name": name, "organization": "acme"}).status_code == 400
    if name is not None and name != "" and name != []:
        made = web.http.post("/api/repos/create", json={"name": "ok", "organization": name})
        assert made.status_code == 400


@pytest.mark.parametrize(
    "name",
    ["", "refs/heads/x", "a..b", "-a", "a b", "a~1", "a^", "a:b", "x.lock", "/a", "a/", "0" * 40, "a\x01", "@{u"],
)
def test_refs(name: str) -> None:
    with pytest.raises(Refusal):
        check_ref(name)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"nonsense\n",
        b'{"key":"file","value":{"path":"a","content":""}}\n',
        b"[1]\n",
        b"\xff\xfe\n",
        b'{"key":1}\n',
    ],
)
def test_broken_commits(web: Browser, repo: str, body: bytes) -> None:
    assert web.http.post(f"/api/models/{repo}/commit/main", content=body).status_code == 400


def test_broken_contents(web: Browser, repo: str) -> None:
    for content in ("!!!", "YQ", 5, None):
        value = {"path": "a", "content": content, "encoding": "base64"}
        assert web.commit(repo, {"key": "file", "value": value}).status_code == 400
    assert web.commit(repo, {"key": "format-disk", "value": {"path": "a"}}).status_code == 400
    assert web.commit(repo, lfs("a", b"x", oid="../../x")).status_code == 400


def test_values_that_cannot_be_kept(web: Browser, repo: str) -> None:
    half = json.loads('"\\ud800"')
    assert web.commit(repo, file("a", b"a"), summary=half).status_code == 400
    assert web.commit(repo, {"key": "file", "value": {"path": "a", "content": half}}).status_code == 400
    body = json.dumps({"title": half, "description": half}).encode()
    assert web.http.post(f"/api/models/{repo}/discussions", content=body).status_code == 400
    sleep = {
        "name": "sleeper",
        "organization": "acme",
        "type": "space",
        "sdk": "gradio",
        "sleepTimeSeconds": 10**30,
    }
    assert web.http.post("/api/repos/create", json=sleep).status_code == 400
    assert web.http.get("/api/spaces/acme/sleeper").status_code == 404
    for query in ("limit=-1", "limit=x", "cursor=1e9", "limit=%C2%B2"):
        assert web.http.get(f"/api/models?{query}").status_code == 400
    objects = {"operation": "upload", "objects": [{"oid": "0" * 64, "size": 10**30}]}
    assert "error" in web.http.post(f"/{repo}.git/info/lfs/objects/batch", json=objects).json()["objects"][0]


@pytest.mark.parametrize("method", ["PATCH", "PUT", "DELETE", "TRACE", "OPTIONS", "CONNECT", "BREW"])
@pytest.mark.parametrize("address", ["/", "/api/models", "/{repo}", "/{repo}/resolve/main/a", "/api/whoami-v2"])
def test_methods_that_mean_nothing(web: Browser, repo: str, method: str, address: str) -> None:
    before = web.http.get(f"/api/models/{repo}").json()
    answer = web.http.request(method, address.format(repo=repo))
    assert answer.status_code in {400, 404, 405}
    assert web.http.get(f"/api/models/{repo}").json() == before


def test_headers_that_are_too_large(hub_url: str) -> None:
    for headers in ({"X-Long": "x" * 200_000}, {f"X-{number}": "x" * 1000 for number in range(400)}):
        try:
            status = httpx.get(f"{hub_url}/api/models", headers=headers, trust_env=False).status_code
        except httpx.HTTPError:
            continue  # the line is cut
        assert status in {400, 431}
    assert httpx.get(f"{hub_url}/api/models", trust_env=False).status_code == 200


def test_body_limits(web: Browser, repo: str) -> None:
    large = b'{"content": "' + b"x" * (10 * 2**20) + b'"}'
    assert web.http.post("/api/validate-yaml", content=large).status_code == 413
    line = json.dumps({"key": "header", "value": {"summary": "x"}}).encode() + b"\n" + b"x" * (33 * 2**20)
    assert web.http.post(f"/api/models/{repo}/commit/main", content=line).status_code == 413
    deep = b'{"a":' * 100_000
    assert web.http.post("/api/validate-yaml", content=deep).status_code == 400


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8420", "127.0.0.1.evil.example", "localhost.evil", ""]
)
def test_dns_rebinding(hub_url: str, host: str) -> None:
    for path in ("/", "/api/whoami-v2", "/api/models", "/a/b/resolve/main/x"):
        assert httpx.get(hub_url + path, headers={"Host": host}, trust_env=False).status_code == 421


@pytest.mark.parametrize("host", ["localhost", "localhost:99", "127.0.0.1", "LOCALHOST:1", "[::1]", "[::1]:8420"])
def test_names_of_this_machine(hub_url: str, host: str) -> None:
    assert httpx.get(hub_url + "/api/models", headers={"Host": host}, trust_env=False).status_code == 200


@pytest.mark.parametrize(
    "name", ["page.html", "picture.svg", "script.js", "x.xhtml", "x.xml", "x.pdf", "x.unknown"]
)
def test_uploaded_files_cannot_act(web: Browser, visitor: Browser, repo: str, name: str) -> None:
    assert (
        web.commit(repo, file(name, b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>")).status_code
        == 200
    )
    headers = visitor.http.get(f"/{repo}/resolve/main/{name}").headers
    assert "sandbox" in headers["Content-Security-Policy"]
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Content-Type"].split(";")[0] in {"text/plain", "image/svg+xml", "application/octet-stream"}
    if "octet-stream" in headers["Content-Type"]:
        assert headers["Content-Disposition"].startswith("attachment")


class Tags(HTMLParser):
    """Every tag with its attributes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


HOSTILE_CARD = """---
license: "<script>alert(1)</script>"
tags: ["<img src=x onerror=alert(1)>", "\\"><svg onload=alert(1)>"]
base_model: "javascript:alert(1)"
thumbnail: "https://evil.example/x.png"
---
# <script>alert(1)</script> Title <b onclick="x()">bold</b>

<script>alert(1)</script>
<iframe src="https://evil.example"></iframe>
<div style="position:fixed" onmouseover="alert(1)">kept text</div>
<style>body { display: none }</style>
</main></body></html>

<img src="https://evil.example/track.png" onerror="alert(1)">
<img src="images/p.png" onload="alert(1)" alt='"><script>alert(1)</script>'>
![ok](images/p.png) ![out](https://evil.example/t.png) ![up](../../../etc/passwd)
![x](data:image/svg+xml;base64,AAAA)

[a](javascript:alert(1)) [b](JaVaScRiPt:alert(1)) [c](data:text/html,x) [d](vbscript:x) [e](//evil.example/x)
[f](&#106;avascript:alert(1)) <javascript:alert(1)> [g](https://good.example) [h](images/p.png "onclick=alert(1)")

<details><summary>more</summary>inside</details> &lt;script&gt; `<script>`

```html
<script>alert(1)</script>
```
"""


def test_cards_cannot_act(web: Browser, visitor: Browser, repo: str) -> None:
    picture = b"\x89PNG\r\n\x1a\n" + b"0" * 20
    made = web.commit(repo, file("README.md", HOSTILE_CARD.encode()), file("images/p.png", picture))
    assert made.status_code == 200
    page = visitor.http.get(f"/{repo}")
    assert page.status_code == 200
    assert "script" not in page.headers["Content-Security-Policy"]
    assert page.headers["Content-Security-Policy"].startswith("default-src 'none'")
    tags = Tags(page.text).found
    assert {tag for tag, _ in tags}.isdisjoint({"script", "iframe", "style", "svg", "object", "embed"})
    for tag, attributes in tags:
        assert not any(name.startswith("on") or name == "style" for name in attributes), (tag, attributes)
        for name in ("href", "src", "action"):
            target = attributes.get(name) or ""
            local = target.startswith(("/", "#", "?")) and not target.startswith("//")
            assert local or target in {"", "https://good.example"}, (tag, target)
    pictures = [attributes["src"] for tag, attributes in tags if tag == "img"]
    assert pictures
    for source in pictures:
        answer = visitor.http.get(str(source))
        assert (answer.status_code, answer.headers["Content-Type"]) == (200, "image/png")
    assert "kept text" in page.text
    assert page.text.rstrip().endswith("</html>")
    assert page.text.count("</main>") == 1


def test_comments_cannot_act() -> None:
    html = render(
        "<script>alert(1)</script> [a](javascript:x) <img src=x onerror=y> ![p](https://evil.example/p.png)"
    )
    assert {tag for tag, _ in Tags(html).found} <= {"p", "span", "a"}
    assert "javascript" not in html.replace("(javascript:x)", "")


@pytest.mark.parametrize(
    "source",
    [
        "a: [",
        "- a list",
        "just text",
        "!!python/object/apply:os.system ['true']",
        "a: &a [*a]",
        "a: &x [1, 2]\nb: *unknown",
        "[" * 3000,
        "x: " + "9" * 5000,
        "a: &a [x,x,x,x,x,x,x,x,x]\n"
        + "".join(f"{n}: &{n} [{','.join(['*' + p] * 9)}]\n" for p, n in zip("abcdefgh", "bcdefghi", strict=True)),
        "a: " + "x" * 300_000,
    ],
)
def test_hostile_yaml(web: Browser, visitor: Browser, repo: str, source: str) -> None:
    with pytest.raises(CardError):
        parse_front_matter(source)
    card = f"---\n{source}\n---\n# Title\n"
    answer = web.http.post("/api/validate-yaml", json={"content": card, "repoType": "model"})
    assert answer.status_code == 400
    assert answer.json()["errors"]
    assert web.commit(repo, file("README.md", card.encode())).status_code == 200
    assert visitor.http.get(f"/{repo}").status_code == 200
    assert visitor.http.get(f"/api/models/{repo}").json()["cardData"] is None


def test_yaml_becomes_plain_data() -> None:
    data = parse_front_matter("a: 2026-01-02\nb: .nan\n1: x\nc: &c [1]\nd: *c\ne: !!binary YWJj\n")
    assert data == {"a": "2026-01-02", "b": None, "1": "x", "c": [1], "d": [1], "e": "b'abc'"}
    json.dumps(data, allow_nan=False)
    assert split_card("---\r\na: 1\r\n---\r\nbody") == ("a: 1", "body")
    assert split_card("no front matter\n---\n") == ("", "no front matter\n---\n")


@pytest.mark.parametrize(
    "path", ["/%2e%2e/%2e%2e/etc/passwd", "/static/..%2f..%2fhub.py", "/a/b/resolve/main/%ff", "/%00/x"]
)
def test_odd_addresses(visitor: Browser, path: str) -> None:
    assert visitor.http.get(path).status_code in {400, 401, 404}

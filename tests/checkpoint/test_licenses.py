from __future__ import annotations

from pathlib import Path

import pytest

from sdhub.checkpoint.checkpoint import License
from sdhub.checkpoint.licenses import front_matter, license_file, license_of, license_of_metadata
from sdhub.checkpoint.tree import Folder
from tests.checkpoint.tiny import write


def test_front_matter_is_read_as_text() -> None:
    readme = b"---\r\nlicense: other\r\nlicense_name: x-license\r\ntags: [a, b]\r\nn: 012\r\n---\r\n# hello\n---\n"
    assert front_matter(readme) == {
        "license": "other",
        "license_name": "x-license",
        "tags": ["a", "b"],
        "n": "012",
    }


@pytest.mark.parametrize(
    "readme",
    [
        b"",
        b"# no front matter",
        b"---\nnever closed",
        b"---\n- a\n- list\n---\n",
        b"---\na: &x [1]\nb: *x\n---\n",
        b"---\na: &a [x,x]\nb: &b [*a,*a]\nc: [*b,*b]\n---\n",
        b"---\na: {<<: &x {b: 1}, c: *x}\n---\n",
        b"---\n" + b"[" * 60_000 + b"\n---\n",
        b"---\n? [a, b]\n: c\n---\n",
        b"---\na: [\n---\n",
        b"---\n\x00\xff\xfe\n---\n",
        b"---\na: b\n: : :\n---\n",
        b"---\n" + b"a: b\n" * 100_000 + b"---\n",
    ],
)
def test_hostile_front_matter_is_empty(readme: bytes) -> None:
    assert front_matter(readme) == {}


def test_tags_construct_nothing() -> None:
    assert front_matter(b"---\nlicense: !!python/object/apply:os.system ['false']\n---\n").get("license") in (
        None,
        ["false"],
    )


def test_licences() -> None:
    assert license_of({"license": "Apache-2.0"}, "LICENSE") == License("apache-2.0", file="LICENSE")
    assert license_of({"license": ["mit"]}, None) == License("mit")
    assert license_of({"license": ["MIT", "apache-2.0", "mit"]}, None) == License("mit and apache-2.0")
    other = {"license": "other", "license_name": "flux-1", "license_link": "https://example.com/LICENSE.md"}
    assert license_of(other, None) == License("other", "flux-1", "https://example.com/LICENSE.md")


@pytest.mark.parametrize(
    "given", [None, "", "a b", "mit\n---\n", ["mit", 5], ["mit", "a b"], [], {"a": 1}, 5, "<b>", "x" * 65]
)
def test_no_usable_licence(given: object) -> None:
    assert license_of({"license": given}, None) is None


@pytest.mark.parametrize("link", ["javascript:alert(1)", "../../etc", "https://a b", "https://x/)](y", 5, ["x"]])
def test_hostile_links_are_dropped(link: object) -> None:
    found = license_of({"license": "other", "license_link": link, "license_name": "a\x1b[31m"}, None)
    assert found == License("other")


def test_licence_of_a_single_file() -> None:
    assert license_of_metadata("CreativeML Open RAIL++-M License") == License("openrail++")
    assert license_of_metadata("CreativeML OpenRAIL-M") == License("creativeml-openrail-m")
    assert license_of_metadata("Apache 2.0") == License("apache-2.0")
    assert license_of_metadata("cc-by-4.0") == License("cc-by-4.0")
    assert license_of_metadata("ask me first") == License("other", "ask me first")
    assert license_of_metadata("") is None


def test_licence_file(tmp_path: Path) -> None:
    write(tmp_path / "LICENSE.md", "text")
    write(tmp_path / "licenses.json", "{}")
    write(tmp_path / "unet" / "LICENSE", "text")
    assert license_file(Folder(tmp_path)) == "LICENSE.md"

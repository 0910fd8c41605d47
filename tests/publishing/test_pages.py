"""A published card in a real browser, on a page of the embedded Hub; skipped where there is none."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from sdhub.publishing.publication import Sibling
from sdhub.publishing.push import push
from sdhub.publishing.repository import assemble
from tests.publishing.publications import checkpoint, evidence, picture, publication

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="there is no browser")


def browse(url, folder, *arguments):
    """What a headless browser makes of a page: the document after all scripts ran."""
    command = [
        *(BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
        *(f"--user-data-dir={folder / 'profile'}", "--window-size=1280,1000", "--virtual-time-budget=8000"),
    ]
    done = subprocess.run([*command, *arguments, url], capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr[-1000:]
    return done.stdout


def published(hub, tmp_path, name, **changes):
    repo_id = f"local/{name}"
    made = replace(publication(tmp_path), repo_id=repo_id, **changes)
    picture(made.contact_sheet, seed=5, side=320)
    out = tmp_path / "out"
    out.mkdir()
    assemble(made, out)
    push(out, repo_id, endpoint=hub, token="any", message="one")
    return f"{hub}/{repo_id}"


def test_a_card_in_a_browser(hub, tmp_path):
    siblings = (Sibling("openvino-int8", "local/shown", evidence()), Sibling("openvino-fp16", "local/other", {}))
    url = published(hub, tmp_path, "shown", siblings=siblings, hub="https://huggingface.co")
    shot = tmp_path / "shot.png"
    browse(url, tmp_path, f"--screenshot={shot}")
    assert shot.stat().st_size > 20_000
    page = browse(url, tmp_path, "--dump-dom")
    assert "<h1" in page
    assert page.count("<table") >= 5
    assert "PSNR 32.1 dB" in page
    assert "Use it" in page
    assert "contact_sheet.png" in page


def test_nothing_of_a_hostile_card_acts(hub, tmp_path):
    attack = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
    hostile = f"{attack}](javascript:document.title='owned')"
    named = checkpoint(id=hostile, gate={})
    figures = evidence()
    for prompt in figures["prompts"]:
        prompt["text"] = hostile
    url = published(
        hub,
        tmp_path,
        "hostile",
        checkpoint=named,
        evidence=figures,
        description=hostile,
        notes=(hostile,),
        siblings=(Sibling(hostile, hostile, {}), Sibling("other", hostile, {})),
    )
    page = browse(url, tmp_path, "--dump-dom")
    assert "<title>owned" not in page
    acting = []

    class Parser(HTMLParser):
        def handle_starttag(self, tag, attrs):
            acting.extend([tag] if tag in {"script", "iframe"} else [])
            acting.extend(name for name, _ in attrs if name.startswith("on"))
            acting.extend(value for _, value in attrs if (value or "").startswith("javascript:"))

    Parser().feed(page)
    assert not acting

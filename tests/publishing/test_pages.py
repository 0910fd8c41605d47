"""A published card in a real browser, on a page of the embedded Hub; skipped where there is none."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from sdhub.core.hub import Hub
from sdhub.publishing.publication import Sibling
from sdhub.publishing.push import push
from sdhub.publishing.repository import assemble
from tests.publishing.publications import checkpoint, evidence, publication

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WIDTH, HEIGHT = 1280, 900
SHEET = (255, 0, 255)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="there is no browser")


def browse(url, folder, shot=None):
    """What a headless browser makes of a page: the document after all scripts ran, and a picture of its window."""
    command = [
        *(BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
        *(f"--user-data-dir={folder / 'profile'}", f"--window-size={WIDTH},{HEIGHT}"),
        *("--virtual-time-budget=2000", "--dump-dom", *([f"--screenshot={shot}"] if shot else [])),
    ]
    done = subprocess.run([*command, url], capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr[-1000:]
    return done.stdout


def published(address, tmp_path, name, **changes):
    repo_id = f"local/{name}"
    made = replace(publication(tmp_path), repo_id=repo_id, **changes)
    Image.new("RGB", (1448, 800), SHEET).save(made.contact_sheet)  # the size that four prompts make
    out = tmp_path / "out"
    out.mkdir()
    assemble(made, out)
    push(out, repo_id, hub=Hub(address, "any"), message="one")
    return f"{address}/{repo_id}"


def test_a_card_in_a_browser(hub, tmp_path):
    siblings = (Sibling("openvino-int8", "local/shown", evidence()), Sibling("openvino-fp16", "local/other", {}))
    url = published(hub, tmp_path, "shown", siblings=siblings, hub="https://huggingface.co")
    page = browse(url, tmp_path, tmp_path / "shot.png")
    assert "<h1" in page
    assert page.count("<table") >= 5
    assert "PSNR 32.1 dB" in page
    assert "Use it" in page
    sheet = _rows_of(SHEET, tmp_path / "shot.png")
    assert sheet > 300, "the picture is below the first screen"
    figures = [page.index(text) for text in ("Size on disk", "Seconds per sampling step", "Likeness to the base")]
    assert max(figures) < page.index("contact_sheet.png"), "figures are above the picture, and so on that screen"


def _rows_of(colour, path):
    """Pixels from the first line of a picture that has this colour to the last."""
    with Image.open(path) as image:
        rows = np.flatnonzero((np.asarray(image.convert("RGB")) == colour).all(2).any(1))
    return int(rows[-1] - rows[0]) if len(rows) else 0


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
    page = browse(url, tmp_path)
    assert "<title>owned" not in page
    acting = []

    class Parser(HTMLParser):
        def handle_starttag(self, tag, attrs):
            acting.extend([tag] if tag in {"script", "iframe"} else [])
            acting.extend(name for name, _ in attrs if name.startswith("on"))
            acting.extend(value for _, value in attrs if (value or "").startswith("javascript:"))

    Parser().feed(page)
    assert not acting

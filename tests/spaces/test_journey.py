"""From a checkpoint to a live demo: the action publishes and deploys, visitors use both Spaces in a browser.

One real publication by the action's steps, and one more from the publisher Space; the pages need Chromium.
"""

from __future__ import annotations

import base64
import io
import json
import urllib.request

import numpy as np
import pytest
from PIL import Image

from sdhub.demo import emoji_sd
from sdhub.endpoint import Endpoint
from sdhub.spaces.deploy import deploy
from sdhub.spaces.publish import deploy_demo
from sdhub.spaces.sources import space_files
from tests.browser import DESKTOP, PHONE, browser, chromium
from tests.hubs import running_hub
from tests.test_action import Runner

VARIANT = "acme/emoji-openvino-int8"
STATUS = "document.querySelector('#status').innerText"
WAIT = 600
CARD = """---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
widget:
- text: pizza
inference:
  parameters:
    num_inference_steps: 20
    guidance_scale: 4.0
---
"""


def api(url):
    from huggingface_hub import HfApi

    return HfApi(url, token="local")


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """An embedded Hub that runs Spaces, with the built-in checkpoint as a stranger's repository."""
    with running_hub(tmp_path_factory.mktemp("hub") / "data", "--spaces", "present") as url:
        client = api(url)
        client.create_repo("acme/emoji")
        client.upload_folder(repo_id="acme/emoji", folder_path=emoji_sd(), ignore_patterns=["README.md"])
        client.upload_file(repo_id="acme/emoji", path_in_repo="README.md", path_or_fileobj=CARD.encode())
        yield url


@pytest.fixture(scope="module")
def runner(hub, tmp_path_factory):
    """The action, run to its end with `space`."""
    made = Runner(tmp_path_factory.mktemp("action") / "runner", hub)
    inputs = {
        "source": "acme/emoji",
        "variants": "openvino-int8",
        "namespace": "acme",
        "space": "true",
        "skip-published": "true",
        "token": "a-token-nobody-may-see",
    }
    assert made.run(inputs) == 0, made.log
    made.inputs = inputs
    return made


def test_the_action_says_what_it_did(runner, hub):
    outputs = runner.outputs["publish"]
    result = json.loads(outputs["result"])
    assert result["variants"][0]["status"] == "published"
    assert json.loads(outputs["repositories"]) == [f"{hub}/{VARIANT}"]
    assert "a-token-nobody-may-see" not in runner.log + runner.summary.read_text() + json.dumps(runner.outputs)
    summary = runner.summary.read_text()
    assert "| [`openvino-int8`]" in summary
    picture = summary.partition("![openvino-int8](")[2].partition(")")[0]
    with urllib.request.urlopen(picture, timeout=30) as answer:
        assert Image.open(io.BytesIO(answer.read())).format == "PNG"


def test_the_action_leaves_away_what_is_published(runner, hub, tmp_path):
    """On another machine, where nothing is kept: no second commit with other figures."""
    other = Runner(tmp_path / "other", hub)
    assert other.run(runner.inputs) == 0, other.log
    assert other.outputs["look"]["go"] == "false"
    assert len(api(hub).list_repo_commits(VARIANT)) == 2


@pytest.fixture(scope="module")
def app(runner, hub, tmp_path_factory):
    """The demo Space that the action deployed, updated to show a second variant: the same by another name."""
    from huggingface_hub import snapshot_download

    assert runner.outputs["publish"]["space"] == f"{hub}/spaces/acme/emoji-demo"
    folder = tmp_path_factory.mktemp("copy")
    snapshot_download(VARIANT, endpoint=hub, local_dir=folder, token=False)
    manifest = json.loads((folder / "sdhub.json").read_text())
    (folder / "sdhub.json").write_text(json.dumps({**manifest, "variant": "openvino-twin"}))
    api(hub).create_repo("acme/emoji-openvino-twin")
    api(hub).upload_folder(repo_id="acme/emoji-openvino-twin", folder_path=folder, ignore_patterns=[".cache/**"])
    done = deploy_demo([VARIANT, "acme/emoji-openvino-twin"], hub=Endpoint(hub, "local"))
    assert (done.status, done.repo_id) == ("updated", "acme/emoji-demo")
    assert set(done.changed) == {"README.md", "variants.json"}
    return done.app


@pytest.fixture(scope="module")
def page():
    chromium()
    with browser() as opened:
        yield opened


def pixels(raw):
    return np.asarray(Image.open(io.BytesIO(raw)).convert("RGB"), dtype=np.float64) / 255


def psnr(one, other):
    return 10 * np.log10(1 / max(np.mean((one - other) ** 2), 1e-12))


def fits(page):
    return page.js("document.documentElement.scrollWidth <= window.innerWidth")


def test_the_demo_in_a_browser(page, app, hub, tmp_path):
    page.look(DESKTOP)
    page.open(app)
    page.until("!!document.querySelector('#prompt textarea')", WAIT)

    page.click("#generate")
    page.until(f"{STATUS}.includes('Say what to draw')", WAIT)
    assert page.js("!!document.querySelector('#status [role=alert]')")

    page.click("#how .label-wrap")
    page.until("!!document.querySelector('#seed input')", WAIT)
    page.click("#random input")
    page.type("#seed input", "1")
    page.type("#prompt textarea", "pizza")
    page.click("#generate")
    page.until("!!document.querySelector('#picture progress')", WAIT)
    page.until("(document.querySelector('#picture progress') || {}).value >= 1", WAIT)
    page.until(f"{STATUS}.startsWith('Done')", WAIT)
    drawn = page.js("document.querySelector('#picture img').src").partition(",")[2]
    assert page.js("document.querySelector('#picture img').alt") == "pizza"
    with urllib.request.urlopen(f"{hub}/{VARIANT}/resolve/main/evidence/variant-00.png", timeout=30) as answer:
        published = answer.read()
    assert psnr(pixels(base64.b64decode(drawn)), pixels(published)) > 30  # the pizza of the evidence
    assert page.js("document.querySelectorAll('#gallery img').length") == 1
    page.screenshot(tmp_path / "desktop.png")

    page.click("#variant label:nth-of-type(2) input")
    page.until("document.querySelector('#facts').innerText.includes('acme/emoji-openvino-twin')", WAIT)

    page.type("#prompt textarea", "red heart")
    page.key("Enter", 13, "\r")
    page.until(
        "!!document.querySelector('#picture progress') && !document.querySelector('#cancel').disabled", WAIT
    )
    page.click("#cancel")
    page.until(f"{STATUS}.startsWith('Cancelled')", WAIT)
    assert page.js("document.querySelectorAll('#gallery img').length") == 1
    assert page.js("!document.querySelector('#generate').disabled")
    assert page.errors == []


def test_the_demo_fits_a_phone_in_light_and_dark(page, app, tmp_path):
    for dark in (False, True):
        page.look(PHONE, dark=dark)
        page.open(f"{app}/?__theme={'dark' if dark else 'light'}")
        page.until("!!document.querySelector('#prompt textarea')", WAIT)
        page.screenshot(tmp_path / f"phone-{dark}.png")
        assert fits(page)
        ground = page.js("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, ground.strip("rgb()").split(","))) < 200) is dark
        unnamed = page.js("""[...document.querySelectorAll('input, textarea, button, img')]
            .filter(each => each.offsetParent && !(each.labels && each.labels.length) && !each.innerText.trim()
                && !each.ariaLabel && !each.alt && !each.title && each.type !== 'hidden')
            .map(each => each.outerHTML.slice(0, 120))""")
        assert unnamed == []


@pytest.fixture(scope="module")
def publisher(hub):
    """The publisher Space, with its webhook off."""
    return deploy("acme/publisher", space_files("publisher"), hub=Endpoint(hub, "local")).app


def test_the_publisher_in_a_browser(page, publisher, hub, tmp_path):
    """The plan of a source, then its publication; the repository opens."""
    page.look(DESKTOP)
    page.open(publisher)
    field = "#source textarea, #source input"
    page.until(f"!!document.querySelector({json.dumps(field)})", WAIT)
    page.type(field, "/etc/passwd")
    page.click("#look")
    page.until("!!document.querySelector('#status [role=alert]')", WAIT)
    page.type(field, "acme/emoji")
    page.click("#look")
    page.until(f"{STATUS}.includes('can be made')", WAIT)
    assert "openvino-int8" in page.js("document.querySelector('#found').innerText")
    page.until("document.querySelectorAll('#variants input').length > 1", WAIT)
    page.js(
        """[...document.querySelectorAll('#variants label')].forEach(label => {
            const wanted = label.innerText.trim() === 'openvino-fp16', input = label.querySelector('input');
            if (input.checked !== wanted) input.click();
        })"""
    )
    page.type("#namespace textarea, #namespace input", "visitor")
    page.click("#publish")
    page.until("!!document.querySelector('#done progress')", WAIT)
    page.until("document.querySelectorAll('#done .log li').length > 2", WAIT)
    page.until("!!document.querySelector('#done .results a')", 3 * WAIT)
    address = page.js("document.querySelector('#done .results a').href")
    page.screenshot(tmp_path / "publisher.png")
    assert address == f"{hub}/visitor/emoji-openvino-fp16"
    page.look(PHONE, dark=True)
    page.until("true")
    assert fits(page)
    page.screenshot(tmp_path / "publisher-phone.png")
    assert page.errors == []
    page.open(address)
    assert "emoji-openvino-fp16" in page.text()

"""From a checkpoint to a live demo: the action publishes and deploys, the guide's commands deploy more, and
visitors use both Spaces in a browser.

One real publication by the action's steps, and one more from the publisher Space; the pages need Chromium.
"""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
import urllib.error
import urllib.request

import numpy as np
import pytest
from PIL import Image

from sdhub.demo import emoji_sd
from tests.browser import DESKTOP, PHONE, browser, chromium
from tests.guides import calls
from tests.hubs import running_hub
from tests.runs import environment, sdhub_json
from tests.test_action import Runner

SOURCE, VARIANT, TWIN = "org/model", "me/model-openvino-int8", "me/model-openvino-fp16"
STATUS = "document.querySelector('#status').innerText"
WAIT, LOAD = 180, 420  # seconds; the first drawing loads OpenVINO and the variant
SECRET = "correct horse battery staple"
NOTE_PROGRESS = """
    window.progress = [];
    new MutationObserver(() => {
        const value = (document.querySelector('#picture progress') || {}).value;
        if (value >= 1 && value !== window.progress.at(-1)) window.progress.push(value);
    }).observe(document.body, {subtree: true, childList: true, attributes: true});
"""  # a look now and then could miss them
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
        client.create_repo(SOURCE)
        client.upload_folder(repo_id=SOURCE, folder_path=emoji_sd(), ignore_patterns=["README.md"])
        client.upload_file(repo_id=SOURCE, path_in_repo="README.md", path_or_fileobj=CARD.encode())
        yield url


@pytest.fixture(scope="module")
def runner(hub, tmp_path_factory):
    """The action, run to its end with `space`."""
    made = Runner(tmp_path_factory.mktemp("action") / "runner", hub)
    inputs = {
        "source": SOURCE,
        "variants": "openvino-int8",
        "namespace": "me",
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
def guide(runner, hub, tmp_path_factory):
    """What the commands of the guide say, where the action has published: one JSON document each.

    The second variant that they show is the first by another name.
    """
    from huggingface_hub import snapshot_download

    folder = tmp_path_factory.mktemp("copy")
    snapshot_download(VARIANT, endpoint=hub, local_dir=folder, token=False)
    manifest = json.loads((folder / "sdhub.json").read_text())
    (folder / "sdhub.json").write_text(json.dumps({**manifest, "variant": "openvino-fp16"}))
    api(hub).create_repo(TWIN)
    api(hub).upload_folder(repo_id=TWIN, folder_path=folder, ignore_patterns=[".cache/**"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WEBHOOK_SECRET", SECRET)
        home = runner.temp / "sdhub"
        return {
            " ".join(words): sdhub_json(*words, home=home, endpoint=hub)
            for words in calls("spaces.md")
            if words[0] != "hub"
        }


def test_the_commands_of_the_guide(guide, hub):
    """In the order they stand in: a Space for each new name, nothing sent a second time."""
    publish, one, two, publisher, webhook = guide.values()
    assert publish["variants"][0]["status"] == "unchanged"
    assert (publish["space"]["repo"], publish["space"]["status"]) == ("me/model-demo", "unchanged")
    assert (one["repo"], one["status"], one["stage"]) == ("me/model-demo", "unchanged", "RUNNING")
    assert (two["repo"], two["status"], two["stage"]) == ("me/try-model", "created", "RUNNING")
    assert (publisher["repo"], publisher["status"]) == ("me/publisher", "created")
    assert (webhook["status"], webhook["stage"]) == ("unchanged", "RUNNING")
    assert api(hub).space_info("me/try-model").card_data.models == [VARIANT, TWIN]


def test_the_guide_serves_a_hub(tmp_path):
    (words,) = [words for words in calls("spaces.md") if words[0] == "hub"]
    command = [sys.executable, "-m", "sdhub", *words, "--port", "0"]
    running = subprocess.Popen(command, env=environment(tmp_path), stdout=subprocess.PIPE, text=True)
    assert "The embedded Hub is at" in running.stdout.readline()
    running.terminate()
    running.communicate(timeout=60)


def test_the_webhook_of_the_deployed_space(guide):
    """Only with the secret; what comes with it is still looked at."""
    app = list(guide.values())[-1]["app"]

    def deliver(body, **headers):
        request = urllib.request.Request(f"{app}/webhook", data=body, headers=headers)
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=WAIT)
        refused.value.close()
        return refused.value.code

    assert deliver(b"{}") == 401
    assert deliver(b"{}", **{"X-Webhook-Secret": "wrong"}) == 401
    assert deliver(b"{", **{"X-Webhook-Secret": SECRET}) == 400
    assert deliver(b"x" * 100_000, **{"X-Webhook-Secret": SECRET}) == 413


@pytest.fixture(scope="module")
def page():
    chromium()
    with browser() as opened:
        yield opened


def pixels(raw):
    return np.asarray(Image.open(io.BytesIO(raw)).convert("RGB"), dtype=np.float64) / 255


def psnr(one, other):
    return 10 * np.log10(1 / max(np.mean((one - other) ** 2), 1e-12))


def too_wide(page):
    """What is cut off at the right, but for what can be scrolled to by itself."""
    return page.js("""(() => {
        const out = each => each.getBoundingClientRect().right > document.documentElement.clientWidth + 1;
        const scrolls = each => /auto|scroll/.test(getComputedStyle(each).overflowX) && !out(each);
        const inside = each => each !== document.body && (scrolls(each) || inside(each.parentElement));
        return [...document.querySelectorAll('body *')]
            .filter(each => each.offsetParent && out(each) && !inside(each.parentElement))
            .map(each => each.outerHTML.slice(0, 120));
    })()""")


def test_the_demo_in_a_browser(page, guide, hub, tmp_path):
    page.look(DESKTOP)
    page.open(guide["space deploy me/model-openvino-int8 me/model-openvino-fp16 --to me/try-model"]["app"])
    page.until("!!document.querySelector('#prompt textarea')", WAIT)

    page.repeat(lambda: page.click("#generate"), f"{STATUS}.includes('Say what to draw')", WAIT)
    assert page.js("!!document.querySelector('#status [role=alert]')")

    page.repeat(lambda: page.click("#how .label-wrap"), "!!document.querySelector('#seed input')", WAIT)
    page.click("#random input")
    page.type("#seed input", "1")
    page.type("#prompt textarea", "pizza")
    page.js(NOTE_PROGRESS)
    page.click("#generate")
    page.until(f"{STATUS}.startsWith('Done')", LOAD)
    steps = page.js("window.progress")
    assert steps
    assert steps == sorted(steps)
    assert set(steps) <= set(range(1, 21))
    drawn = page.js("document.querySelector('#picture img').src").partition(",")[2]
    assert page.js("document.querySelector('#picture img').alt") == "pizza"
    with urllib.request.urlopen(f"{hub}/{VARIANT}/resolve/main/evidence/variant-00.png", timeout=30) as answer:
        published = answer.read()
    assert psnr(pixels(base64.b64decode(drawn)), pixels(published)) > 30  # the pizza of the evidence
    assert page.js("document.querySelectorAll('#gallery img').length") == 1
    page.screenshot(tmp_path / "desktop.png")

    page.click("#variant label:nth-of-type(2) input")
    page.until(f"document.querySelector('#facts').innerText.includes('{TWIN}')", WAIT)

    page.type("#prompt textarea", "red heart")
    busy = "!!document.querySelector('#picture progress') && !document.querySelector('#cancel').disabled"
    page.repeat(lambda: page.key("Enter", 13, "\r"), busy, WAIT)  # the variant is loaded first: time to cancel
    page.click("#cancel")
    page.until(f"{STATUS}.startsWith('Cancelled')", LOAD)
    assert page.js("document.querySelectorAll('#gallery img').length") == 1
    page.until("!document.querySelector('#generate').disabled")
    assert page.errors == []


def test_the_demo_fits_a_phone_in_light_and_dark(page, guide, tmp_path):
    app = guide["space deploy me/model-openvino-int8"]["app"]
    for dark in (False, True):
        page.look(PHONE, dark=dark)
        page.open(f"{app}/?__theme={'dark' if dark else 'light'}")
        page.until("!!document.querySelector('#prompt textarea')", WAIT)
        page.screenshot(tmp_path / f"phone-{dark}.png")
        assert too_wide(page) == []
        ground = page.js("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, ground.strip("rgb()").split(","))) < 200) is dark
        unnamed = page.js("""[...document.querySelectorAll('input, textarea, button, img')]
            .filter(each => each.offsetParent && !(each.labels && each.labels.length) && !each.innerText.trim()
                && !each.ariaLabel && !each.alt && !each.title && each.type !== 'hidden')
            .map(each => each.outerHTML.slice(0, 120))""")
        assert unnamed == []


def test_the_publisher_in_a_browser(page, guide, hub, tmp_path):
    """The plan of a source, then its publication; the repository opens."""
    page.look(DESKTOP)
    page.open(list(guide.values())[-1]["app"])
    field = "#source textarea, #source input"
    page.until(f"!!document.querySelector({json.dumps(field)})", WAIT)
    page.type(field, "/etc/passwd")
    page.repeat(lambda: page.click("#look"), "!!document.querySelector('#status [role=alert]')", WAIT)
    page.type(field, SOURCE)
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
    assert address == f"{hub}/visitor/model-openvino-fp16"
    page.look(PHONE, dark=True)
    assert too_wide(page) == []
    page.screenshot(tmp_path / "publisher-phone.png")
    assert page.errors == []
    page.open(address)
    assert "model-openvino-fp16" in page.text()

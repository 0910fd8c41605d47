"""Deploying Spaces to the embedded Hub, which runs them: small apps of the standard library here."""

from __future__ import annotations

import json
import os
import urllib.request

import pytest

from sdhub.core.errors import CheckError, PrivacyError, SourceError, UnsupportedError, UsageError
from sdhub.core.hub import Hub
from sdhub.spaces.demo import Shown, demo_files, fit, readme, space_name
from sdhub.spaces.deploy import deploy
from sdhub.spaces.publish import deploy_demo
from tests.hubs import HubProcess, running_hub
from tests.runs import sdhub

APP = b"""
import http.server, json, os
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        raw = json.dumps({"env": dict(os.environ), "files": sorted(os.listdir())}).encode()
        self.send_response(200); self.send_header("Content-Length", str(len(raw))); self.end_headers()
        self.wfile.write(raw)
    def log_message(self, *_): pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["GRADIO_SERVER_PORT"])), Handler).serve_forever()
"""
README = b"---\ntitle: t\nsdk: gradio\napp_file: main.py\n---\n"
FILES = {"main.py": APP, "README.md": README}


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    os.environ["SECRET_OF_THE_SERVER"] = "no app may see this"
    with running_hub(tmp_path_factory.mktemp("hub") / "data", "--spaces", "present") as found:
        yield found
    del os.environ["SECRET_OF_THE_SERVER"]


@pytest.fixture
def hub(url):
    return Hub(url, "local")


def api(url):
    from huggingface_hub import HfApi

    return HfApi(url, token="local")


def ask(address):
    with urllib.request.urlopen(address, timeout=10) as answer:
        return json.load(answer)


def test_created_then_unchanged_then_updated_with_what_differs(hub, url):
    first = deploy("acme/one", FILES, hub=hub)
    assert (first.status, first.stage) == ("created", "RUNNING")
    assert first.changed == ("README.md", "main.py")
    assert {"main.py", "README.md"} <= set(ask(first.app)["files"])
    again = deploy("acme/one", FILES, hub=hub)
    assert (again.status, again.changed, again.app) == ("unchanged", (), first.app)
    more = deploy("acme/one", {**FILES, "words.txt": b"new"}, hub=hub)
    assert (more.status, more.changed) == ("updated", ("words.txt",))
    assert "words.txt" in ask(more.app)["files"]
    assert len(api(url).list_repo_commits("acme/one", repo_type="space")) == 3


def test_secrets_reach_the_app_and_no_file(hub, url, tmp_path):
    from huggingface_hub import snapshot_download

    secret = "a-value-nobody-may-see"
    done = deploy("acme/two", FILES, hub=hub, secrets={"TOKEN": secret}, variables={"COLOUR": "red"})
    seen = ask(done.app)["env"]
    assert (seen["TOKEN"], seen["COLOUR"], seen["HF_ENDPOINT"]) == (secret, "red", url)
    assert "SECRET_OF_THE_SERVER" not in seen
    folder = snapshot_download("acme/two", repo_type="space", endpoint=url, local_dir=tmp_path, token=False)
    assert all(secret.encode() not in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert folder
    assert "TOKEN" not in set(api(url).get_space_variables("acme/two"))
    again = deploy("acme/two", FILES, hub=hub, secrets={"TOKEN": "another"})
    assert again.status == "unchanged"
    assert ask(again.app)["env"]["TOKEN"] == "another"


def test_an_app_that_ends_is_told_with_its_last_line(hub):
    broken = {**FILES, "main.py": b"raise SystemExit('the colour is missing')"}
    with pytest.raises(CheckError, match=r"RUNTIME_ERROR.*the colour is missing"):
        deploy("acme/three", broken, hub=hub)
    assert deploy("acme/three", FILES, hub=hub).stage == "RUNNING"


def test_a_missing_app_is_told(hub):
    with pytest.raises(CheckError, match=r"there is no main\.py"):
        deploy("acme/four", {"README.md": README}, hub=hub)


def test_what_is_private_does_not_go_to_a_public_space(hub):
    deploy("acme/five", FILES, hub=hub)
    with pytest.raises(PrivacyError):
        deploy("acme/five", FILES, hub=hub, private=True)


def test_a_space_of_nothing_published(hub):
    with pytest.raises(SourceError, match="no model"):
        deploy_demo(["acme/nothing"], hub=hub)


def test_spaces_end_with_their_hub_and_wake_at_a_visit(tmp_path):
    root = tmp_path / "hub"
    server = HubProcess(root, "--spaces", "present")
    first = deploy("acme/one", FILES, hub=Hub(server.url, "local"))
    assert ask(first.app)
    server.kill()
    with running_hub(root) as other:  # runs none
        assert api(other).get_space_runtime("acme/one").stage == "RUNNING"
    for _ in range(100):
        try:
            ask(first.app)
        except OSError:
            break
    with pytest.raises(OSError):
        ask(first.app)
    server = HubProcess(root, "--spaces", "present")
    try:
        assert api(server.url).get_space_runtime("acme/one").stage == "SLEEPING"
        page = urllib.request.Request(f"{server.url}/spaces/acme/one", headers={"Accept": "text/html"})
        with urllib.request.urlopen(page, timeout=10) as answer:
            assert b"The app is" in answer.read()
        woken = deploy("acme/one", FILES, hub=Hub(server.url, "local"))
        assert (woken.status, woken.stage) == ("unchanged", "RUNNING")
        assert ask(woken.app)
    finally:
        server.stop()


def test_a_hub_that_runs_none_keeps_it_asleep(tmp_path):
    with running_hub(tmp_path / "hub") as plain:
        done = deploy("acme/one", FILES, hub=Hub(plain, "local"))
        assert (done.status, done.stage, done.app) == ("created", "SLEEPING", None)


def test_spaces_are_not_run_for_anyone_elsewhere(tmp_path):
    from sdhub.hub.errors import StartError
    from sdhub.hub.server import serve

    with pytest.raises(StartError, match="the code of all who may write"):
        serve(tmp_path / "hub", "0.0.0.0", 0, run_spaces="present")


INT8 = Shown("acme/emoji-openvino-int8", "openvino-int8", "acme/emoji", license={"license": "mit"})
SDNQ = Shown("acme/emoji-sdnq-uint4", "sdnq-uint4", "acme/emoji")
COREML = Shown("acme/coreml-emoji-6bit", "coreml-6bit", "acme/emoji")


def test_what_runs_where():
    assert fit([INT8, SDNQ, COREML], "cpu-basic") == [INT8]
    assert fit([INT8, SDNQ, COREML], "t4-small") == [INT8, SDNQ]
    with pytest.raises(UnsupportedError, match="coreml-6bit"):
        fit([COREML], "cpu-basic")


def test_the_readme_is_what_the_hub_reads():
    from huggingface_hub import SpaceCard

    evil = Shown("acme/x-openvino-int8", "openvino-int8", "a/b\n---\nsdk: docker\n# <b>")
    card = SpaceCard(readme([INT8, SDNQ]))
    assert card.data.sdk == "gradio"
    assert card.data.sdk_version == "6.31.0"
    assert card.data.app_file == "app.py"
    assert card.data.models == [INT8.repo_id, SDNQ.repo_id]
    assert card.data.license == "mit"
    card = SpaceCard(readme([evil]))
    assert card.data.sdk == "gradio"
    assert "\n# <b>" not in card.text


def test_files_of_the_demo():
    files = demo_files([INT8, SDNQ])
    assert json.loads(files["variants.json"]) == {"variants": [INT8.repo_id, SDNQ.repo_id]}
    assert b"sdnq==" in files["requirements.txt"]
    assert b"sdnq==" not in demo_files([INT8])["requirements.txt"]
    assert not any("__pycache__" in name for name in files)
    assert space_name([INT8]) == "acme/emoji-demo"
    with pytest.raises(UsageError):
        demo_files([])


def test_the_program_says_what_is_missing(url, tmp_path):
    done = sdhub("space", "deploy", "acme/nothing", "--hub", url, home=tmp_path, code=2)
    assert "no model acme/nothing" in done.stderr
    done = sdhub("space", "deploy", "acme/x", "--hub", url, "--secret", "NOT_SET_ANYWHERE", home=tmp_path, code=2)
    assert "NOT_SET_ANYWHERE" in done.stderr

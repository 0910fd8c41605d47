"""sdhub with other clients than the tests': huggingface_hub 2.x, and as an extension of a real `hf`."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from sdhub.publishing.repository import assemble
from tests.environments import environment
from tests.publishing.publications import honest

ROOT = Path(__file__).resolve().parent.parent.parent
NEWEST = "2.4.0"


@pytest.fixture(scope="module")
def newest():
    """The folder of programs of an environment with sdhub and the newest huggingface_hub."""
    return environment("sdhub-hub2", [f"huggingface_hub=={NEWEST}", "-e", str(ROOT)]).parent


@pytest.fixture
def user(tmp_path):
    """The environment of a user with an empty home and no way to any network but loopback."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "SDHUB_"))}
    nowhere = "http://127.0.0.1:9"
    return {
        **kept,
        "HOME": str(tmp_path),
        "HF_HOME": str(tmp_path / "hf"),
        "SDHUB_HOME": str(tmp_path / "sdhub"),
        "HF_TOKEN": "a-token-nobody-may-see",
        "HTTP_PROXY": nowhere,
        "HTTPS_PROXY": nowhere,
        "NO_PROXY": "127.0.0.1,localhost",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    }


def run(command, variables, code=0):
    done = subprocess.run(
        [str(part) for part in command], env=variables, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert "a-token-nobody-may-see" not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


@pytest.mark.parametrize("xet", [True, False])
def test_publishing_with_the_newest_hub_client(newest, user, hub, tmp_path, xet):
    version = "import huggingface_hub; print(huggingface_hub.__version__)"
    assert run([newest / "python", "-c", version], user).stdout.strip() == NEWEST
    if not xet:
        user["HF_HUB_DISABLE_XET"] = "1"
    folder = tmp_path / "out"
    folder.mkdir()
    assemble(honest(tmp_path / "made"), folder)
    repo = f"newest/{'with-xet' if xet else 'plain'}"
    sdhub = newest / "sdhub"
    pushed = json.loads(run([sdhub, "push", folder, repo, "--hub", hub, "--json"], user).stdout)
    assert pushed["status"] == "published"
    again = json.loads(run([sdhub, "push", folder, repo, "--hub", hub, "--json"], user).stdout)
    assert (again["status"], again["commit"], again["bytes"]) == ("unchanged", pushed["commit"], 0)
    checked = json.loads(run([sdhub, "verify", repo, "--hub", hub, "--pictures", "0", "--json"], user).stdout)
    assert checked["sound"]
    assert checked["commit"] == pushed["commit"]
    (folder / "model_index.json").unlink()
    (folder / "model_index.json").write_text("{}")
    proposed = json.loads(run([sdhub, "push", folder, repo, "--hub", hub, "--create-pr", "--json"], user).stdout)
    assert proposed["status"] == "proposed"


def _install(home: Path, program: Path) -> None:
    """What `hf extensions install OWNER/hf-sdhub` leaves, with an environment that is there already."""
    folder = home / ".local" / "share" / "hf" / "extensions" / "hf-sdhub"
    programs = folder / "venv" / "bin"
    programs.mkdir(parents=True)
    (programs / "hf-sdhub").symlink_to(program)
    manifest = {
        "owner": "someone",
        "repo": "hf-sdhub",
        "repo_id": "someone/hf-sdhub",
        "short_name": "sdhub",
        "executable_name": "hf-sdhub",
        "executable_path": str(programs / "hf-sdhub"),
        "type": "python",
        "installed_at": "2026-01-01T00:00:00+00:00",
        "source": "https://github.com/someone/hf-sdhub",
        "description": None,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("client", ["here", NEWEST])
def test_as_an_extension_of_a_real_hf(newest, user, tmp_path, client):
    import sys

    hf = newest / "hf" if client == NEWEST else Path(sys.executable).parent / "hf"
    _install(tmp_path, newest / "hf-sdhub")
    assert "sdhub" in run([hf, "extensions", "list"], user).stdout
    told = json.loads(run([hf, "sdhub", "inspect", "demo", "--json"], user).stdout)
    assert told["family"] == "sd1"
    refused = run([hf, "sdhub", "inspect", tmp_path / "nothing.safetensors"], user, code=2)
    assert refused.stderr.startswith("error: ")
    assert "publish" in run([hf, "sdhub", "--help"], user).stdout

"""A backend that another distribution brings, known by its entry point alone."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.runs import environment

METADATA = "Metadata-Version: 2.1\nName: sdhub-toy\nVersion: 1.0\n"
ENTRY = "[sdhub.backends]\ntoy = sdhub_toy:BACKEND\n"


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """An environment with sdhub as here, and the toy's distribution besides."""
    folder = tmp_path_factory.mktemp("toy") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (place,) = folder.glob("lib/python*/site-packages")
    places = [entry for entry in sys.path if entry.endswith("site-packages")] or [sysconfig.get_path("purelib")]
    (place / "here.pth").write_text("\n".join([str(Path(__file__).parents[2]), *places]))
    shutil.copyfile(Path(__file__).with_name("toy.py"), place / "sdhub_toy.py")
    info = place / "sdhub_toy-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(METADATA)
    (info / "entry_points.txt").write_text(ENTRY)
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def run(python, tmp_path_factory):
    home = tmp_path_factory.mktemp("home")

    def sdhub(*arguments):
        command = [str(python), "-m", "sdhub", *arguments, "--json"]
        done = subprocess.run(command, env=environment(home), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return sdhub


def test_it_is_offered_and_planned(run):
    rows = {row["name"]: row["possible"] for row in run("inspect", "demo")["variants"]}
    assert rows["toy-half"] is True and "openvino-int8" in rows
    (planned,) = run("plan", "demo", "--variant", "toy-half", "--to", "me")["variants"]
    assert planned["repo"] == "me/emoji-sd-toy-half"


def test_it_builds_publishes_and_is_checked(run, tmp_path):
    prompts = tmp_path / "prompts.json"
    prompts.write_text('["red heart"]')
    published = run(
        "publish", "demo", "--variant", "toy-half", "--hub", "local", "--prompts", str(prompts), "--steps", "3"
    )
    (variant,) = published["variants"]
    assert variant["status"] == "published"
    assert variant["evidence"]["ssim"] == 1.0  # the checkpoint's own files have 16 bits
    assert "toy.txt" in {each["path"] for each in variant["files"]}

"""The wheel in an environment of the base installation alone, at the newest and the oldest allowed versions."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.environments import environment
from tests.hubs import running_hub
from tests.matrix.requirements import ROOT, lowest, requirements

pytestmark = pytest.mark.matrix


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)], cwd=ROOT, check=True
    )
    (found,) = out.glob("*.whl")
    return found


@pytest.fixture(scope="module", params=["base-newest", "base-oldest"])
def installed(request, wheel):
    """The program: dependencies are kept between runs, the wheel is installed afresh."""
    python = environment(request.param, requirements() if request.param == "base-newest" else lowest())
    command = [str(python), "-m", "pip", "install", "-q", "--no-deps", "--force-reinstall", str(wheel)]
    subprocess.run(command, check=True)
    return python.with_name("sdhub")


@pytest.fixture
def sdhub(installed, tmp_path):
    def run(*words, code=0):
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "SDHUB_"))}
        kept |= {"SDHUB_HOME": str(tmp_path / "home"), "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": "any"}
        done = subprocess.run([str(installed), *words], env=kept, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        assert "Warning" not in done.stderr
        return done

    return run


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "Usage"),
        (["inspct"], "No such command"),
        (["--foo"], "No such option"),
        (["publish", "demo", "--jobs", "0"], "--jobs"),
        (["inspect"], "SOURCE"),
        (["recipe"], "Usage"),
    ],
)
def test_usage_errors(sdhub, words, said):
    done = sdhub(*words, code=2)
    assert said in done.stdout + done.stderr


def test_version_and_help(sdhub):
    assert sdhub("--version").stdout == "sdhub 0.1.0\n"
    assert "SOURCE" in sdhub("inspect", "--help").stdout


def test_inspect_and_plan(sdhub):
    assert "emoji" in sdhub("inspect", "demo").stdout
    assert "openvino-int8" in sdhub("plan", "demo", "--variant", "openvino-int8").stdout


def test_push_to_a_hub(sdhub, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.txt").write_text("a")
    assert "published" in sdhub("push", str(folder), "demo/mine", "--hub", "local").stdout
    with running_hub(tmp_path / "other") as url:
        assert "published" in sdhub("push", str(folder), "demo/mine", "--hub", url).stdout
        assert "unchanged" in sdhub("push", str(folder), "demo/mine", "--hub", url).stdout

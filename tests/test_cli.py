"""Habits of people: Ctrl-C at any moment, calls that are wrong, and words of the guide."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.runs import environment, sdhub, sdhub_json


@pytest.mark.parametrize("seconds", [0.35, 0.8, 2.0])
def test_an_interrupt_is_one_line_and_130(tmp_path, seconds):
    """A child of a session of its own gets the signal as a terminal gives it: to the whole group."""
    command = [sys.executable, "-X", "frozen_modules=on", "-m", "sdhub", "analyze", "demo"]
    process = subprocess.Popen(
        command,
        env=environment(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    time.sleep(seconds)
    os.killpg(process.pid, signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert "Traceback" not in said and "KeyboardInterrupt" not in said
    assert "error: interrupted\n" in said
    assert process.returncode == 130


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["analyze", "demo", "--budget", "4.5"], "'4.5' is no budget"),
        (["analyze", "demo", "--device", "cuda:77"], "no device 'cuda:77'"),
        (["publish", "demo", "--to", "demo", "--hub", "local", "--judge", "./foo"], "./foo is no encoder"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(tmp_path, words, said):
    done = sdhub(*words, home=tmp_path, code=2)
    assert said in done.stderr
    assert not (tmp_path / "work").exists()


def test_version(tmp_path):
    assert sdhub("--version", home=tmp_path).stdout.startswith("sdhub ")


def test_describe(tmp_path):
    recipe = tmp_path / "r.json"
    recipe.write_text(sdhub("recipe", "show", "coreml-4bit", "demo", home=tmp_path).stdout)
    found = sdhub_json("recipe", "describe", str(recipe), home=tmp_path)
    unet = next(each for each in found["components"] if each["component"] == "unet")
    assert "bits 4" in unet["treatments"][0]["treatment"]
    assert "all others" in sdhub("recipe", "describe", str(recipe), home=tmp_path).stdout

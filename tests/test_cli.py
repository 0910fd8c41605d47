"""Habits of people: Ctrl-C at any moment, calls that are wrong, and words of the guide."""

import os
import signal
import subprocess
import sys

import pytest

from tests.environments import environment as installed
from tests.matrix.test_base import ROOT, dependencies
from tests.runs import environment, sdhub, sdhub_json

# What the program is at when the signal comes, and a line of Python's own list of imports that tells so.
MOMENTS = [
    pytest.param(["inspect", "demo"], "import 'sdhub.workflow.cache'", id="imports"),
    pytest.param(["inspect", "demo"], "import 'typer'", id="more imports"),
    pytest.param(["analyze", "demo"], "import 'torch'", id="work"),
]


@pytest.mark.parametrize(("words", "line"), MOMENTS)
def test_an_interrupt_is_one_line_and_130(tmp_path, words, line):
    """A child of a session of its own gets the signal as a terminal gives it: to the whole group."""
    said = tmp_path / "said"
    with said.open("wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-v", "-m", "sdhub", *words],
            env=environment(tmp_path),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        for each in process.stderr:
            errors.write(each)
            if each.decode().startswith(line):
                os.killpg(process.pid, signal.SIGINT)
                break
        errors.write(process.stderr.read())
    process.stderr.close()
    told = said.read_text()
    assert process.wait(60) == 130
    assert "Traceback" not in told and "KeyboardInterrupt" not in told
    assert "error: interrupted\n" in told


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


NEWEST = [
    ([], "Usage"),
    (["inspct"], "No such command"),
    (["--foo"], "No such option"),
    (["publish", "demo", "--jobs", "0"], "--jobs"),
]


def test_usage_errors_with_the_newest_typer(tmp_path):
    """It carries a click of its own; the environment that tests run in has an older one."""
    python = installed("base-newest", dependencies())
    variables = environment(tmp_path) | {"PYTHONPATH": str(ROOT)}
    carries = "import typer; print([each.__module__ for each in typer.BadParameter.__mro__])"
    shown = subprocess.run([python, "-c", carries], env=variables, capture_output=True, text=True, check=True)
    assert "typer._click" in shown.stdout
    for words, said in NEWEST:
        done = subprocess.run(
            [python, "-m", "sdhub", *words], env=variables, capture_output=True, text=True, check=False
        )
        assert done.returncode == 2
        assert said in done.stdout + done.stderr and "Traceback" not in done.stderr


def test_describe(tmp_path):
    recipe = tmp_path / "r.json"
    recipe.write_text(sdhub("recipe", "show", "coreml-4bit", "demo", home=tmp_path).stdout)
    found = sdhub_json("recipe", "describe", str(recipe), home=tmp_path)
    unet = next(each for each in found["components"] if each["component"] == "unet")
    assert "bits 4" in unet["treatments"][0]["treatment"]
    assert "all others" in sdhub("recipe", "describe", str(recipe), home=tmp_path).stdout

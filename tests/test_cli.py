"""What people do: Ctrl-C at any moment, calls that are wrong, and words of the guide."""

import os
import re
import signal
import subprocess
import sys

import pytest

from tests.environments import environment as installed
from tests.hubs import running_hub
from tests.matrix.requirements import ROOT, requirements
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
        (["publish", "demo", "--to", "demo", "--hub", "local", "--judge", "./foo"], "./foo is no judge"),
        (["publish", "demo", "--judge", "foo"], "a judge is pixels, or a CLIP or SigLIP model"),
        (["publish", "demo", "--judge", "pixel"], "did you mean pixels?"),
        (["publish", "demo", "--min-psnr", "nan"], "a PSNR of nan dB"),
        (["analyze", "demo", "--min-psnr", "nan"], "a PSNR of nan dB"),
        (["analyze", "demo", "--min-psnr", "inf"], "a PSNR of inf dB"),
        (["analyze", "demo", "--min-psnr=-3"], "a PSNR of -3 dB"),
        (["publish", "demo", "./other", "--dry-run", "--memory", "nan"], "nan bytes of memory"),
        (["plan", "demo", "--guidance", "nan"], "guidance of nan draw nothing"),
        (["analyze", "demo", "--key", "r"], "add --start-from FILE"),
        (["analyze", "demo", "--widths", "two"], "'two' are no widths"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(tmp_path, words, said):
    done = sdhub(*words, home=tmp_path, code=2)
    assert said in done.stderr
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize(
    ("words", "name"), [(["inspct"], "inspect"), (["recipe", "shw"], "show"), (["inspect", "--jso"], "--json")]
)
def test_a_name_is_suggested_once(tmp_path, words, name):
    said = sdhub(*words, home=tmp_path, code=2).stderr
    assert said.count("Did you mean") == 1
    assert name in said.partition("Did you mean")[2]


def test_a_folder_here_is_told_of_where_the_hub_has_no_such_id(tmp_path, monkeypatch):
    (tmp_path / "my" / "folder").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with running_hub(tmp_path / "hub") as url:
        for word in ("my/foldr", "my/foldr@v1"):
            said = sdhub("inspect", word, home=tmp_path, endpoint=url, code=2).stderr
            assert "the Hub shows no model my/foldr" in said and "did you mean my/folder?" in said
        lora = sdhub("inspect", "demo", "--lora", "my/foldr:0.5", home=tmp_path, endpoint=url, code=2).stderr
        assert "did you mean my/folder?" in lora
        assert "spelling" in sdhub("inspect", "my/other", home=tmp_path, endpoint=url, code=2).stderr
    said = sdhub("inspect", "my/fol der", home=tmp_path, code=2).stderr
    assert "no such file or folder: my/fol der" in said and "did you mean my/folder?" in said


def test_inspect_names_the_loras_with_their_scales(tmp_path):
    from tests.checkpoint.test_lora import kohya

    kohya(tmp_path / "style.safetensors", 4.0)
    done = sdhub("inspect", "demo", "--lora", f"{tmp_path}/style.safetensors:0.5", home=tmp_path)
    assert re.search(r"LoRAs +style.safetensors × 0.5\n", done.stdout)


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
    python = installed("base-newest", requirements())
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


def test_what_a_watcher_knows_is_shown_whatever_it_watches(tmp_path):
    assert sdhub("watch", "--show", home=tmp_path).stdout == "Nothing was found yet.\n"
    assert "too much to watch" in sdhub("watch", "--once", home=tmp_path, code=2).stderr

"""A backend that another distribution brings, known by its entry point alone."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from huggingface_hub import hf_hub_download
from safetensors.torch import load_file

from tests.hubs import running_hub
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


BRIEF = """
import sdhub.analysis.analyzer as laboratory

laboratory.PROMPTS = laboratory.STEPS = 1
laboratory.LEAST = 200_000
from sdhub.cli import main

main()
"""  # an analysis of one call and few layers


@pytest.fixture(scope="module")
def run(python, tmp_path_factory):
    home = tmp_path_factory.mktemp("home")

    def sdhub(*arguments, program=("-m", "sdhub")):
        command = [str(python), *program, *arguments, "--json"]
        done = subprocess.run(command, env=environment(home), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return sdhub


def test_it_is_offered_and_planned(run):
    rows = {row["name"]: row["possible"] for row in run("inspect", "demo")["variants"]}
    assert rows["toy-half"] is True and "openvino-int8" in rows
    (planned,) = run("plan", "demo", "--variant", "toy-half", "--to", "me")["variants"]
    assert planned["repo"] == "me/emoji-sd-toy-half"


def test_it_is_published_and_checked_with_a_card(run, tmp_path):
    prompts = tmp_path / "prompts.json"
    prompts.write_text('["red heart"]')
    with running_hub(tmp_path / "hub") as url:
        call = ["--to", "me", "--hub", url, "--prompts", str(prompts), "--steps", "3"]
        (variant,) = run("publish", "demo", "--variant", "toy-half", *call)["variants"]
        at = hf_hub_download(variant["repo"], "README.md", endpoint=url, local_dir=tmp_path, token=False)
    assert variant["status"] == "published"
    assert variant["evidence"]["ssim"] == 1.0  # the checkpoint's own files have 16 bits
    assert "toy.txt" in {each["path"] for each in variant["files"]}
    card = Path(at).read_text(encoding="utf-8")
    assert "- toy\n" in card.partition("\n---\n")[0]
    assert "16-bit weights" in card and "pip install diffusers" in card
    assert 'pipe = StableDiffusionPipeline.from_pretrained("me/emoji-sd-toy-half")' in card.replace("'", '"')
    assert "were not run" in card  # `checks`: opened by sdhub, not by the card's lines


def test_it_is_analyzed_and_what_was_chosen_is_built_and_described(run, tmp_path):
    file, out = tmp_path / "mixed.json", tmp_path / "out"
    run("analyze", "demo", "--backend", "toy", "--budget", "6bits", "-o", str(file), program=("-c", BRIEF))
    recipe = json.loads(file.read_text())
    assert (recipe["name"], recipe["backend"]) == ("toy-mixed-6bit", "toy")
    layers = recipe["components"]["unet"]["layers"]
    bits = {each.get("bits", 16) for each in layers.values()}
    assert bits <= {4, 8, 16} and len(bits) > 1
    run("build", "demo", "--recipe", str(file), "-o", str(out))
    weights = load_file(next((out / "unet").glob("*.safetensors")))
    name = next(name for name, each in layers.items() if each.get("bits") == 4)
    rows = weights[f"{name}.weight"].flatten(1)
    assert max(len(row.unique()) for row in rows) <= 2**4
    card = run("card", str(out), "--source", "demo", "--repo", "me/mine")["card"]
    assert "me/mine" in card

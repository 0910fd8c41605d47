"""The analysis of the built-in checkpoint, small: predictions met, bytes repeated, resumed, carried to a
fine-tune."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from typer.testing import CliRunner

from sdhub.analysis import sensitivity
from sdhub.analysis.analyzer import SensitivityAnalyzer
from sdhub.core.work import Work
from sdhub.demo import emoji_sd
from sdhub.recipes.recipe import Calibration, ComponentRecipe, Float, Palette, Recipe, load_recipe
from sdhub.workflow.analyze import repair

SETTING = Calibration(
    prompts=("pear", "fox"),
    seed=50_000,
    steps=2,
    recorded=2,
    guidance=4.0,
    width=64,
    height=64,
    rows=64,
    block=256,
)
TREATMENTS = tuple(Palette(bits=bits, rounding="gptq") for bits in (2, 4, 6))
LAYERS = (
    "down_blocks.0.attentions.0.transformer_blocks.0.ff.net.0.proj",
    "mid_block.attentions.0.proj_in",
    "mid_block.resnets.0.time_emb_proj",
    "up_blocks.1.attentions.1.transformer_blocks.0.attn1.to_v",
    "up_blocks.1.resnets.1.conv_shortcut",
)
TEMPLATE = Recipe(name="coreml-4bit", backend="coreml", components={"unet": ComponentRecipe(default=Float())})


def loaded() -> Any:
    return StableDiffusionPipeline.from_pretrained(emoji_sd(), torch_dtype=torch.float32, safety_checker=None)


@pytest.fixture(scope="module")
def pipeline() -> Any:
    return loaded()


def sensitivity_analyzer(pipeline: Any, folder: Path, fingerprint: str = "0" * 64) -> SensitivityAnalyzer:
    analyzer = SensitivityAnalyzer(lambda: pipeline, "demo", fingerprint, SETTING, Work(folder))
    analyzer.layers = list(LAYERS)
    return analyzer


def made(analyzer: SensitivityAnalyzer) -> Recipe:
    analysis = analyzer.analysis(TREATMENTS)
    choice = analysis.within(analysis.size("4bits"))
    return analyzer.check(analysis, choice).recipe(choice, TEMPLATE, "coreml-mixed-4bit")


def test_what_is_predicted_is_measured(pipeline: Any, tmp_path: Path) -> None:
    analyzer = sensitivity_analyzer(pipeline, tmp_path)
    analysis = analyzer.analysis(TREATMENTS)
    before = pipeline.unet.get_submodule(LAYERS[0]).weight.detach().clone()
    for treatment in TREATMENTS[1:]:
        choice = analysis.uniform(treatment)
        checked = analyzer.check(analysis, choice)
        assert checked.measured_db(choice) == pytest.approx(analysis.predicted_db(choice), abs=4)
    assert torch.equal(pipeline.unet.get_submodule(LAYERS[0]).weight, before)
    assert analysis.calls == 2 * 2 * 3 and checked.calls == analysis.calls + 2 * 2


def test_two_runs_give_the_same_bytes_and_a_third_measures_nothing(
    pipeline: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = made(sensitivity_analyzer(pipeline, tmp_path / "one"))
    second = made(sensitivity_analyzer(pipeline, tmp_path / "two"))
    assert first.model_dump_json() == second.model_dump_json()
    monkeypatch.setattr(sensitivity, "sample", lambda *_: pytest.fail("sampled again"))
    assert made(sensitivity_analyzer(pipeline, tmp_path / "one")) == first


def test_a_recipe_serves_a_fine_tune_and_only_what_changed_is_repaired(pipeline: Any, tmp_path: Path) -> None:
    recipe = made(sensitivity_analyzer(pipeline, tmp_path))
    tuned = copy.deepcopy(pipeline)
    fine_tune(tuned, steps=200)
    analyzer = sensitivity_analyzer(tuned, tmp_path, "1" * 64)
    analysis = analyzer.analysis(TREATMENTS)
    choice, changed = repair(analysis, recipe)
    assert len(changed) <= 1
    assert analysis.bits(choice) <= recipe.analysis.bits + 0.01  # type: ignore[union-attr]
    drawn = analyzer.check(analysis, choice).measured_db(choice)
    assert drawn == pytest.approx(recipe.analysis.measured_db, abs=5)  # type: ignore[union-attr]


def fine_tune(pipeline: Any, steps: int) -> None:
    """Learn to draw latents of one kind: a few hundred steps on the denoiser's middle."""
    numbers = torch.Generator().manual_seed(3)
    unet = pipeline.unet.requires_grad_(False)
    middle = list(unet.mid_block.parameters())
    for weight in middle:
        weight.requires_grad_(True)
    optimizer = torch.optim.AdamW(middle, lr=1e-4)
    text = pipeline.encode_prompt("a fox in blue", "cpu", 1, False)[0].detach()
    picture = torch.randn(1, 4, 8, 8, generator=numbers)
    for _ in range(steps):
        noise = torch.randn(picture.shape, generator=numbers)
        moment = torch.randint(0, 1000, (1,), generator=numbers)
        noisy = pipeline.scheduler.add_noise(picture, noise, moment)
        loss = (unet(noisy, moment, encoder_hidden_states=text)[0] - noise).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def test_the_command_writes_a_recipe_and_a_curve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sdhub.backends.coreml.backend import BACKEND
    from sdhub.checkpoint.resolve import resolve
    from sdhub.cli.app import app

    monkeypatch.setenv("SDHUB_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("sdhub.analysis.analyzer.PROMPTS", 1)
    monkeypatch.setattr("sdhub.analysis.analyzer.STEPS", 1)
    monkeypatch.setattr("sdhub.analysis.analyzer.LEAST", 200_000)
    monkeypatch.setattr("sdhub.workflow.analyze.CURVE_CHECKS", ())
    file, apple, curve = (tmp_path / name for name in ("mixed.json", "apple.json", "curve.svg"))
    call = ["analyze", "demo", "--budget", "4bits", "--widths", "2,6", "-o", str(file), "--apple", str(apple)]
    ran = CliRunner().invoke(app, [*call, "--curve", str(curve), "--json"], catch_exceptions=False)
    assert ran.exit_code == 0
    recipe = load_recipe(file)
    BACKEND.accept(resolve("demo"), recipe)
    assert recipe.name == "coreml-mixed-4bit" and recipe.calibration is not None
    document = json.loads(ran.stdout)
    assert document["recipes"][0] == recipe.document()
    ours = recipe.components["unet"].layers
    (theirs,) = json.loads(apple.read_text())["recipes"].values()
    assert theirs == {name: each.bits for name, each in ours.items()}
    assert "effective bits per parameter of the whole denoiser" in curve.read_text()

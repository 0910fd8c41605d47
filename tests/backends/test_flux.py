"""FLUX from its shards: each format, made without loading the pipeline, draws nearly what the original draws."""

import json
from pathlib import Path

import pytest
import torch

from sdhub.backends.base import backend_of
from sdhub.backends.calibration import HUGE
from sdhub.backends.sdnq import BACKEND
from sdhub.backends.sdnq.build import layers_of
from sdhub.backends.streaming import stream
from sdhub.checkpoint.inspect import inspect
from sdhub.checkpoint.load import load
from sdhub.checkpoint.source import Source
from sdhub.core.endpoint import endpoint
from sdhub.core.errors import RecipeError
from sdhub.core.progress import SILENT
from sdhub.recipes.recipe import ComponentRecipe, LowRank
from sdhub.workflow import stages
from sdhub.workflow.variants import backend_of_folder
from tests.backends.flux import draw, flux_folder

UINT4 = LowRank(rank=16, residual="uint4", group_size=64)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return inspect(Source("folder", str(flux_folder(tmp_path_factory.mktemp("flux") / "flux"))))


@pytest.fixture(scope="module")
def drawn(checkpoint):
    return draw(load(checkpoint, Path(checkpoint.source.ref)))


def blind(checkpoint, variant):
    """The variant without calibration, with a small T5 treated as a large one is."""
    recipe = backend_of(variant).recipe(checkpoint, variant).uncalibrated()
    if variant.startswith("sdnq"):
        parts = {**recipe.components, "text_encoder_2": ComponentRecipe(default=UINT4)}
        recipe = recipe.model_copy(update={"components": parts})
    return recipe


@pytest.mark.parametrize(
    ("variant", "most"),
    [("svdquant-int4", 0.5), ("svdquant-nvfp4", 0.5), ("nunchaku-int4", 0.5), ("sdnq-uint4", 0.25)],
)
def test_it_is_made_from_files_alone(checkpoint, drawn, variant, most, tmp_path, monkeypatch):
    backend, recipe = backend_of(variant), blind(checkpoint, variant)
    assert backend.why_not(checkpoint, variant) is None
    backend.accept(checkpoint, recipe)
    assert backend.streams(checkpoint, recipe)
    monkeypatch.setattr(stages.measure, "load_base", None)
    out = tmp_path / "variant"
    out.mkdir()
    stages.build_variant(checkpoint, endpoint(None), backend.name, recipe, "cpu", out, SILENT)
    assert backend_of_folder(out) is backend
    again = draw(backend.open(out))
    off = float((again - drawn).norm() / drawn.norm())
    assert 0.001 < off < most
    assert "without calibration data" in " ".join(backend.notes(checkpoint, recipe))
    assert "bfloat16" in "\n".join(backend.usage(checkpoint.pipeline, "org/x"))
    if variant.startswith("sdnq"):
        config = json.loads((out / "text_encoder_2" / "config.json").read_text())
        assert config["quantization_config"]["quant_method"] == "sdnq"


def test_nothing_runs_flux_to_calibrate_it(checkpoint):
    import dataclasses

    huge = dataclasses.replace(checkpoint.component("transformer"), parameters=int(3 * HUGE))
    parts = tuple(huge if part.name == "transformer" else part for part in checkpoint.components)
    large = dataclasses.replace(checkpoint, components=parts)
    for variant in ("svdquant-int4", "nunchaku-nvfp4", "sdnq-uint4"):
        backend = backend_of(variant)
        recipe = backend.recipe(large, variant)
        assert recipe.name == variant
        assert recipe.calibration is None
        treatment = recipe.components["transformer"].default
        assert (treatment.rounding, treatment.smoothing) == ("round_to_nearest", False)
        backend.accept(large, recipe)
        assert backend.forecast(large, recipe).bytes < backend.forecast(large, recipe).peak_bytes


def test_a_large_t5_is_treated_as_its_code_allows(checkpoint):
    import dataclasses

    part = dataclasses.replace(checkpoint.component("text_encoder_2"), parameters=4_700_000_000)
    parts = tuple(part if each.name == part.name else each for each in checkpoint.components)
    component = BACKEND.recipe(dataclasses.replace(checkpoint, components=parts), "sdnq-uint4").components[
        part.name
    ]
    assert component.default.residual == "uint4"
    output = "encoder.block.1.layer.1.DenseReluDense.wo"
    assert (component.layers[output].bits, component.layers[output].symmetric) == (8, True)
    module, _ = stream(Path(checkpoint.source.ref), "text_encoder_2")
    chosen = layers_of(module, component)
    assert chosen[output].dtype == "int8"
    assert output not in layers_of(module, ComponentRecipe(default=UINT4))
    with pytest.raises(RecipeError, match="symmetric"):
        layers_of(module, ComponentRecipe(default=UINT4, layers={output: UINT4}))


@pytest.mark.parametrize(("variant", "most"), [("nunchaku-int4", 0.3), ("sdnq-uint4", 0.15)])
def test_a_calibrated_one_is_made_of_the_loaded_pipeline(checkpoint, drawn, variant, most, tmp_path):
    backend = backend_of(variant)
    recipe = backend.recipe(checkpoint, variant)
    brief = {"prompts": recipe.calibration.prompts[:1], "steps": 2, "recorded": 1, "width": 64, "height": 64}
    update = {"calibration": recipe.calibration.model_copy(update=brief)}
    if variant.startswith("sdnq"):
        update["components"] = {**recipe.components, "text_encoder_2": recipe.components["transformer"]}
    recipe = recipe.model_copy(update=update)
    assert not backend.streams(checkpoint, recipe)
    out = tmp_path / "variant"
    out.mkdir()
    stages.build_variant(checkpoint, endpoint(None), backend.name, recipe, "cpu", out, SILENT)
    off = float((draw(backend.open(out)) - drawn).norm() / drawn.norm())
    assert 0.001 < off < most
    assert torch.isfinite(drawn).all()

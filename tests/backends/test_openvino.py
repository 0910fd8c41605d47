"""The OpenVINO backend: counts of what was compressed, read from the graphs; sizes; refusals; same bytes twice."""

import dataclasses
import hashlib
import json
from types import SimpleNamespace

import pytest

from sdhub import stages
from sdhub.backends.base import backend_of, backends
from sdhub.backends.openvino.export import MODEL, vet_layers
from sdhub.endpoint import endpoint
from sdhub.errors import RecipeError, UnsupportedError
from sdhub.isolate import apart
from sdhub.progress import SILENT
from sdhub.recipes.recipe import Affine, Component, Float, Recipe
from sdhub.sources import resolve


@pytest.fixture(scope="module")
def checkpoint():
    return resolve("demo")


@pytest.fixture(scope="module")
def backend():
    return backends()["openvino"]


def build(backend, checkpoint, recipe, out):
    out.mkdir()
    apart(stages.build, checkpoint, endpoint(None), backend.name, recipe, out, progress=SILENT)
    return out


def hashes(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def recipe(backend, checkpoint):
    """The preset, but for two layers that stay in float16."""
    preset = backend.recipe(checkpoint, "openvino-int8")
    layers = {"conv_out": Float(), "mid_block.resnets.0.conv1": Float()}
    unet = Component(default=preset.components["unet"].default, layers=layers)
    return preset.model_copy(update={"components": {**preset.components, "unet": unet}})


@pytest.fixture(scope="module")
def int8(backend, checkpoint, recipe, tmp_path_factory):
    return build(backend, checkpoint, recipe, tmp_path_factory.mktemp("ov") / "int8")


def compressed_weights(folder):
    """How many constants hold 8-bit weights."""
    import openvino

    model = openvino.Core().read_model(folder / "openvino_model.xml")
    constants = [op for op in model.get_ops() if op.get_type_name() == "Constant"]
    integers = [op for op in constants if op.get_output_element_type(0).get_type_name() == "u8"]
    return sum(not op.get_friendly_name().endswith("/zero_point") for op in integers)


def test_counts_of_compressed_weights_per_component(int8):
    counts = {
        folder.name: compressed_weights(folder) for folder in sorted(int8.iterdir()) if (folder / MODEL).exists()
    }
    # The UNet has 119 weighted layers, of which the recipe keeps two in float16.
    assert counts == {"text_encoder": 20, "unet": 117, "vae_decoder": 0, "vae_encoder": 0}


def test_layout_is_optimum_intels(int8):
    names = {path.relative_to(int8).as_posix() for path in int8.rglob("*") if path.is_file()}
    for part in ("unet", "text_encoder", "vae_encoder", "vae_decoder"):
        assert {f"{part}/openvino_model.xml", f"{part}/openvino_model.bin", f"{part}/config.json"} <= names
    assert {"model_index.json", "openvino_config.json", "scheduler/scheduler_config.json"} <= names
    assert {"tokenizer/vocab.json", "tokenizer/merges.txt", "tokenizer/tokenizer.json"} <= names
    assert not any("safety_checker" in name or name.endswith(".safetensors") for name in names)


def test_no_local_path_is_left_in_the_configs(int8, checkpoint):
    for path in int8.rglob("*.json"):
        assert checkpoint.source.ref not in path.read_text()
    assert json.loads((int8 / "model_index.json").read_text())["_name_or_path"] == "emoji-sd"


def test_every_part_says_its_precision(int8):
    config = json.loads((int8 / "openvino_config.json").read_text())
    parts = config["quantization_config"]["quantization_configs"]
    assert {part: each["bits"] for part, each in parts.items()} == {"unet": 8, "text_encoder": 8}


def test_the_forecast_is_near_the_truth(backend, checkpoint, int8):
    forecast = backend.forecast(checkpoint, backend.recipe(checkpoint, "openvino-int8"))
    actual = sum(path.stat().st_size for path in int8.rglob("*") if path.is_file())
    assert 0.8 < forecast.bytes / actual < 1.25


def test_the_same_inputs_give_the_same_bytes(backend, checkpoint, recipe, int8, tmp_path):
    assert hashes(build(backend, checkpoint, recipe, tmp_path / "again")) == hashes(int8)


def test_a_layer_that_is_not_there_is_named(recipe):
    import torch

    unet = torch.nn.Module()
    unet.conv_out = torch.nn.Conv2d(1, 1, 1)
    with pytest.raises(RecipeError, match=r"unet has no layer mid_block\.resnets\.0\.conv1"):
        vet_layers(SimpleNamespace(unet=unet), recipe)


@pytest.mark.parametrize(
    ("treatment", "said"),
    [(Affine(bits=4), "8 bits"), (Affine(bits=8, group_size=64), "8 bits"), (Float(dtype="bfloat16"), "float16")],
)
def test_treatments_that_it_does_not_follow_are_refused_before_work(backend, checkpoint, treatment, said):
    recipe = backend.recipe(checkpoint, "openvino-int8")
    wrong = recipe.model_copy(update={"components": {**recipe.components, "unet": Component(default=treatment)}})
    with pytest.raises(UnsupportedError, match=said):
        backend.accept(checkpoint, wrong)


def test_components_must_match_the_checkpoint(backend, checkpoint):
    recipe = backend.recipe(checkpoint, "openvino-int8")
    parts = dict(recipe.components)
    parts["text_encoder_2"] = parts.pop("text_encoder")
    wrong = Recipe(name="openvino-x", backend="openvino", components=parts)
    with pytest.raises(RecipeError, match="text_encoder"):
        backend.accept(checkpoint, wrong)


def test_families_it_cannot_build_say_why(backend, checkpoint):
    from sdhub.checkpoint.families import FAMILIES

    flux = dataclasses.replace(checkpoint, family=FAMILIES["flux"], pipeline="FluxPipeline")
    inpainting = dataclasses.replace(checkpoint, traits=frozenset({"inpainting"}))
    assert "FLUX" in backend.why_not(flux, "openvino-int8")
    assert "inpainting" in backend.why_not(inpainting, "openvino-int8")
    assert backend.why_not(checkpoint, "openvino-int8") is None


def test_unknown_variants_name_the_known_ones():
    with pytest.raises(UnsupportedError) as refusal:
        backend_of("openvino-int3")
    assert "openvino-int8" in refusal.value.hint

"""The SDNQ backend on the built-in checkpoint: what it keeps, says and refuses; the same bytes twice."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file

from sdhub.backends.sdnq import BACKEND
from sdhub.backends.sdnq.build import layers_of
from sdhub.backends.sdnq.config import format_in
from sdhub.backends.sdnq.formats import Format
from sdhub.checkpoint.families import FAMILIES
from sdhub.checkpoint.resolve import resolve
from sdhub.core.errors import BuildError, RecipeError, UnsafeError, UnsupportedError
from sdhub.recipes.recipe import Affine, ComponentRecipe, Float, LowRank
from tests.backends.built import build, hashes, noise_predictions, recipe_for
from tests.backends.sdnq.sizes import stored_bytes

ATTENTION = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
CONVOLUTION = "up_blocks.1.resnets.1.conv_shortcut"
EIGHT = "mid_block.attentions.0.proj_in"
LAYERS = {
    ATTENTION: LowRank(rank=32, residual="uint4", group_size=64, rounding="gptq"),
    CONVOLUTION: LowRank(rank=32, residual="uint4", group_size=64, rounding="gptq"),
    EIGHT: Affine(bits=8, symmetric=True),
}


@pytest.fixture(scope="module")
def checkpoint():
    return resolve("demo")


@pytest.fixture(scope="module")
def variant(tmp_path_factory):
    return build(BACKEND, recipe_for(BACKEND, LAYERS), tmp_path_factory.mktemp("sdnq") / "variant")


def test_the_folder_is_diffusers_layout(variant):
    names = set(hashes(variant))
    assert {"model_index.json", "scheduler/scheduler_config.json", "tokenizer/vocab.json"} <= names
    assert {"unet/config.json", "unet/diffusion_pytorch_model.safetensors"} <= names
    assert {"text_encoder/model.safetensors", "vae/diffusion_pytorch_model.safetensors"} <= names
    assert not any(name.startswith(("safety_checker", "unet/.parts")) for name in names)


def test_quantized_layers_have_their_tensors_and_others_are_float16(variant):
    tensors = load_file(variant / "unet" / "diffusion_pytorch_model.safetensors")
    config = json.loads((variant / "unet" / "config.json").read_text())["quantization_config"]
    assert {name.rpartition(".")[0] for name in tensors if name.endswith(".scale")} == set(LAYERS)
    assert tensors[f"{ATTENTION}.weight"].dtype == torch.uint8
    assert tensors[f"{EIGHT}.weight"].dtype == torch.int8
    assert tensors["conv_in.weight"].dtype == torch.float16
    assert config["quant_method"] == "sdnq"
    assert config["quant_conv"] is True
    assert "conv_in.weight" in config["modules_to_not_convert"]
    assert format_in(config, ATTENTION) == Format("uint4", 64, 32)
    assert format_in(config, EIGHT) == Format("int8")


def test_it_predicts_nearly_the_noise_of_the_base(variant, checkpoint):
    from sdhub.core.endpoint import endpoint
    from sdhub.core.progress import SILENT
    from sdhub.workflow import measure

    assert BACKEND.recognizes(variant)
    base = noise_predictions(measure.load_base(checkpoint, endpoint(None), SILENT))
    opened = BACKEND.open(variant)
    off = noise_predictions(opened) - base
    assert 1e-4 < float(off.norm() / base.norm()) < 0.03
    assert opened.safety_checker is None


def test_the_same_inputs_give_the_same_bytes(variant, tmp_path):
    assert hashes(build(BACKEND, recipe_for(BACKEND, LAYERS), tmp_path / "again")) == hashes(variant)


def test_every_layer_that_gains_is_chosen():
    from diffusers import UNet2DConditionModel

    from sdhub.demo import emoji_sd

    unet = UNet2DConditionModel.from_pretrained(emoji_sd() / "unet")
    chosen = layers_of(unet, ComponentRecipe(default=LowRank(rank=32, residual="uint4", group_size=64)))
    left = {name for name, part in unet.named_modules() if hasattr(part, "weight") and part.weight.ndim > 1} - set(
        chosen
    )
    assert left == {"conv_in", "conv_out"}
    named = ComponentRecipe(
        default=LowRank(rank=32, residual="uint4"),
        layers={"conv_in": Affine(bits=8), "mid_block.resnets.0.conv1": Float()},
    )
    chosen = layers_of(unet, named)
    assert chosen["conv_in"] == Format("uint8")
    assert "mid_block.resnets.0.conv1" not in chosen
    with pytest.raises(RecipeError, match="no layer unheard"):
        layers_of(unet, ComponentRecipe(default=Float(), layers={"unheard": Float()}), where="x: unet")


def test_small_text_encoders_stay_and_large_ones_do_not(checkpoint):
    recipe = BACKEND.recipe(checkpoint, "sdnq-uint4")
    assert recipe.components["text_encoder"].default == Float()
    assert recipe.components["vae"].default == Float()
    assert recipe.components["unet"].default.rank == 32
    large = tuple(
        dataclasses.replace(part, parameters=4_700_000_000) if part.name == "text_encoder" else part
        for part in checkpoint.components
    )
    recipe = BACKEND.recipe(dataclasses.replace(checkpoint, components=large), "sdnq-uint4")
    assert recipe.components["text_encoder"].default.residual == "uint4"


def test_the_forecast_is_near_the_truth(checkpoint):
    from diffusers import UNet2DConditionModel

    from sdhub.demo import emoji_sd

    unet = UNet2DConditionModel.from_pretrained(emoji_sd() / "unet")
    for variant in ("sdnq-uint4", "sdnq-int8"):
        recipe = BACKEND.recipe(checkpoint, variant)
        layers = layers_of(unet, recipe.components["unet"])
        size = sum(
            stored_bytes(tuple(unet.get_submodule(name).weight.shape), each) for name, each in layers.items()
        )
        size += 2 * sum(part.numel() for part in unet.parameters())
        size -= 2 * sum(unet.get_submodule(name).weight.numel() for name in layers)
        rest = sum(2 * part.parameters for part in checkpoint.components if part.name != "unet")
        assert 0.8 < BACKEND.forecast(checkpoint, recipe).bytes / (size + rest) < 1.25


def test_what_it_cannot_follow_is_refused_before_work(checkpoint):
    recipe = BACKEND.recipe(checkpoint, "sdnq-uint4")
    parts = dict(recipe.components)
    with pytest.raises(UnsupportedError, match="VAE"):
        BACKEND.accept(
            checkpoint,
            recipe.model_copy(update={"components": {**parts, "vae": ComponentRecipe(default=Affine(bits=8))}}),
        )
    with pytest.raises(UnsupportedError, match=r"unet\.default: .*4 or 8 bits"):
        BACKEND.accept(
            checkpoint,
            recipe.model_copy(update={"components": {**parts, "unet": ComponentRecipe(default=Affine(bits=6))}}),
        )
    del parts["vae"]
    with pytest.raises(RecipeError, match="vae is not said"):
        BACKEND.accept(checkpoint, recipe.model_copy(update={"components": parts}))
    other = dataclasses.replace(checkpoint, family=FAMILIES["pixart"])
    assert "PixArt" in BACKEND.why_not(other, "sdnq-uint4")
    assert BACKEND.why_not(checkpoint, "sdnq-uint4") is None


def test_broken_variants_are_refused(variant, tmp_path):
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(variant, broken)
    path = broken / "unet" / "config.json"
    document = json.loads(path.read_text())
    document["quantization_config"]["use_hadamard"] = True
    path.write_text(json.dumps(document))
    with pytest.raises(BuildError, match="use_hadamard"):
        BACKEND.open(broken)
    index = json.loads((broken / "model_index.json").read_text())
    index["unet"] = ["my_code", "Unet"]
    (broken / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(UnsafeError, match=r"unet is my_code\.Unet"):
        BACKEND.open(broken)
    assert not BACKEND.recognizes(tmp_path)


def test_a_fused_text_encoder_is_the_one_that_is_saved(checkpoint, tmp_path):
    """`sdnq` saves text encoders by way of transformers: nothing of a LoRA but its sum is in the files."""
    from safetensors.torch import save_file

    from sdhub.core.endpoint import endpoint
    from sdhub.core.progress import SILENT
    from sdhub.workflow import measure

    layer = "text_model.encoder.layers.1.self_attn.q_proj"
    name, (up, down) = f"lora_te_{layer.replace('.', '_')}", (torch.randn(128, 4), torch.randn(4, 128))
    save_file({f"{name}.lora_up.weight": up, f"{name}.lora_down.weight": down}, tmp_path / "te.safetensors")
    fused = resolve("demo", [str(tmp_path / "te.safetensors")])
    assert fused.name != checkpoint.name
    (tmp_path / "variant").mkdir()
    pipeline = measure.load_base(fused, endpoint(None), SILENT)
    BACKEND.build(fused, pipeline, recipe_for(BACKEND, LAYERS, calibrated=False), tmp_path / "variant", SILENT)
    base = measure.load_base(checkpoint, endpoint(None), SILENT).text_encoder.state_dict()
    saved = load_file(tmp_path / "variant" / "text_encoder" / "model.safetensors")
    assert set(saved) == set(base)
    changed = {key for key in base if not torch.allclose(base[key].half(), saved[key], atol=1e-3)}
    assert [key.removesuffix(".weight")[-16:] for key in changed] == [layer[-16:]]
    (key,) = changed
    assert torch.allclose(saved[key].float(), base[key] + up @ down, rtol=1e-3, atol=1e-3)


def test_a_component_that_would_be_saved_under_other_names_is_refused(tmp_path):
    from sdhub.backends.folder import prove_saved
    from tests.checkpoint.tiny import tiny_text_encoder

    encoder = tiny_text_encoder()
    encoder.save_pretrained(tmp_path / "text_encoder")
    prove_saved(encoder, tmp_path / "text_encoder")
    path = tmp_path / "text_encoder" / "model.safetensors"
    tensors = load_file(path)
    first = next(iter(tensors))
    from safetensors.torch import save_file

    foreign = {f"text_base_model.{key}" if key == first else key: each for key, each in tensors.items()}
    save_file(foreign, path, {"format": "pt"})
    with pytest.raises(BuildError, match="not saved whole"):
        prove_saved(encoder, tmp_path / "text_encoder")
    save_file({key: each + 1 for key, each in tensors.items()}, path, {"format": "pt"})
    with pytest.raises(BuildError, match="is another"):
        prove_saved(encoder, tmp_path / "text_encoder")

"""The SVDQuant backend on the built-in checkpoint: what it keeps, says and refuses; the same bytes twice."""

import dataclasses
import json
from types import MappingProxyType

import pytest
from safetensors.torch import load_file

from sdhub.backends.svdquant import BACKEND
from sdhub.checkpoint.families import FAMILIES
from sdhub.checkpoint.resolve import resolve
from sdhub.core.errors import RecipeError, UnsupportedError
from sdhub.recipes.recipe import Affine, ComponentRecipe, LowRank
from tests.backends.built import build, hashes, noise_predictions, recipe_for
from tests.backends.svdquant.test_lite import SD15

BLOCK = "mid_block.attentions.0.transformer_blocks.0"
INT4 = LowRank(rank=32, residual="int4", group_size=64, activations="int4", smoothing=True, rounding="gptq")
LAYERS = {f"{BLOCK}.attn1.to_q": INT4, f"{BLOCK}.attn2.to_k": INT4, f"{BLOCK}.ff.net.2": INT4}


@pytest.fixture(scope="module")
def checkpoint():
    return resolve("demo")


@pytest.fixture(scope="module")
def variant(tmp_path_factory):
    return build(BACKEND, recipe_for(BACKEND, LAYERS), tmp_path_factory.mktemp("svdquant") / "variant")


def test_targets_and_tensors(variant):
    tensors = load_file(variant / "unet" / "diffusion_pytorch_model.safetensors")
    config = json.loads((variant / "unet" / "config.json").read_text())["quantization_config"]
    assert config["svdq_w4a4"]["targets"] == sorted(LAYERS)
    assert {name.rpartition(".")[0] for name in tensors if name.endswith(".qweight")} == set(LAYERS)
    assert f"{BLOCK}.attn1.to_q.weight" not in tensors
    assert f"{BLOCK}.attn1.to_q.bias" not in tensors
    assert f"{BLOCK}.ff.net.2.bias" in tensors
    assert f"{BLOCK}.ff.net.0.proj.weight" in tensors


def test_it_predicts_nearly_the_noise_of_the_base(variant, checkpoint):
    from sdhub.core.endpoint import endpoint
    from sdhub.core.progress import SILENT
    from sdhub.workflow import measure

    assert BACKEND.recognizes(variant)
    base = noise_predictions(measure.load_base(checkpoint, endpoint(None), SILENT))
    off = noise_predictions(BACKEND.open(variant)) - base
    assert 1e-4 < float(off.norm() / base.norm()) < 0.03


def test_the_same_inputs_give_the_same_bytes(variant, tmp_path):
    assert hashes(build(BACKEND, recipe_for(BACKEND, LAYERS), tmp_path / "again")) == hashes(variant)


def test_data_free_is_possible_and_said(checkpoint, tmp_path):
    recipe = recipe_for(BACKEND, LAYERS, calibrated=False)
    assert BACKEND.recognizes(build(BACKEND, recipe, tmp_path / "blind"))
    assert "without calibration data" in " ".join(BACKEND.notes(checkpoint, recipe))


def test_checkpoints_that_gain_little_are_told_what_gains(checkpoint):
    unet = checkpoint.component("unet")
    sd15 = dataclasses.replace(unet, config=MappingProxyType(SD15), parameters=859_520_964)
    parts = tuple(sd15 if part.name == "unet" else part for part in checkpoint.components)
    reason = BACKEND.why_not(dataclasses.replace(checkpoint, components=parts), "svdquant-int4")
    assert "27%" in reason
    assert "1.4 of 1.7 GB" in reason
    assert "sdnq-uint4" in reason
    assert BACKEND.why_not(checkpoint, "svdquant-int4") is None
    assert BACKEND.why_not(checkpoint, "svdquant-nvfp4") is None
    other = dataclasses.replace(checkpoint, family=FAMILIES["pixart"])
    assert "PixArt" in BACKEND.why_not(other, "svdquant-int4")


def test_other_ranks_have_names_of_their_own(checkpoint):
    recipe = BACKEND.recipe(checkpoint, "svdquant-nvfp4-r64")
    assert BACKEND.knows(recipe.name)
    assert "rank 64" in BACKEND.describe(recipe.name)
    assert recipe.components["unet"].default.rank == 64
    BACKEND.accept(checkpoint, recipe)
    assert not any(map(BACKEND.knows, ("svdquant-int4-r32", "svdquant-int4-r48", "sdnq-uint4-r64", "svdquant")))


def test_what_it_cannot_follow_is_refused_before_work(checkpoint):
    recipe = BACKEND.recipe(checkpoint, "svdquant-int4")
    BACKEND.accept(checkpoint, recipe)
    parts = dict(recipe.components)
    with pytest.raises(UnsupportedError, match="denoiser"):
        wrong = {**parts, "text_encoder": ComponentRecipe(default=Affine(bits=8))}
        BACKEND.accept(checkpoint, recipe.model_copy(update={"components": wrong}))
    with pytest.raises(UnsupportedError, match="one type and one rank"):
        other = INT4.model_copy(update={"rank": 16})
        wrong = {**parts, "unet": ComponentRecipe(default=INT4, layers={f"{BLOCK}.ff.net.2": other})}
        BACKEND.accept(checkpoint, recipe.model_copy(update={"components": wrong}))
    del parts["vae"]
    with pytest.raises(RecipeError, match="vae is not said"):
        BACKEND.accept(checkpoint, recipe.model_copy(update={"components": parts}))


def test_the_card_says_which_gpus_and_warns(checkpoint):
    notes = {
        variant: " ".join(BACKEND.notes(checkpoint, BACKEND.recipe(checkpoint, variant)))
        for variant in BACKEND.variants
    }
    assert "Ada" in notes["svdquant-int4"]
    assert "Blackwell" in notes["svdquant-nvfp4"]
    for text in notes.values():
        assert "Hopper" in text
        assert "another project" in text
        assert "2411.05007" in text
    lines = "\n".join(BACKEND.usage("StableDiffusionPipeline", "org/x"))
    assert "DIFFUSERS_TRUST_REMOTE_KERNELS" in lines
    assert "nunchaku" not in BACKEND.install


def test_a_fused_lora_is_in_the_text_encoder_and_in_layers_of_either_kind(checkpoint, tmp_path):
    """Scale, alpha and rank of the file: in 16 bits to their rounding, in 4 bits nearer than what is added."""
    import torch
    from safetensors.torch import save_file

    from sdhub.core.endpoint import endpoint
    from sdhub.core.progress import SILENT
    from sdhub.workflow import measure

    generator = torch.Generator().manual_seed(2)
    text = "text_model.encoder.layers.1.self_attn.q_proj"
    quantized, kept = f"{BLOCK}.attn1.to_q", f"{BLOCK}.attn1.to_k"
    base = measure.load_base(checkpoint, endpoint(None), SILENT)
    (key,) = (name for name in base.text_encoder.state_dict() if name.endswith(f"{text[-27:]}.weight"))
    weights = {
        f"lora_te_{text.replace('.', '_')}": base.text_encoder.state_dict()[key],
        f"lora_unet_{quantized.replace('.', '_')}": base.unet.get_submodule(quantized).weight.detach(),
        f"lora_unet_{kept.replace('.', '_')}": base.unet.get_submodule(kept).weight.detach(),
    }
    tensors, wanted, added = {}, [], []
    for rank, (name, weight) in enumerate(weights.items(), start=2):
        up, down = (
            torch.randn(size, generator=generator) for size in ((len(weight), rank), (rank, weight.shape[1]))
        )
        up *= 4 * weight.std() / rank
        tensors |= {f"{name}.lora_up.weight": up, f"{name}.lora_down.weight": down}
        tensors[f"{name}.alpha"] = torch.tensor(3.0)
        added.append(0.5 * 3.0 / rank * up @ down)
        wanted.append(weight + added[-1])
    save_file(tensors, tmp_path / "style.safetensors")
    fused = resolve("demo", [f"{tmp_path / 'style.safetensors'}:0.5"])
    assert BACKEND.why_not(fused, "svdquant-int4") == BACKEND.why_not(checkpoint, "svdquant-int4")
    out = tmp_path / "variant"
    out.mkdir()
    pipeline = measure.load_base(fused, endpoint(None), SILENT)
    BACKEND.build(fused, pipeline, recipe_for(BACKEND, LAYERS, calibrated=False), out, SILENT)
    saved = load_file(out / "text_encoder" / "model.safetensors")[key]
    opened = BACKEND.open(out).unet
    four = opened.get_submodule(quantized)
    assert (saved.float() - wanted[0]).abs().max() <= 2**-11 * wanted[0].abs().max()
    other = opened.get_submodule(kept).weight
    assert (other - wanted[2]).abs().max() <= 2**-11 * wanted[2].abs().max()
    found = four.residual / four.smooth + four.up @ four.down
    assert (found - wanted[1]).norm() < 0.15 * added[1].norm()
    rest = load_file(out / "text_encoder" / "model.safetensors")
    same = base.text_encoder.state_dict()
    assert {name for name in rest if not torch.equal(rest[name], same[name].half())} == {key}

"""The built-in checkpoint as Core ML packages, in Apple's layout, drawn with through diffusers' own loop."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from sdhub.backends.coreml.backend import BACKEND
from sdhub.backends.coreml.interpreter import open_package
from sdhub.backends.coreml.pipeline import Autoencoder, Denoiser, ProjectedTextEncoder, TextEncoder
from sdhub.checkpoint.checkpoint import Checkpoint
from sdhub.checkpoint.resolve import resolve
from sdhub.core.endpoint import endpoint
from sdhub.core.errors import BuildError, RecipeError, UnsupportedError
from sdhub.core.progress import SILENT
from sdhub.evidence.metrics import psnr
from sdhub.evidence.sampling import Prompt, Sampling, draw
from sdhub.recipes.adjust import Adjustment
from sdhub.recipes.recipe import Affine, ComponentRecipe, Palette, Recipe
from sdhub.workflow import measure

ATTENTIONS = ("original", "split_einsum", "split_einsum_v2")
SAMPLING = Sampling((Prompt("pizza", 1),), steps=6, guidance=4.0, width=64, height=64)


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return resolve("demo")


@pytest.fixture(scope="module")
def base(checkpoint: Checkpoint) -> Any:
    return measure.load_base(checkpoint, endpoint(None), SILENT)


@pytest.fixture(scope="module")
def folder(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """coreml-fp16 with all attentions."""
    out = tmp_path_factory.mktemp("coreml")
    pipeline = measure.load_base(checkpoint, endpoint(None), SILENT)
    BACKEND.build(checkpoint, pipeline, recipe(checkpoint, "coreml-fp16"), out, SILENT)
    return out


def recipe(checkpoint: Checkpoint, variant: str) -> Recipe:
    return Adjustment(attention=ATTENTIONS).apply(BACKEND.recipe(checkpoint, variant))


def changed(made: Recipe, treatment: Any) -> Recipe:
    return made.model_copy(update={"components": {**made.components, "unet": ComponentRecipe(default=treatment)}})


def snr(wanted: torch.Tensor, got: torch.Tensor) -> float:
    return float(20 * torch.log10(wanted.norm() / (wanted - got).norm()))


def test_the_layout_is_apples(folder: Path, checkpoint: Checkpoint) -> None:
    for attention in ATTENTIONS:
        found = {path.name for path in (folder / attention / "packages").iterdir()}
        parts = ("text_encoder", "unet", "vae_decoder", "vae_encoder")
        packages = {f"Stable_Diffusion_version_emoji-sd_{part}.mlpackage" for part in parts}
        assert found == packages | {"vocab.json", "merges.txt"}
    names = [path.name for path in BACKEND.bundles(folder, "coreml-emoji-sd-fp16").values()]
    assert names == ["packages"] * 3
    assert "coreml-emoji-sd-fp16_original_packages.zip" in BACKEND.bundles(folder, "coreml-emoji-sd-fp16")
    assert json.loads((folder / "unet" / "config.json").read_text())["sample_size"] == 16
    assert not list(folder.rglob("*.safetensors"))


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_noise_and_metadata_of_each_attention(folder: Path, base: Any, attention: str) -> None:
    package = open_package(folder / attention / "packages" / "Stable_Diffusion_version_emoji-sd_unet.mlpackage")
    assert package.metadata["attention_implementation"] == attention.upper()
    assert package.metadata["source"] == "emoji-sd"
    assert package.metadata["prediction_type"] == "epsilon"
    generator = torch.Generator().manual_seed(1)
    sample = torch.randn(2, 4, 16, 16, generator=generator).half()
    states = torch.randn(2, 77, base.unet.config.cross_attention_dim, generator=generator).half()
    for timestep in (999.0, 500.0, 1.0):
        given = {
            "sample": sample,
            "timestep": torch.tensor([timestep] * 2).half(),
            "encoder_hidden_states": states.transpose(1, 2)[:, :, None].contiguous(),
        }
        with torch.no_grad():
            wanted = base.unet(sample.float(), given["timestep"].float(), states.float()).sample
        assert snr(wanted, package.run(given)["noise_pred"]) >= 45


def test_pictures_are_the_bases(folder: Path, base: Any) -> None:
    assert BACKEND.recognizes(folder)
    wanted = draw(base, SAMPLING.prompts[0], SAMPLING)
    got = draw(BACKEND.open(folder), SAMPLING.prompts[0], SAMPLING)
    assert psnr(wanted.image, got.image, peak=1.0) >= 35


def test_a_class_that_is_not_known_is_refused(folder: Path, tmp_path: Path) -> None:
    for name in ("model_index.json", "scheduler", "tokenizer", "unet", "vae", "text_encoder", "original"):
        (tmp_path / name).symlink_to(folder / name)
    index = json.loads((folder / "model_index.json").read_text())
    (tmp_path / "model_index.json").unlink()
    (tmp_path / "model_index.json").write_text(json.dumps({**index, "scheduler": ["os", "system"]}))
    from sdhub.backends.coreml.pipeline import assemble

    with pytest.raises(BuildError, match="'system', which sdhub does not know"):
        assemble(tmp_path, {})


def test_batches_are_padded_and_parted() -> None:
    calls: list[tuple[int, ...]] = []

    def run(inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        calls.append(tuple(inputs["z"].shape))
        return {"image": inputs["z"] * 2}

    model = Autoencoder("vae_decoder", {}, {"z": (2, 1, 4, 4)}, run)
    values = torch.arange(3 * 16.0).view(3, 1, 4, 4)
    assert torch.equal(model.decode(values, return_dict=False)[0], 2 * values)
    assert calls == [(2, 1, 4, 4)] * 2
    with pytest.raises(BuildError, match="takes z of shape"):
        model.decode(torch.zeros(1, 1, 8, 8))


def test_inputs_are_laid_out_as_the_contract_says() -> None:
    seen: dict[str, torch.Tensor] = {}

    def run(inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        seen.update(inputs)
        return {"noise_pred": inputs["sample"]}

    shapes = {"sample": (2, 4, 8, 8), "timestep": (2,), "encoder_hidden_states": (2, 6, 1, 77)}
    states = torch.randn(2, 77, 6)
    Denoiser("unet", {}, shapes, run)(torch.zeros(2, 4, 8, 8), torch.tensor(7), states)
    assert torch.equal(seen["timestep"], torch.tensor([7.0, 7.0]))
    assert torch.equal(seen["encoder_hidden_states"][0, :, 0], states[0].T)


def test_text_encoders_answer_as_both_kinds_of_pipelines_read_them() -> None:
    hidden, pooled = torch.randn(1, 77, 6), torch.randn(1, 6)
    usual = TextEncoder(
        "t", {}, {"input_ids": (1, 77)}, lambda _: {"last_hidden_state": hidden, "pooled_outputs": pooled}
    )
    wide = ProjectedTextEncoder(
        "t", {}, {"input_ids": (1, 77)}, lambda _: {"hidden_embeds": hidden, "pooled_outputs": pooled}
    )
    ids = torch.zeros(1, 77, dtype=torch.long)
    assert torch.equal(usual(ids)[0], hidden)
    assert torch.equal(wide(ids, output_hidden_states=True)[0], pooled)
    assert torch.equal(wide(ids, output_hidden_states=True).hidden_states[-2], hidden)


@pytest.mark.parametrize(
    ("treatment", "error"),
    [
        (Affine(bits=4), UnsupportedError),
        (Affine(bits=8, group_size=64), UnsupportedError),
        (Affine(bits=8, activations="int8"), UnsupportedError),
    ],
)
def test_what_core_ml_cannot_hold_is_refused(
    checkpoint: Checkpoint, treatment: Any, error: type[Exception]
) -> None:
    with pytest.raises(error, match="unet"):
        BACKEND.accept(checkpoint, changed(recipe(checkpoint, "coreml-6bit"), treatment))


def test_sizes_are_multiples_of_64(checkpoint: Checkpoint) -> None:
    made = Adjustment(sizes=((512, 520),)).apply(BACKEND.recipe(checkpoint, "coreml-fp16"))
    with pytest.raises(RecipeError, match="512 x 520"):
        BACKEND.accept(checkpoint, made)


def test_presets_are_accepted_and_forecast_smaller_with_fewer_bits(checkpoint: Checkpoint) -> None:
    sizes = []
    for variant in ("coreml-fp16", "coreml-8bit", "coreml-6bit", "coreml-4bit"):
        made = BACKEND.recipe(checkpoint, variant)
        BACKEND.accept(checkpoint, made)
        assert (made.calibration is None) == (variant == "coreml-fp16")
        sizes.append(BACKEND.forecast(checkpoint, made).bytes)
    assert sizes == sorted(sizes, reverse=True)


def test_the_least_system_is_on_the_card(checkpoint: Checkpoint) -> None:
    plain, grouped = (
        " ".join(BACKEND.notes(checkpoint, BACKEND.recipe(checkpoint, variant)))
        for variant in ("coreml-4bit", "coreml-4bit-grouped")
    )
    assert "iOS 16" in plain
    assert "iOS 18" in grouped
    three = changed(BACKEND.recipe(checkpoint, "coreml-4bit"), Palette(bits=3))
    assert "iOS 18" in " ".join(BACKEND.notes(checkpoint, three))

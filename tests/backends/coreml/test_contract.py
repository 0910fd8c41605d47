"""The contract with Apple's apps: every model's names, shapes and types, and that it computes what torch does.

Names, shapes and types are written out here from apple/ml-stable-diffusion (`torch2coreml.py`, `Unet.swift`,
`TextEncoder.swift`, `SafetyChecker.swift`), with the widths of the small models.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from sdhub.backends.coreml import specs
from sdhub.backends.coreml.convert import convert_component
from sdhub.backends.coreml.interpreter import open_package
from sdhub.backends.coreml.specs import ComponentSpec, Shape, WrapOptions
from sdhub.core.errors import UnsupportedError, UsageError
from tests.backends.coreml import models

HALF, FULL = "float16", "float32"
SMALL = Shape(64, 64)
LATENT = (HALF, (2, 4, 8, 8))
TIMES = (HALF, (2,))
STATES = (HALF, (2, 48, 1, 77))
UNET = {"sample": LATENT, "timestep": TIMES, "encoder_hidden_states": STATES}
NOISE = {"noise_pred": (FULL, (2, 4, 8, 8))}
IDS = {"input_ids": (FULL, (1, 77))}
RESIDUALS = ((2, 32, 8, 8), (2, 32, 8, 8), (2, 32, 4, 4), (2, 64, 4, 4), (2, 64, 4, 4))


class Case(NamedTuple):
    make: Callable[[], Any]
    spec: ComponentSpec
    run: models.Run
    inputs: dict[str, tuple[str, tuple[int, ...]]]
    outputs: dict[str, tuple[str, tuple[int, ...]]]
    attention: str = "original"
    shape: Shape = SMALL


def residuals(kind: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {f"additional_residual_{index}": (kind, shape) for index, shape in enumerate(RESIDUALS)}


def large(kind: str) -> tuple[str, tuple[int, ...]]:
    return kind, (2, 4, 24, 32)


def text_encoder(name: str, *, wide: bool) -> ComponentSpec:
    return specs.text_encoder(name, "", wide=wide)


HIDDEN = {"last_hidden_state": (FULL, (1, 77, 16)), "pooled_outputs": (FULL, (1, 16))}
HIDDEN_XL = {"hidden_embeds": (FULL, (1, 77, 16)), "pooled_outputs": (FULL, (1, 16))}
ADDED = {"time_ids": (HALF, (2, 6)), "text_embeds": (HALF, (2, 20))}

CASES = {
    "SD 1, original": Case(models.unet, specs.unet(), models.run_unet, UNET, NOISE),
    "SD 1, split_einsum": Case(models.unet, specs.unet(), models.run_unet, UNET, NOISE, "split_einsum"),
    "SD 1, split_einsum_v2, 256 x 192": Case(
        models.unet,
        specs.unet(),
        models.run_unet,
        {**UNET, "sample": large(HALF)},
        {"noise_pred": large(FULL)},
        "split_einsum_v2",
        Shape(256, 192),
    ),
    "SD 1, one at a time": Case(
        models.unet,
        specs.unet(),
        models.run_unet,
        {
            "sample": (HALF, (1, 4, 8, 8)),
            "timestep": (HALF, (1,)),
            "encoder_hidden_states": (HALF, (1, 48, 1, 77)),
        },
        {"noise_pred": (FULL, (1, 4, 8, 8))},
        shape=Shape(64, 64, batch=1),
    ),
    "SD 1 inpainting": Case(
        lambda: models.unet(in_channels=9),
        specs.unet(),
        models.run_unet,
        {**UNET, "sample": (HALF, (2, 9, 8, 8))},
        NOISE,
    ),
    "SD 2, linear projections": Case(
        lambda: models.unet(use_linear_projection=True, upcast_attention=True, attention_head_dim=(2, 4)),
        specs.unet(),
        models.run_unet,
        UNET,
        NOISE,
        "split_einsum",
    ),
    "SDXL": Case(
        lambda: models.unet_xl(6), specs.unet(6), models.run_unet, {**UNET, **ADDED}, NOISE, "split_einsum"
    ),
    "SDXL refiner": Case(
        lambda: models.unet_xl(5),
        specs.unet(5),
        models.run_unet,
        {**UNET, **ADDED, "time_ids": (HALF, (2, 5))},
        NOISE,
    ),
    "latent consistency": Case(
        lambda: models.unet(time_cond_proj_dim=24), specs.unet(), models.run_lcm, UNET, NOISE
    ),
    "student without a middle": Case(models.student, specs.unet(), models.run_unet, UNET, NOISE, "split_einsum"),
    "controlled": Case(
        models.unet,
        specs.unet(controlled=True),
        models.run_unet,
        {**UNET, **residuals(HALF)},
        NOISE,
        "split_einsum",
    ),
    "ControlNet": Case(
        lambda: models.control_net(models.unet()),
        specs.controlnet(),
        models.run_control_net,
        {**UNET, "controlnet_cond": (HALF, (2, 3, 64, 64))},
        residuals(FULL),
        "split_einsum",
    ),
    "text encoder": Case(models.text, text_encoder("text_encoder", wide=False), models.run_text, IDS, HIDDEN),
    "text encoder with an old end token": Case(
        lambda: models.text(eos_token_id=2), text_encoder("text_encoder", wide=False), models.run_text, IDS, HIDDEN
    ),
    "SDXL, first text encoder": Case(
        models.text, text_encoder("text_encoder", wide=True), models.run_text_xl, IDS, HIDDEN_XL
    ),
    "SDXL, second text encoder": Case(
        lambda: models.text_2(),
        text_encoder("text_encoder_2", wide=True),
        models.run_text_xl,
        IDS,
        {"hidden_embeds": (FULL, (1, 77, 24)), "pooled_outputs": (FULL, (1, 20))},
    ),
    "VAE decoder": Case(
        models.vae,
        specs.vae_decoder(),
        models.run_decoder,
        {"z": (HALF, (1, 4, 32, 64))},
        {"image": (FULL, (1, 3, 64, 128))},
        shape=Shape(128, 64, scale=2),
    ),
    "VAE decoder, 32 bits": Case(
        models.vae,
        specs.vae_decoder(half=False),
        models.run_decoder,
        {"z": (FULL, (1, 4, 32, 32))},
        {"image": (FULL, (1, 3, 64, 64))},
        shape=Shape(64, 64, scale=2),
    ),
    "VAE encoder": Case(
        models.vae,
        specs.vae_encoder(),
        models.run_encoder,
        {"x": (HALF, (1, 3, 64, 64))},
        {"latent": (FULL, (1, 8, 32, 32))},
        shape=Shape(64, 64, scale=2),
    ),
    "tiny VAE, decoder": Case(
        models.tiny_autoencoder,
        specs.vae_decoder(scaled=0.5),
        models.run_tiny_decoder,
        {"z": (HALF, (1, 4, 32, 32))},
        {"image": (FULL, (1, 3, 64, 64))},
        shape=Shape(64, 64, scale=2),
    ),
    "tiny VAE, encoder": Case(
        models.tiny_autoencoder,
        specs.vae_encoder(scaled=0.5),
        models.run_tiny_encoder,
        {"x": (HALF, (1, 3, 64, 64))},
        {"latent": (FULL, (1, 8, 32, 32))},
        shape=Shape(64, 64, scale=2),
    ),
    "safety checker": Case(
        models.checker,
        specs.safety_checker(),
        models.run_checker,
        {
            "clip_input": (HALF, (1, 3, 32, 32)),
            "images": (HALF, (1, 64, 64, 3)),
            "adjustment": (HALF, (1,)),
        },
        {
            "filtered_images": (FULL, (1, 64, 64, 3)),
            "has_nsfw_concepts": (FULL, (1, 1, 1, 1)),
            "concept_scores": (FULL, (1, 17)),
        },
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_contract(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    model = case.make()
    options = WrapOptions(attention=case.attention)
    built = convert_component(case.spec, model, tmp_path / "a.mlpackage", shape=case.shape, options=options)
    package = open_package(*built.paths)
    assert {each: (it.dtype, it.shape) for each, it in package.inputs.items()} == case.inputs
    assert {each: (it.dtype, it.shape) for each, it in package.outputs.items()} == case.outputs
    assert list(package.inputs) == list(case.inputs)
    assert built.target == "iOS16"
    given = models.draw({each: (it.shape, getattr(torch, it.dtype)) for each, it in package.inputs.items()})
    found = package.run(given)
    with torch.no_grad():
        wanted = case.run(model, {each: value.float() for each, value in given.items()})
    for (output, value), want in zip(found.items(), wanted, strict=True):
        assert value.shape == want.shape
        assert models.snr(value, want) >= 55, output
    rounded = open_package(*built.paths, precision="float16").run(given)
    assert models.snr(next(iter(rounded.values())), wanted[0]) >= 45
    # MochiDiffusion takes a UNet with `einsum` operations for one of the Neural Engine.
    assert (b"einsum" in _program(*built.paths)) == (case.spec.attention and case.attention != "original")


def _program(path: Path) -> bytes:
    return (path / "Data/com.apple.CoreML/model.mlmodel").read_bytes()


def test_which_models_a_checkpoint_has() -> None:
    def names(family: str, *parts: str, **more: Any) -> list[str]:
        return [spec.name for spec in specs.specs_of(family, parts, **more)]

    assert names("sd1", "unet", "vae", "text_encoder", "safety_checker") == [
        "text_encoder",
        "unet",
        "vae_decoder",
        "vae_encoder",
        "safety_checker",
    ]
    assert names("sdxl-refiner", "unet", "vae", "text_encoder_2")[:2] == ["text_encoder_2", "unet"]
    assert "control-unet" in names("sd2", "unet", controlled=True)
    with pytest.raises(UnsupportedError, match="flux"):
        specs.specs_of("flux", ["vae"])
    bundles = {
        spec.name: spec.bundle for spec in specs.specs_of("sdxl", ["text_encoder", "text_encoder_2", "vae"])
    }
    assert bundles == {
        "text_encoder": "TextEncoder",
        "text_encoder_2": "TextEncoder2",
        "vae_decoder": "VAEDecoder",
        "vae_encoder": "VAEEncoder",
    }


def test_the_vae_of_sdxl_has_32_bits_unless_it_is_the_repaired_one() -> None:
    scalars = {
        half: {spec.name: spec.scalar for spec in specs.specs_of("sdxl", ["vae", "unet"], half_vae=half)}
        for half in (None, True)
    }
    assert scalars[None] == {"unet": HALF, "vae_decoder": FULL, "vae_encoder": FULL}
    assert scalars[True]["vae_decoder"] == HALF
    usual, repaired = models.vae(), models.vae()
    repaired.register_to_config(force_upcast=False)
    assert [specs.halves(usual), specs.halves(repaired)] == [False, True]


def test_package_names() -> None:
    spec = specs.unet()
    assert specs.package_name("runwayml/sd-1.5", spec) == "Stable_Diffusion_version_runwayml_sd-1.5_unet.mlpackage"
    assert specs.package_name("a/b", spec, Shape(512, 768)).endswith("a_b_unet_512x768.mlpackage")
    assert specs.package_name("lllyasviel/canny", specs.controlnet()) == "ControlNet_lllyasviel_canny.mlpackage"
    beside = specs.unet(5, refiner=True)
    assert (beside.bundle, specs.package_name("a", beside)) == (
        "UnetRefiner",
        "Stable_Diffusion_version_a_refiner.mlpackage",
    )
    encoder = specs.text_encoder("text_encoder", "", wide=False)
    assert specs.package_name("a", encoder, Shape(512, 768)) == "Stable_Diffusion_version_a_text_encoder.mlpackage"


def test_attention_that_is_not_known() -> None:
    with pytest.raises(UsageError, match="'flash'"):
        WrapOptions(attention="flash")


@pytest.mark.parametrize("size", [(512, 500), (0, 64), (-64, 64)])
def test_sizes_are_multiples_of_64(size: tuple[int, int]) -> None:
    with pytest.raises(UsageError, match="pixels"):
        Shape(*size)

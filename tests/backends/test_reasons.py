"""Every component is looked at before anything is built, and what is told of it is what the libraries do."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from sdhub.backends import reasons
from sdhub.backends.base import backends
from sdhub.backends.coreml.usual import USUAL, USUAL_UNET
from sdhub.backends.svdquant.targets import unet_linears
from sdhub.checkpoint import schedulers
from sdhub.checkpoint.checkpoint import Checkpoint, Component
from sdhub.checkpoint.families import FAMILIES
from sdhub.checkpoint.inspect import inspect
from sdhub.checkpoint.known import SCHEDULERS
from sdhub.checkpoint.resolve import resolve
from sdhub.checkpoint.source import Source
from sdhub.core.errors import BuildError
from sdhub.core.progress import SILENT
from tests.checkpoint.tiny import copy_demo, write

USUALLY = {"coreml": "coreml-fp16", "openvino": "openvino-fp16", "sdnq": "sdnq-uint4", "svdquant": "svdquant-int4"}
TWISTED: dict[str, Any] = {"conv_in_kernel": 5, "conv_out_kernel": 5, "num_class_embeds": 4, "encoder_hid_dim": 16}


@pytest.fixture(scope="module")
def demo() -> Checkpoint:
    return resolve("demo")


def changed(checkpoint: Checkpoint, name: str, class_name: str | None = None, **config: Any) -> Checkpoint:
    """With another class or config of a component."""
    parts = tuple(
        dataclasses.replace(part, class_name=class_name or part.class_name, config={**part.config, **config})
        if part.name == name
        else part
        for part in checkpoint.components
    )
    return dataclasses.replace(checkpoint, components=parts)


def told(checkpoint: Checkpoint) -> dict[str, str | None]:
    return {name: backends()[name].why_not(checkpoint, variant) for name, variant in USUALLY.items()}


def test_every_family_that_is_built_has_its_parts(demo: Checkpoint) -> None:
    assert set(reasons.PARTS) == {name for name, family in FAMILIES.items() if family.buildable}
    assert told(demo) == dict.fromkeys(USUALLY)


def test_the_tiny_autoencoder(demo: Checkpoint) -> None:
    found = told(changed(demo, "vae", "AutoencoderTiny"))
    assert "no AutoencoderTiny: put the VAE" in str(found.pop("openvino"))
    assert set(found.values()) == {None}


@pytest.mark.parametrize(
    ("name", "class_name"),
    [
        ("vae", "AutoencoderDC"),
        ("text_encoder", "CLIPTextModelWithProjection"),
        ("text_encoder", "T5EncoderModel"),
        ("scheduler", "FlowMatchEulerDiscreteScheduler"),
    ],
)
def test_parts_that_no_pipeline_of_the_family_draws_with(demo: Checkpoint, name: str, class_name: str) -> None:
    for said in told(changed(demo, name, class_name)).values():
        assert said is not None and name in said and class_name in said


def test_a_part_that_is_not_there(demo: Checkpoint) -> None:
    parts = tuple(part for part in demo.components if part.name != "vae")
    assert all("no vae" in str(said) for said in told(dataclasses.replace(demo, components=parts)).values())


@pytest.mark.parametrize("setting", [*USUAL, *USUAL_UNET])
def test_denoisers_that_core_ml_does_not_compute(demo: Checkpoint, setting: str) -> None:
    found = told(changed(demo, "unet", **{setting: TWISTED.get(setting, "another")}))
    assert setting in str(found["coreml"])
    if setting in reasons.DRAWN:  # no pipeline gives what it asks for
        assert all(setting in str(said) for said in found.values())


def test_blocks_and_contexts_that_core_ml_does_not_compute(demo: Checkpoint) -> None:
    blocks = changed(demo, "unet", down_block_types=["AttnDownBlock2D", "DownBlock2D"])
    assert "AttnDownBlock2D" in str(told(blocks)["coreml"])
    several = told(changed(demo, "unet", cross_attention_dim=[64, 128]))
    assert all("different widths" in str(said) for said in several.values())
    assert told(changed(demo, "unet", cross_attention_dim=[128, 128]))["openvino"] is None
    assert told(changed(demo, "unet", mid_block_type=None))["coreml"] is None


@pytest.mark.parametrize(
    ("class_name", "config", "package"),
    [
        ("DPMSolverSDEScheduler", {}, "torchsde"),
        ("LMSDiscreteScheduler", {}, "scipy"),
        ("EulerDiscreteScheduler", {"use_beta_sigmas": True}, "scipy"),
    ],
)
def test_packages_of_schedulers(
    demo: Checkpoint, class_name: str, config: dict[str, Any], package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = changed(demo, "scheduler", class_name, **config)
    monkeypatch.setattr(schedulers, "find_spec", lambda name: object())
    assert set(told(checkpoint).values()) == {None}
    monkeypatch.setattr(schedulers, "find_spec", lambda name: None if name == package else object())
    for said in told(checkpoint).values():
        assert f"pip install {package}" in str(said)


def test_the_packages_are_those_that_diffusers_asks_for() -> None:
    import diffusers
    from diffusers.utils import dummy_torch_and_scipy_objects, dummy_torch_and_torchsde_objects

    asked = {}
    for module in (dummy_torch_and_scipy_objects, dummy_torch_and_torchsde_objects):
        for name, kind in vars(module).items():
            if name in SCHEDULERS and hasattr(kind, "_backends"):
                asked[name] = kind._backends[-1]
    assert asked == schedulers.NEEDS
    assert all(hasattr(diffusers, name) for name in asked)


def options(kind: Any) -> list[dict[str, Any]]:
    import inspect as signatures

    known = signatures.signature(kind.__init__).parameters
    sigmas = [{}, *({name: True} for name in schedulers.SIGMAS if name in known)]
    spacings: list[dict[str, Any]] = [{}]
    if "timestep_spacing" in known:
        spacings += [{"timestep_spacing": each} for each in ("linspace", "leading", "trailing")]
    return [{**one, **other} for one in sigmas for other in spacings]


@pytest.mark.parametrize("name", sorted(SCHEDULERS - {"DPMSolverSDEScheduler", "SCMScheduler"}))
def test_fractions_are_told_as_diffusers_has_them(name: str) -> None:
    import diffusers

    kind = getattr(diffusers, name)
    more = {"skip_prk_steps": True} if name == "PNDMScheduler" else {}
    for config in options(kind)[: 1 if name in schedulers.ALWAYS_FRACTIONAL else None]:
        scheduler = kind(**config, **more)
        scheduler.set_timesteps(6)
        times = scheduler.timesteps.double()
        found = bool((times != times.round()).any())
        part = Component("scheduler", "diffusers", name, config=dict(scheduler.config))
        assert schedulers.fractional(part) == found, config


@pytest.mark.parametrize(
    ("down", "up"),
    [
        ([[0, 0], [2, 2], [4, 4]], [[4, 4, 10], [2, 1, 1], [0, 0, 0]]),  # as SSD-1B has them
        ([1, 2, 3], None),
        ([1, [2, 1], [3, 3]], [[3, 1, 1], 2, 1]),
        (2, None),
    ],
)
def test_depths_are_counted_as_diffusers_builds_them(down: Any, up: Any) -> None:
    import torch
    from diffusers import UNet2DConditionModel

    config: dict[str, Any] = {
        "block_out_channels": [32, 64, 128],
        "down_block_types": ["CrossAttnDownBlock2D"] * 3,
        "up_block_types": ["CrossAttnUpBlock2D"] * 3,
        "layers_per_block": 2,
        "transformer_layers_per_block": down,
        "reverse_transformer_layers_per_block": up,
        "cross_attention_dim": 40,
        "attention_head_dim": 8,
    }
    with torch.device("meta"):
        unet = UNet2DConditionModel(**config)
    wanted = sorted(
        (layer.out_features, layer.in_features)
        for name, layer in unet.named_modules()
        if isinstance(layer, torch.nn.Linear) and ".transformer_blocks." in name
    )
    assert sorted(unet_linears(config)) == wanted


def test_sides_that_apples_packages_do_not_have(demo: Checkpoint) -> None:
    backend = backends()["coreml"]
    made = backend.recipe(dataclasses.replace(demo, size=32), "coreml-fp16")
    assert made.sizes == ((64, 64),)
    backend.accept(demo, made)
    assert backend.recipe(demo, "coreml-fp16").sizes == ()


def test_fractions_are_on_the_card_of_core_ml(demo: Checkpoint) -> None:
    backend = backends()["coreml"]
    karras = changed(demo, "scheduler", "EulerDiscreteScheduler", use_karras_sigmas=True)
    for checkpoint, said in ((demo, False), (karras, True)):
        notes = " ".join(backend.notes(checkpoint, backend.recipe(checkpoint, "coreml-fp16")))
        assert ("halves" in notes) == said


def test_a_model_too_small_for_sdnq_ends_in_one_line(tmp_path: Path) -> None:
    from sdhub.backends.sdnq.build import build
    from tests.checkpoint.test_load import sd2

    made = backends()["sdnq"].recipe(resolve("demo"), "sdnq-uint4")
    with pytest.raises(BuildError, match="no layer is as large"):
        build(sd2(), "unet", made, tmp_path, SILENT)


@pytest.mark.parametrize(
    ("pipeline", "drawn"),
    [
        ("StableDiffusionPipeline", "StableDiffusionInpaintPipeline"),
        ("StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline"),
        ("StableDiffusionInpaintPipeline", "StableDiffusionInpaintPipeline"),
    ],
)
def test_nine_channels_are_inpainting(pipeline: str, drawn: str, tmp_path: Path) -> None:
    root = copy_demo(tmp_path / "m")
    for name, changes in (("model_index", {"_class_name": pipeline}), ("unet/config", {"in_channels": 9})):
        document = json.loads((root / f"{name}.json").read_text())
        write(root / f"{name}.json", {**document, **changes})
    found = inspect(Source("folder", str(root)))
    assert found.pipeline == drawn
    assert "inpainting" in found.traits
    assert [pipeline in note and drawn in note for note in found.notes] == [True] * (pipeline != drawn)

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sdhub.checkpoint.checkpoint import Checkpoint, Source
from sdhub.checkpoint.families import FAMILIES, PIPELINES, TRAITS
from sdhub.checkpoint.inspect import inspect
from sdhub.checkpoint.known import CLASSES, SCHEDULERS
from sdhub.checkpoint.source import parse_source
from sdhub.core.errors import UsageError
from sdhub.workflow.plan import sampling_for
from tests.checkpoint.tiny import UNET, skeleton, write

TEXT = ["transformers", "CLIPTextModel"]
TEXT_2 = ["transformers", "CLIPTextModelWithProjection"]
TOKENIZER = ["transformers", "CLIPTokenizer"]
NONE = [None, None]
XL = {"text_encoder_2": TEXT_2, "tokenizer_2": TOKENIZER}
REFINER = {**XL, "text_encoder": NONE, "tokenizer": NONE}
T5 = ["transformers", "T5EncoderModel"]
FLOW = ["diffusers", "FlowMatchEulerDiscreteScheduler"]
UNET_2 = {**UNET, "cross_attention_dim": 1024}
UNET_XL = {**UNET, "cross_attention_dim": 2048, "addition_embed_type": "text_time", "sample_size": 128}


def dit(class_name: str, **more: Any) -> dict[str, Any]:
    return {"unet": None, "transformer": ["diffusers", class_name], "scheduler": FLOW, **more}


# name: (pipeline, entries, configs, family, prediction, traits)
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any], str, str, set[str]]] = {
    "SD 1.5": ("StableDiffusionPipeline", {}, {}, "sd1", "epsilon", set()),
    "SD 1.5 inpainting": (
        "StableDiffusionInpaintPipeline",
        {},
        {"unet": {**UNET, "in_channels": 9}},
        "sd1",
        "epsilon",
        {"inpainting"},
    ),
    "SD 1.5 of v-prediction": (
        "StableDiffusionPipeline",
        {},
        {"scheduler": {"prediction_type": "v_prediction"}},
        "sd1",
        "v_prediction",
        set(),
    ),
    "SD 2.1 base": ("StableDiffusionPipeline", {}, {"unet": UNET_2}, "sd2", "epsilon", set()),
    "SD 2.1": (
        "StableDiffusionPipeline",
        {"scheduler": ["diffusers", "DDIMScheduler"]},
        {"unet": UNET_2, "scheduler": {"prediction_type": "v_prediction"}},
        "sd2",
        "v_prediction",
        set(),
    ),
    "SD 2 of an odd width": (
        "StableDiffusionPipeline",
        {},
        {"unet": {**UNET, "cross_attention_dim": 96}, "text_encoder": {"hidden_act": "gelu"}},
        "sd2",
        "epsilon",
        set(),
    ),
    "SD 1 of an odd width": (
        "StableDiffusionPipeline",
        {},
        {"unet": {**UNET, "cross_attention_dim": [96, 96]}},
        "sd1",
        "epsilon",
        set(),
    ),
    "SD-Turbo": (
        "StableDiffusionPipeline",
        {"scheduler": ["diffusers", "EulerDiscreteScheduler"]},
        {"unet": UNET_2, "scheduler": {"timestep_spacing": "trailing", "prediction_type": "epsilon"}},
        "sd2",
        "epsilon",
        {"turbo"},
    ),
    "zero terminal SNR": (
        "StableDiffusionXLPipeline",
        {**XL, "scheduler": ["diffusers", "EulerDiscreteScheduler"]},
        {
            "unet": UNET_XL,
            "scheduler": {
                "timestep_spacing": "trailing",
                "prediction_type": "v_prediction",
                "rescale_betas_zero_snr": True,
            },
        },
        "sdxl",
        "v_prediction",
        set(),
    ),
    "LCM": (
        "LatentConsistencyModelPipeline",
        {"scheduler": ["diffusers", "LCMScheduler"]},
        {"unet": {**UNET, "time_cond_proj_dim": 256}},
        "sd1",
        "epsilon",
        {"lcm"},
    ),
    "LCM by its scheduler": (
        "StableDiffusionPipeline",
        {"scheduler": ["diffusers", "LCMScheduler"]},
        {},
        "sd1",
        "epsilon",
        {"lcm"},
    ),
    "BK-SDM base": (
        "StableDiffusionPipeline",
        {},
        {"unet": {**UNET, "layers_per_block": 1}},
        "sd1",
        "epsilon",
        {"student"},
    ),
    "BK-SDM small": (
        "StableDiffusionPipeline",
        {},
        {"unet": {**UNET, "layers_per_block": 1, "mid_block_type": None}},
        "sd1",
        "epsilon",
        {"student"},
    ),
    "BK-SDM tiny": (
        "StableDiffusionPipeline",
        {},
        {"unet": {**UNET, "layers_per_block": [1, 1, 1], "block_out_channels": [320, 640, 1280]}},
        "sd1",
        "epsilon",
        {"student"},
    ),
    "SDXL": ("StableDiffusionXLPipeline", XL, {"unet": UNET_XL}, "sdxl", "epsilon", set()),
    "SDXL-Turbo": (
        "StableDiffusionXLPipeline",
        {**XL, "scheduler": ["diffusers", "EulerAncestralDiscreteScheduler"]},
        {"unet": UNET_XL, "scheduler": {"timestep_spacing": "trailing"}},
        "sdxl",
        "epsilon",
        {"turbo"},
    ),
    "SDXL refiner": (
        "StableDiffusionXLImg2ImgPipeline",
        REFINER,
        {"unet": {**UNET_XL, "cross_attention_dim": 1280}},
        "sdxl-refiner",
        "epsilon",
        set(),
    ),
    "SDXL from a picture": ("StableDiffusionXLImg2ImgPipeline", XL, {"unet": UNET_XL}, "sdxl", "epsilon", set()),
    "SD 3": (
        "StableDiffusion3Pipeline",
        dit("SD3Transformer2DModel", text_encoder=TEXT_2, **XL, text_encoder_3=T5),
        {},
        "sd3",
        "flow_prediction",
        set(),
    ),
    "FLUX": (
        "FluxPipeline",
        dit("FluxTransformer2DModel", text_encoder_2=T5, tokenizer_2=["transformers", "T5TokenizerFast"]),
        {},
        "flux",
        "flow_prediction",
        set(),
    ),
    "PixArt": (
        "PixArtSigmaPipeline",
        dit("PixArtTransformer2DModel", text_encoder=T5, scheduler=["diffusers", "DPMSolverMultistepScheduler"]),
        {},
        "pixart",
        "epsilon",
        set(),
    ),
    "Sana": (
        "SanaPipeline",
        dit(
            "SanaTransformer2DModel",
            text_encoder=["transformers", "Gemma2Model"],
            tokenizer=["transformers", "GemmaTokenizerFast"],
            vae=["diffusers", "AutoencoderDC"],
            scheduler=["diffusers", "DPMSolverMultistepScheduler"],
        ),
        {"scheduler": {"prediction_type": "flow_prediction"}},
        "sana",
        "flow_prediction",
        set(),
    ),
    "Qwen-Image": (
        "QwenImagePipeline",
        dit(
            "QwenImageTransformer2DModel",
            text_encoder=["transformers", "Qwen2_5_VLForConditionalGeneration"],
            tokenizer=["transformers", "Qwen2Tokenizer"],
            vae=["diffusers", "AutoencoderKLQwenImage"],
        ),
        {},
        "qwen-image",
        "flow_prediction",
        set(),
    ),
}


def case(name: str, root: Path) -> Checkpoint:
    pipeline, entries, configs, *_ = CASES[name]
    return inspect(Source("folder", str(skeleton(root, pipeline, entries, configs))))


@pytest.mark.parametrize("name", CASES)
def test_families(name: str, tmp_path: Path) -> None:
    *_, family, prediction, traits = CASES[name]
    found = case(name, tmp_path)
    assert found.family == FAMILIES[family]
    assert found.prediction_type == prediction
    assert found.traits - {"no-safety-checker"} == traits
    assert found.component(found.family.denoiser).parameters == 11


@pytest.mark.parametrize("kind", ["EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler"])
@pytest.mark.parametrize(
    ("folder", "base", "turbo"),
    [
        ("sdxl-turbo", None, True),
        ("Dream_Turbo_v2", None, True),
        ("mine", ["stabilityai/sd-turbo"], True),
        ("mine", "org/usual", False),
        ("trailing", None, False),
        ("turbocharged", None, False),
    ],
)
def test_turbo_is_who_is_called_so(
    kind: str, folder: str, base: str | list[str] | None, turbo: bool, tmp_path: Path
) -> None:
    configs = {"scheduler": {"timestep_spacing": "trailing"}}
    root = skeleton(tmp_path / folder, "StableDiffusionPipeline", {"scheduler": ["diffusers", kind]}, configs)
    write(root / "README.md", f"---\nbase_model: {json.dumps(base)}\n---\n")
    found = inspect(Source("folder", str(root)))
    assert ("turbo" in found.traits) == turbo
    sampling = sampling_for(found)
    assert (sampling.steps, sampling.guidance) == ((4, 0.0) if turbo else (25, 7.5))


def test_no_more_steps_are_drawn_than_the_scheduler_was_trained_on(tmp_path: Path) -> None:
    configs = {"scheduler": {"num_train_timesteps": 120}}
    index = {"scheduler": ["diffusers", "DDIMScheduler"]}
    root = skeleton(tmp_path / "few", "StableDiffusionPipeline", index, configs)
    write(root / "README.md", "---\ninference:\n  parameters:\n    num_inference_steps: 150\n---\n")
    found = inspect(Source("folder", str(root)))
    assert sampling_for(found).steps == 120
    assert sampling_for(found, steps=120).steps == 120
    with pytest.raises(UsageError, match="steps of 121 draw nothing"):
        sampling_for(found, steps=121)


def test_every_family_and_trait_has_an_example() -> None:
    assert {each[3] for each in CASES.values()} == set(FAMILIES)
    traits = set().union(*(each[5] for each in CASES.values()))
    assert traits | {"no-safety-checker", "ema"} == set(TRAITS)  # ema: of single files
    assert {family for families in PIPELINES.values() for family in families} == set(FAMILIES)


def test_these_families_are_only_inspected() -> None:
    assert {name for name, family in FAMILIES.items() if not family.buildable} == {"pixart", "qwen-image"}


def test_the_demo_is_sd1_and_no_student() -> None:
    found = inspect(parse_source("demo"))
    assert found.family.name == "sd1"
    assert found.traits == {"no-safety-checker"}
    assert (found.size, found.steps, found.guidance) == (64, 20, 4.0)


def test_sides(tmp_path: Path) -> None:
    assert case("SD 1.5", tmp_path / "1").size == 512
    assert case("SDXL", tmp_path / "2").size == 1024
    assert case("FLUX", tmp_path / "3").size is None


def test_known_classes_exist() -> None:
    """The allow-list names what diffusers and transformers really have (those of other versions excepted)."""
    import diffusers
    import transformers

    missing = {name for name in CLASSES["diffusers"] if name not in dir(diffusers)}
    missing |= {name for name in CLASSES["transformers"] if name not in dir(transformers)}
    aliases = {
        name for name in missing if name.endswith("Fast") and name.removesuffix("Fast") in dir(transformers)
    }
    assert missing - aliases <= {"CLIPFeatureExtractor"}
    assert not missing & SCHEDULERS
    assert all(name in dir(diffusers) for name in PIPELINES)

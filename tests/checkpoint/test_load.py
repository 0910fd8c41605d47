from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sdhub.checkpoint.checkpoint import Checkpoint, Source
from sdhub.checkpoint.fetch import fetch
from sdhub.checkpoint.inspect import inspect
from sdhub.checkpoint.load import load
from sdhub.checkpoint.source import parse_source
from sdhub.core.errors import SourceError, UnsupportedError, UsageError
from sdhub.demo import emoji_sd
from tests.checkpoint.ldm import write_ldm
from tests.checkpoint.tiny import (
    WIDTH,
    WIDTH_2,
    copy_demo,
    skeleton,
    tiny_text_encoder,
    tiny_text_encoder_2,
    tiny_unet,
    tiny_unet_xl,
    tiny_vae,
    tokenizer,
    write,
)

torch = pytest.importorskip("torch")


def opened(root: Path, **settings: Any) -> tuple[Checkpoint, Any]:
    checkpoint = inspect(Source("folder", str(root)))
    return checkpoint, load(checkpoint, fetch(checkpoint), **settings)


def noise_of(unet: Any) -> Any:
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 4, 16, 16, generator=generator)
    states = torch.randn(1, 77, 128, generator=generator)
    with torch.no_grad():
        return unet(latents, 500, states).sample


def parameters(module: Any) -> int:
    return sum(each.numel() for each in module.parameters())


@pytest.fixture(scope="module")
def demo() -> Any:
    checkpoint = inspect(parse_source("demo"))
    return load(checkpoint, fetch(checkpoint))


def test_the_demo_draws(demo: Any) -> None:
    from safetensors.torch import load_file

    assert type(demo).__name__ == "StableDiffusionPipeline"
    assert demo.safety_checker is None and demo.feature_extractor is None
    assert demo.unet.dtype == torch.float32 and not demo.unet.training
    stored = load_file(emoji_sd() / "unet/diffusion_pytorch_model.safetensors")
    assert all(torch.equal(value, stored[key].float()) for key, value in demo.unet.state_dict().items())
    picture = demo("pizza", num_inference_steps=2, output_type="np").images
    assert picture.shape == (1, 64, 64, 3)


def test_no_path_of_this_machine_stays_behind(demo: Any) -> None:
    assert demo.config._name_or_path == "emoji-sd"
    assert demo.unet.config._name_or_path == "emoji-sd/unet"
    assert demo.text_encoder.config.name_or_path == "emoji-sd/text_encoder"
    assert "tmp" not in demo.tokenizer.name_or_path


def test_dtype() -> None:
    _, pipeline = opened(emoji_sd(), dtype="bfloat16")
    assert {part.dtype for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder)} == {torch.bfloat16}
    checkpoint = inspect(parse_source("demo"))
    with pytest.raises(UsageError, match="no dtype"):
        load(checkpoint, emoji_sd(), dtype="__class__")


def test_a_single_file_is_the_same_model(demo: Any, tmp_path: Path) -> None:
    path = write_ldm(tmp_path / "emoji.safetensors")
    checkpoint = inspect(parse_source(str(path), config=str(emoji_sd())))
    pipeline = load(checkpoint, fetch(checkpoint))
    assert torch.equal(noise_of(pipeline.unet), noise_of(demo.unet))
    ids = demo.tokenizer(["red heart"], padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        assert torch.equal(pipeline.text_encoder(ids)[0], demo.text_encoder(ids)[0])
        latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))
        ours, theirs = pipeline.vae.decode(latents).sample, demo.vae.decode(latents).sample
    assert torch.allclose(ours, theirs, atol=1e-5)
    own = {"_name_or_path": None}
    assert {**pipeline.scheduler.config, **own} == {**demo.scheduler.config, **own}


def test_what_a_single_file_says_of_its_prediction_is_kept(tmp_path: Path) -> None:
    path = write_ldm(tmp_path / "e.safetensors", {"modelspec.prediction_type": "v"})
    checkpoint = inspect(parse_source(str(path)))
    assert checkpoint.prediction_type == "v_prediction"
    pipeline = load(replace(checkpoint, config=str(emoji_sd())), path)
    assert pipeline.scheduler.config.prediction_type == "v_prediction"


def sd2() -> Any:
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    return StableDiffusionPipeline(
        unet=tiny_unet(),
        vae=tiny_vae(),
        text_encoder=tiny_text_encoder(hidden_act="gelu"),
        tokenizer=tokenizer(),
        scheduler=DDIMScheduler(prediction_type="v_prediction"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def inpainting() -> Any:
    from diffusers import PNDMScheduler, StableDiffusionInpaintPipeline

    return StableDiffusionInpaintPipeline(
        unet=tiny_unet(in_channels=9),
        vae=tiny_vae(),
        text_encoder=tiny_text_encoder(),
        tokenizer=tokenizer(),
        scheduler=PNDMScheduler(skip_prk_steps=True),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def lcm() -> Any:
    from diffusers import LatentConsistencyModelPipeline, LCMScheduler

    return LatentConsistencyModelPipeline(
        unet=tiny_unet(time_cond_proj_dim=8, mid_block_type=None),
        vae=tiny_vae(),
        text_encoder=tiny_text_encoder(),
        tokenizer=tokenizer(),
        scheduler=LCMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sdxl() -> Any:
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    return StableDiffusionXLPipeline(
        unet=tiny_unet_xl(6, WIDTH + WIDTH_2),
        vae=tiny_vae(),
        text_encoder=tiny_text_encoder(),
        text_encoder_2=tiny_text_encoder_2(),
        tokenizer=tokenizer(),
        tokenizer_2=tokenizer(),
        scheduler=EulerDiscreteScheduler(timestep_spacing="leading"),
    )


def refiner() -> Any:
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLImg2ImgPipeline

    return StableDiffusionXLImg2ImgPipeline(
        unet=tiny_unet_xl(5, WIDTH_2),
        vae=tiny_vae(),
        text_encoder=None,
        text_encoder_2=tiny_text_encoder_2(),
        tokenizer=None,
        tokenizer_2=tokenizer(),
        scheduler=EulerDiscreteScheduler(),
        requires_aesthetics_score=True,
    )


@pytest.mark.parametrize(
    ("make", "family", "traits"),
    [
        (sd2, "sd2", set()),
        (inpainting, "sd1", {"inpainting"}),
        (lcm, "sd1", {"lcm", "student"}),
        (sdxl, "sdxl", set()),
        (refiner, "sdxl-refiner", set()),
    ],
)
def test_architectures(make: Callable[[], Any], family: str, traits: set[str], tmp_path: Path) -> None:
    made = make()
    made.save_pretrained(tmp_path)
    checkpoint, pipeline = opened(tmp_path)
    assert checkpoint.family.name == family
    assert checkpoint.traits == traits | {"no-safety-checker"}
    assert checkpoint.prediction_type == made.scheduler.config.prediction_type
    assert type(pipeline) is type(made)
    for part in checkpoint.components:
        if part.parameters:
            assert part.parameters == parameters(getattr(made, part.name))
    for key, value in made.unet.state_dict().items():
        assert torch.equal(pipeline.unet.state_dict()[key], value)
    if family == "sdxl-refiner":
        assert pipeline.config.requires_aesthetics_score is True
    if family in ("sd2", "sdxl"):
        assert pipeline("x", num_inference_steps=1, height=16, width=16, output_type="np").images.shape[0] == 1


def test_variant_and_shards(tmp_path: Path) -> None:
    made = sd2().to(torch.float16)
    made.save_pretrained(tmp_path, variant="fp16", max_shard_size="30KB")
    write(tmp_path / "text_encoder" / "LICENSE", "a name without a dot")
    write(tmp_path / "unet" / "diffusion_pytorch_model.bin", b"\x80")
    checkpoint, pipeline = opened(tmp_path, dtype="float16")
    assert len(checkpoint.component("unet").files) > 1
    assert all(".fp16" in path for path in checkpoint.component("unet").files)
    for name in ("unet", "vae", "text_encoder"):
        ours, theirs = getattr(pipeline, name).state_dict(), getattr(made, name).state_dict()
        assert all(torch.equal(ours[key], value) for key, value in theirs.items())


def test_a_safety_checker_is_left_out(tmp_path: Path) -> None:
    root = copy_demo(tmp_path / "m")
    index = json.loads((root / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    index["feature_extractor"] = ["transformers", "CLIPImageProcessor"]
    index["requires_safety_checker"] = True
    write(root / "model_index.json", index)
    checkpoint, pipeline = opened(root)
    assert pipeline.safety_checker is None and pipeline.feature_extractor is None
    assert pipeline.config.requires_safety_checker is False
    assert checkpoint.traits == frozenset()


def test_code_in_the_folder_is_not_run(tmp_path: Path) -> None:
    root = copy_demo(tmp_path / "m")
    ran = tmp_path / "ran"
    for name in ("pipeline.py", "diffusers.py.txt", "modeling.py", "unet/modeling.py"):
        write(root / name, f"open({str(ran)!r}, 'w')")
    opened(root)
    assert not ran.exists()


def test_missing_weights_are_not_made_up(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    root = copy_demo(tmp_path / "m")
    path = root / "unet/diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    del tensors["mid_block.resnets.0.conv1.weight"]
    path.unlink()
    save_file(tensors, path)
    with pytest.raises(SourceError, match=r"incomplete|could not load"):
        opened(root)


def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    root = copy_demo(tmp_path / "m")
    config = json.loads((root / "unet/config.json").read_text())
    write(root / "unet/config.json", {**config, "block_out_channels": [128, 384]})
    with pytest.raises(SourceError, match="could not load") as caught:
        opened(root)
    assert caught.value.message.isprintable()


def test_families_that_are_inspected_only(tmp_path: Path) -> None:
    entries = {
        "unet": None,
        "transformer": ["diffusers", "PixArtTransformer2DModel"],
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    }
    checkpoint = inspect(Source("folder", str(skeleton(tmp_path, "PixArtSigmaPipeline", entries))))
    with pytest.raises(UnsupportedError, match="inspected but not loaded"):
        load(checkpoint, tmp_path)


def test_a_denoiser_stays_narrow_and_computes_in_float32(tmp_path: Path) -> None:
    sd2().to(torch.float16).save_pretrained(tmp_path)
    _, wide = opened(tmp_path)
    _, half_precision = opened(tmp_path, half_precision=True)
    assert half_precision.unet.dtype == torch.float32
    kinds = {name: each.dtype for name, each in half_precision.unet.named_parameters()}
    assert kinds["conv_in.weight"] == torch.float16 and kinds["conv_norm_out.weight"] == torch.float32
    assert half_precision.vae.dtype == torch.float32
    asked = {"num_inference_steps": 1, "height": 16, "width": 16, "output_type": "np"}
    drawn = [
        each("x", generator=torch.Generator().manual_seed(0), **asked).images for each in (half_precision, wide)
    ]
    assert (drawn[0] == drawn[1]).all()
    assert half_precision.unet.conv_in.weight.dtype == torch.float16

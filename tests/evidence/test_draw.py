from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from sdhub.core.errors import EvidenceError
from sdhub.demo import emoji_sd
from sdhub.evidence.sampling import Prompt, Sampling, draw
from tests.evidence.fakes import FakePipeline, sampling

PIZZA = Sampling((Prompt("pizza", 1),), steps=2, guidance=4.0, width=64, height=64)


@pytest.fixture(scope="module")
def pipe() -> Any:
    from diffusers import StableDiffusionPipeline

    return StableDiffusionPipeline.from_pretrained(emoji_sd(), torch_dtype=torch.float32)


def test_two_draws_are_equal_and_another_seed_is_not(pipe: Any) -> None:
    first, second = (draw(pipe, PIZZA.prompts[0], PIZZA) for _ in range(2))
    assert first.image.shape == (64, 64, 3)
    assert first.image.dtype == first.latents.dtype == np.float32
    assert first.latents.shape == (4, 16, 16)
    assert 0 <= first.image.min() < first.image.max() <= 1
    assert np.array_equal(first.image, second.image)
    assert np.array_equal(first.latents, second.latents)
    assert not np.array_equal(first.image, draw(pipe, Prompt("pizza", 2), PIZZA).image)


def test_plain_diffusers_draws_the_same_from_the_seed(pipe: Any) -> None:
    plain = pipe(
        "pizza",
        num_inference_steps=2,
        guidance_scale=4.0,
        generator=torch.Generator("cpu").manual_seed(1),
        output_type="np",
    ).images[0]
    assert np.array_equal(draw(pipe, PIZZA.prompts[0], PIZZA).image, plain)


def test_latents_are_those_that_the_picture_is_decoded_from(pipe: Any) -> None:
    sample = draw(pipe, PIZZA.prompts[0], PIZZA)
    with torch.no_grad():
        decoded = pipe.vae.decode(torch.from_numpy(sample.latents)[None] / pipe.vae.config.scaling_factor).sample
    image = (decoded[0] / 2 + 0.5).clamp(0, 1).permute(1, 2, 0).numpy()
    assert np.allclose(image, sample.image, atol=1e-5)


@pytest.mark.parametrize("guidance", [0.0, 1.0])
def test_draws_without_guidance(pipe: Any, guidance: float) -> None:
    short = Sampling(PIZZA.prompts, steps=1, guidance=guidance, width=64, height=64)
    assert np.isfinite(draw(pipe, short.prompts[0], short).image).all()


def test_the_starting_noise_of_a_stochastic_scheduler_is_not_reused(pipe: Any) -> None:
    from diffusers import LCMScheduler

    lcm = type(pipe)(
        **{**pipe.components, "scheduler": LCMScheduler.from_config(pipe.scheduler.config)},
        requires_safety_checker=False,
    )
    first, second = (draw(lcm, PIZZA.prompts[0], PIZZA) for _ in range(2))
    assert np.array_equal(first.image, second.image)


def test_tells_of_every_step() -> None:
    steps: list[int] = []
    draw(FakePipeline(), Prompt("a ramp", 1), sampling(steps=4), on_step=steps.append)
    assert steps == [0, 1, 2, 3]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_pipelines_of_any_type_start_alike(dtype: torch.dtype) -> None:
    pipe = FakePipeline(dtype=dtype)
    draw(pipe, Prompt("a ramp", 5), sampling())
    given = pipe.calls[0]["latents"]
    assert given.dtype == (dtype if dtype in (torch.float16, torch.bfloat16) else torch.float32)
    expected = torch.randn((1, 4, 2, 2), generator=torch.Generator("cpu").manual_seed(5))
    assert torch.equal(given, expected.to(given.dtype))


def test_a_transformer_draws_its_own_latents() -> None:
    pipe = FakePipeline()
    pipe.unet = None  # type: ignore[assignment]
    sample = draw(pipe, Prompt("a ramp", 5), sampling(steps=1))
    assert pipe.calls[0]["latents"] is None
    expected = torch.randn((1, 4, 2, 2), generator=torch.Generator("cpu").manual_seed(5))[0] / 2
    assert np.array_equal(sample.latents, expected.numpy())


def test_refuses_a_picture_that_is_not_finite() -> None:
    pipe = FakePipeline()
    pipe.image = np.full((16, 16, 3), np.nan, np.float32)
    with pytest.raises(EvidenceError, match="infinite or undefined"):
        draw(pipe, Prompt("a ramp", 1), sampling())


def test_refuses_a_picture_that_was_blacked_out() -> None:
    pipe = FakePipeline()
    pipe.nsfw = [True]
    with pytest.raises(EvidenceError, match="safety checker") as refusal:
        draw(pipe, Prompt("a ramp\n" + "x" * 500, 1), sampling())
    assert len(refusal.value.message) < 120
    assert "\n" not in refusal.value.message

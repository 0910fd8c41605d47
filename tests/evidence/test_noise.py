"""Noise SNR, beside the formula: the same UNet called by hand at the points that were recorded."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch

from sdhub.core.errors import EvidenceError
from sdhub.evidence import noise
from sdhub.evidence.sampling import Prompt, Sampling, draw
from tests.backends.flux import flux_folder
from tests.checkpoint.test_load import inpainting, lcm, refiner, sd2, sdxl

SAMPLING = Sampling((Prompt("a cat", 1), Prompt("a red heart", 2)), steps=6, guidance=4.0, width=64, height=64)


def at_size(pipe: Any) -> Any:
    pipe.unet.register_to_config(sample_size=SAMPLING.width // pipe.vae_scale_factor)
    return pipe


def flux(tmp_path: Any) -> Any:
    from diffusers import FluxPipeline

    flux_folder(tmp_path / "flux")
    return FluxPipeline.from_pretrained(tmp_path / "flux", torch_dtype=torch.float32)


def trajectories(pipe: Any) -> list[list[noise.Point]]:
    found = []
    for prompt in SAMPLING.prompts:
        with noise.recorded(pipe) as points:
            draw(pipe, prompt, SAMPLING)
        found.append(points)
    return found


@pytest.mark.parametrize("make", [sd2, sdxl, refiner, lcm, inpainting, flux], ids=lambda make: make.__name__)
def test_a_pipeline_is_its_own_equal_and_draws_as_before(make: Any, tmp_path: Any) -> None:
    torch.manual_seed(0)
    pipe = make(tmp_path) if make is flux else at_size(make())
    before = draw(pipe, SAMPLING.prompts[0], SAMPLING)
    recorded = trajectories(pipe)
    length = len(recorded[0])  # PNDM predicts once more
    assert length == len(recorded[1]) in (SAMPLING.steps, SAMPLING.steps + 1)
    calls: list[int] = []
    found = noise.noise_snr(pipe, recorded, SAMPLING.prompts, SAMPLING, points=3, on_call=lambda: calls.append(1))
    points = length if make is refiner else 3
    assert len(calls) == len(found.rows) == 2 * points
    assert found.median_db == found.worst_db == math.inf
    assert found.document()["worst_db"] is None
    assert (draw(pipe, SAMPLING.prompts[0], SAMPLING).latents == before.latents).all()


def test_it_is_the_ratio_of_the_denoisers_own_predictions() -> None:
    torch.manual_seed(0)
    pipe = at_size(sd2())
    recorded = trajectories(pipe)
    changed = copy.deepcopy(pipe.unet)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in changed.parameters():
            weight.add_(0.01 * weight.abs().mean() * torch.randn(weight.shape, generator=generator))
    other = type(pipe)(**{**pipe.components, "unet": changed}, requires_safety_checker=False)
    found = noise.noise_snr(other, recorded, SAMPLING.prompts, SAMPLING, points=4)
    states, nothing = pipe.encode_prompt("a cat", "cpu", 1, True)
    both = torch.cat([nothing, states])
    for (prompt, timestep, value), at in zip(found.rows, (0, 2, 3, 5), strict=False):
        point = recorded[0][at]
        assert (prompt, timestep) == (0, point.timestep)
        predicted = []
        for unet in (pipe.unet, changed):
            with torch.no_grad():
                without, with_prompt = unet(torch.cat([point.latents] * 2), timestep, both).sample.chunk(2)
            predicted.append(without + SAMPLING.guidance * (with_prompt - without))
        error = (predicted[0] - predicted[1]).square().sum()
        assert value == pytest.approx(float(10 * torch.log10(predicted[0].square().sum() / error)), abs=1e-3)
    assert found.worst_db == min(row[2] for row in found.rows) < found.median_db


def test_points_are_kept_and_read_back(tmp_path: Any) -> None:
    pipe = at_size(lcm())
    recorded = trajectories(pipe)
    noise.save(tmp_path, recorded)
    first = (tmp_path / noise.FILE).read_bytes()
    again = noise.load(tmp_path)
    for before, after in zip(recorded, again, strict=True):
        assert [point.timestep for point in before] == [point.timestep for point in after]
        assert all(torch.equal(a.latents, b.latents) for a, b in zip(before, after, strict=True))
        assert all(torch.equal(a.prediction, b.prediction) for a, b in zip(before, after, strict=True))
    noise.save(tmp_path, again)
    assert (tmp_path / noise.FILE).read_bytes() == first


def test_what_cannot_be_compared_is_said() -> None:
    reference = torch.ones(2, 2)
    with pytest.raises(EvidenceError, match="cannot be compared"):
        noise.snr_db(reference, torch.ones(2, 3))
    with pytest.raises(EvidenceError, match="infinite or undefined"):
        noise.snr_db(reference, reference * math.nan)
    assert noise.snr_db(reference, 1.1 * reference) == pytest.approx(20.0, abs=1e-4)
    assert noise.snr_db(torch.zeros(2), torch.ones(2)) < -1000


@pytest.mark.parametrize(
    ("length", "count", "chosen"), [(20, 4, (0, 6, 13, 19)), (3, 4, (0, 1, 2)), (1, 4, (0,)), (9, 1, (0,))]
)
def test_points_are_spread_from_the_first_to_the_last(length: int, count: int, chosen: tuple[int, ...]) -> None:
    assert noise.points_of(sd2, length, count) == chosen

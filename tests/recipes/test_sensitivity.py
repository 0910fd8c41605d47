"""What errors of layers do: gradients beside finite differences, closed forms beside rounding that was done."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline

from sdhub.analysis.sensitivity import Trace, candidates, errors, factors, sample, scales, trace
from sdhub.backends.base import backends
from sdhub.compression.calibration import LayerStatistics
from sdhub.compression.gptq import gptq
from sdhub.compression.palettize import palettize
from sdhub.demo import emoji_sd
from sdhub.recipes.recipe import Affine, Calibration, Float, LowRank, Palette, Treatment
from sdhub.recipes.treatments import dequantized, size_of

SETTING = Calibration(
    prompts=("pear",), seed=7, steps=2, recorded=2, guidance=4.0, width=64, height=64, rows=64, block=256
)
LAYERS = ["down_blocks.0.resnets.0.conv1", "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"]


@pytest.fixture(scope="module")
def pipeline() -> Any:
    return StableDiffusionPipeline.from_pretrained(emoji_sd(), torch_dtype=torch.float32, safety_checker=None)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_foretell_what_a_small_error_does(pipeline: Any, name: str) -> None:
    traced = trace(pipeline, SETTING, 0, "unet", [name])
    weight = pipeline.unet.get_submodule(name).weight
    error = torch.randn(weight.shape, generator=generator(1)) * weight.detach().std() * 0.02
    ends = []
    for sign in (1, -1):
        weight.data.add_(sign * error)
        with torch.no_grad():
            ends.append(sample(pipeline, SETTING, 0)[0][0])
        weight.data.sub_(sign * error)
    direction = torch.randint(0, 2, ends[0][None].shape, generator=generator(SETTING.seed))[0] * 2 - 1
    moved = float(((ends[0] - ends[1]) / 2 * direction).sum()) / ends[0].numel() ** 0.5
    foretold = float((traced.gradients[name].float() * error.flatten(1)).sum())
    assert foretold == pytest.approx(moved, rel=0.05)
    assert len(traced.timesteps) == 2 and traced.latents.shape == (4, 16, 16)


def test_tracing_leaves_no_trace(pipeline: Any) -> None:
    before = [weight.requires_grad for weight in pipeline.unet.parameters()]
    trace(pipeline, SETTING, 0, "unet", LAYERS[:1])
    assert [weight.requires_grad for weight in pipeline.unet.parameters()] == before
    assert all(weight.grad is None for weight in pipeline.unet.parameters())


def test_computing_calls_anew_gives_the_same_gradients(pipeline: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = trace(pipeline, SETTING, 0, "unet", LAYERS[:1])
    monkeypatch.setattr("sdhub.analysis.sensitivity.RECOMPUTED_FROM", 0)
    again = trace(pipeline, SETTING, 0, "unet", LAYERS[:1])
    assert torch.allclose(
        kept.gradients[LAYERS[0]].float(), again.gradients[LAYERS[0]].float(), rtol=0.02, atol=1e-7
    )
    assert "forward" not in vars(pipeline.unet)


def layer(tokens: int = 512) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight (24, 48) and correlated inputs."""
    mix = torch.randn(48, 48, generator=generator(2)) * torch.logspace(0, -1.5, 48)
    return torch.randn(24, 48, generator=generator(3)), torch.randn(tokens, 48, generator=generator(4)) @ mix


def drawn(inputs: torch.Tensor, count: int, seed: int) -> list[torch.Tensor]:
    """Gradients of random directions of what the layer gives for all inputs."""
    numbers = generator(seed)
    return [torch.randn(24, len(inputs), generator=numbers) @ inputs for _ in range(count)]


@pytest.mark.parametrize("treatment", [Palette(bits=4), Palette(bits=2), Affine(bits=4, group_size=16)])
def test_rounding_to_the_nearest_is_foretold(treatment: Treatment) -> None:
    weight, inputs = layer()
    ((_, rounded),) = dequantized({"layer": weight}, {"layer": treatment})
    truth = float(((rounded - weight) @ inputs.T).square().sum())
    found = errors(weight, [treatment], [each / 16 for each in drawn(inputs, 256, 5)])
    assert found[0] == pytest.approx(truth, rel=0.35)  # 2 bits leave errors that are far from white


@pytest.mark.parametrize("bits", [3, 4, 6])
def test_compensated_rounding_is_foretold_without_being_done(bits: int) -> None:
    weight, inputs = layer()
    gram = inputs.T @ inputs
    rounded = gptq(weight, palettize(weight.half(), bits), gram).dequantize()
    truth = float(((rounded - weight) @ inputs.T).square().sum())
    nearest = float(((palettize(weight.half(), bits).dequantize() - weight) @ inputs.T).square().sum())
    peaks = inputs.abs().amax(0)
    known = factors({"layer": LayerStatistics(-peaks, peaks, peaks, 512, inputs, (gram,), 512)})["layer"]
    treatment = Palette(bits=bits, rounding="gptq")  # type: ignore[arg-type]
    found = errors(weight, [treatment], [each / 4 for each in drawn(inputs, 16, 6)], known)
    assert truth < 0.5 * nearest
    assert found[0] == pytest.approx(truth, rel=0.4)


def test_errors_that_add_up_are_seen() -> None:
    """One table entry serves many weights of 0 and few of 0.2; where the inputs meet the many, errors add up."""
    weight = 1e-3 * layer()[0]
    weight[:, 0], weight[:, 1] = 1.0, 0.2
    inputs = torch.ones(64, 48)
    inputs[:, :2] = 0
    treatment = Palette(bits=1)
    ((_, rounded),) = dequantized({"layer": weight}, {"layer": treatment})
    truth = float(((rounded - weight) @ inputs.T).square().sum())
    alone = float((rounded - weight)[:, 2:].square().sum() * 64)
    assert truth > 20 * alone
    found = errors(weight, [treatment], [each / 16 for each in drawn(inputs, 256, 7)])
    assert found[0] == pytest.approx(truth, rel=0.35)  # 2 bits leave errors that are far from white


def test_float_changes_nothing_of_a_half_precision_weight() -> None:
    weight = layer()[0].half().float()
    found = errors(weight, [Float(), Palette(bits=8)], [torch.ones(24, 48)])
    assert found[0] == 0.0 and found[1] > 0


def test_what_does_not_fit_is_left_out() -> None:
    weight, _ = layer()
    found = errors(weight, [Affine(bits=4, group_size=7), LowRank(rank=64, residual="int4")], [torch.ones(24, 48)])
    assert not found


def test_every_trace_has_the_same_say() -> None:
    traces = [
        Trace(torch.zeros(1), (), {"a": torch.full((2, 2), size), "b": torch.full((2, 2), size)})
        for size in (1.0, 100.0, 2.0)
    ]
    weighted = [
        float(each.gradients["a"].square().sum()) * scale**2
        for each, scale in zip(traces, scales(traces), strict=True)
    ]
    assert weighted == pytest.approx([weighted[0]] * 3)
    assert sum(weighted) == pytest.approx(2.0**2 * 4)


def test_candidates_are_layers_with_enough_weights(pipeline: Any) -> None:
    found = candidates(pipeline.unet, 10_000)
    assert len(found) == 117
    assert all(pipeline.unet.get_submodule(name).weight.numel() >= 10_000 for name in found)


def test_sizes_count_tables_scales_and_branches() -> None:
    shape = (64, 32, 3, 3)
    assert size_of(Palette(bits=4), shape) == 64 * 288 * 4 + 16 * 16
    assert size_of(Palette(bits=4, group_size=16), shape) == 64 * 288 * 4 + 4 * 16 * 16
    assert size_of(Affine(bits=8, symmetric=True), shape) == 64 * 288 * 8 + 64 * 16
    assert size_of(Affine(bits=4, group_size=32), shape) == 64 * 288 * 4 + 64 * 9 * 20
    assert size_of(LowRank(rank=8, residual="int4"), shape) == 64 * 288 * 4 + 64 * 16 + 8 * (64 + 288) * 16
    assert size_of(Float(), shape) == 64 * 288 * 16


@pytest.mark.parametrize("backend", ["coreml", "openvino", "sdnq", "svdquant"])
def test_offers_fit_a_layer_and_get_better(backend: str) -> None:
    weight = torch.randn(256, 256, generator=generator(8))
    treatments = backends()[backend].choices("gptq")
    found = errors(weight, treatments, [torch.randn(256, 256, generator=generator(9))])
    assert list(found) == list(range(len(treatments)))
    assert list(found.values()) == sorted(found.values(), reverse=True)

"""Adjustments: what they change, and nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sdhub.checkpoint.resolve import resolve
from sdhub.core.errors import UnsupportedError, UsageError
from sdhub.recipes.adjust import Adjustment, parse_size, parse_static
from sdhub.recipes.calibration import LARGE, at_level, calibration_for
from sdhub.recipes.recipe import Recipe
from tests.recipes.made import PRESETS, preset


def recipe() -> Recipe:
    made = preset("coreml-4bit", ["unet", "text_encoder", "vae"])
    return made.model_copy(update={"calibration": calibration_for(resolve("demo")), "attention": ("original",)})


def test_nothing_is_adjusted_by_default() -> None:
    assert Adjustment().apply(recipe()) == recipe()


def test_fast_rounds_to_the_nearest_and_calibrates_nothing() -> None:
    fast = Adjustment(fast=True).apply(recipe())
    assert fast.name == "coreml-4bit-fast"
    assert fast.calibration is None
    assert "gptq" not in fast.canonical().decode()
    assert fast.components["unet"].default.bits == 4
    assert Adjustment(fast=True).apply(fast) == fast


def test_attention_and_sizes_replace_the_presets_own() -> None:
    made = Adjustment(attention=("split_einsum_v2",), sizes=((512, 768),)).apply(recipe())
    assert made.attention == ("split_einsum_v2",)
    assert made.sizes == ((512, 768),)
    assert made.components == recipe().components


@pytest.mark.parametrize("text", ["", "512", "512x", "x512", "512X512", "99999x64", "512x512x3"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="no size"):
        parse_size(text)


def test_a_static_shape_is_batch_height_width() -> None:
    assert parse_static("1x768x512") == (1, (512, 768))
    for wrong in ("768x512", "1x768", "0x64x64", "2x768x512"):
        with pytest.raises(UsageError):
            parse_static(wrong)


def test_a_floor_of_quality_is_in_the_name_and_needs_layers_to_spare() -> None:
    parts = ["unet", "text_encoder", "vae"]
    made = Adjustment(min_psnr=42.5).apply(preset("openvino-int8-full", parts))
    assert made.name == "openvino-int8-full-min42.5"
    with pytest.raises(UnsupportedError, match="keeps no layers in higher precision"):
        Adjustment(min_psnr=42.5).apply(preset("openvino-int8", parts))


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_preset_spells_out_every_component(name: str) -> None:
    made = preset(name, ["unet", "text_encoder", "text_encoder_2", "vae"])
    assert list(made.components) == ["unet", "text_encoder", "text_encoder_2", "vae"]


def large(checkpoint):
    """The same with a denoiser whose calls take seconds."""
    parts = [
        replace(part, parameters=int(LARGE) + 1) if part.name == "unet" else part for part in checkpoint.components
    ]
    return replace(checkpoint, components=tuple(parts), size=1024)


def test_calibration_in_levels() -> None:
    checkpoint = large(resolve("demo"))
    usual = recipe().model_copy(update={"calibration": calibration_for(checkpoint)})
    calls = []
    for level in ("quick", "standard", "full"):
        made = at_level(usual, checkpoint, level)
        assert made.components == usual.components
        assert made.calibration is not None
        calls.append(made.calibration.calls * made.calibration.width)
    assert calls == sorted(set(calls))
    assert at_level(usual, checkpoint, "full") == usual
    assert at_level(usual, checkpoint, "standard").calibration.width == 512  # type: ignore[union-attr]
    with pytest.raises(UsageError, match="no calibration is called 'some'"):
        at_level(usual, checkpoint, "some")


def test_small_denoisers_are_calibrated_whole_and_fixed_sizes_stay() -> None:
    assert at_level(recipe(), resolve("demo"), "standard") == recipe()
    assert at_level(recipe().uncalibrated(), resolve("demo"), "quick").calibration is None
    checkpoint = large(resolve("demo"))
    fixed = recipe().model_copy(update={"calibration": calibration_for(checkpoint), "sizes": ((1024, 1024),)})
    assert at_level(fixed, checkpoint, "quick").calibration.width == 1024  # type: ignore[union-attr]

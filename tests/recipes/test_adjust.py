"""Adjustments: what they change, and nothing else."""

from __future__ import annotations

import pytest

from sdhub.checkpoint.resolve import resolve
from sdhub.core.errors import UnsupportedError, UsageError
from sdhub.recipes.adjust import Adjustment, parse_size, parse_static
from sdhub.recipes.calibration import calibration_for
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

"""What a recipe says of weights, done: treatments by layer, compensated where calibrated, in order."""

from __future__ import annotations

import pytest
import torch

from sdhub.compression.calibration import LayerStatistics
from sdhub.compression.gptq import output_error
from sdhub.core.errors import UsageError
from sdhub.recipes.recipe import Affine, ComponentRecipe, Float, Palette
from sdhub.recipes.weights import compress, treatments

GENERATOR = torch.Generator().manual_seed(1)
MIX = torch.randn(128, 128, generator=GENERATOR)
TOKENS = torch.randn(512, 128, generator=GENERATOR) @ MIX
WEIGHTS = {
    "a": torch.randn(128, 128, generator=GENERATOR),
    "small": torch.randn(8, 8, generator=GENERATOR),
    "b": torch.randn(256, 128, generator=GENERATOR),
    "bias": torch.randn(2**15, generator=GENERATOR),
}


def statistics() -> dict[str, LayerStatistics]:
    gram = (TOKENS.T @ TOKENS,)
    peak, square = TOKENS.abs().amax(0), TOKENS.square().mean(0)
    return {name: LayerStatistics(-peak, peak, square, 512, TOKENS, gram, 512) for name in ("a", "b")}


def test_small_layers_and_vectors_stay_unless_the_recipe_names_them() -> None:
    chosen = treatments(WEIGHTS, ComponentRecipe(default=Palette(bits=4)))
    assert list(chosen) == ["a", "b"]
    named = ComponentRecipe(default=Palette(bits=4), layers={"small": Palette(bits=2), "b": Float()})
    assert {name: each.bits for name, each in treatments(WEIGHTS, named).items()} == {"a": 4, "small": 2}


@pytest.mark.parametrize(
    "scheme", [Palette(bits=3), Affine(bits=3, symmetric=True), Affine(bits=4, group_size=32)]
)
def test_compensated_rounding_lowers_the_output_error_and_keeps_tables(scheme: Palette | Affine) -> None:
    plain = dict(compress(WEIGHTS, ComponentRecipe(default=scheme), statistics()))
    better = scheme.model_copy(update={"rounding": "gptq"})
    compensated = dict(compress(WEIGHTS, ComponentRecipe(default=better), statistics()))
    for name, each in plain.items():
        gram = TOKENS.T @ TOKENS
        before = output_error(WEIGHTS[name], each.dequantize(), gram)
        after = output_error(WEIGHTS[name], compensated[name].dequantize(), gram)
        assert after < 0.8 * before
        assert type(compensated[name]) is type(each)


def test_without_a_calibration_the_nearest_value_is_taken() -> None:
    plain = dict(compress(WEIGHTS, ComponentRecipe(default=Palette(bits=3))))
    compensated = dict(compress(WEIGHTS, ComponentRecipe(default=Palette(bits=3, rounding="gptq"))))
    assert all(torch.equal(plain[name].indices, compensated[name].indices) for name in ("a", "b"))


def test_a_weight_that_is_not_finite_is_refused_by_name() -> None:
    broken = {**WEIGHTS, "b": torch.full((256, 128), torch.nan)}
    with pytest.raises(UsageError, match=r"^b: "):
        dict(compress(broken, ComponentRecipe(default=Palette(bits=3))))

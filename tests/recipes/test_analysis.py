"""From errors to recipes: budgets, predictions corrected by checks, evidence, transfer."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from sdhub.analysis.allocation import Option, total
from sdhub.analysis.analysis import MOST_DB, Analysis, Subject
from sdhub.core.errors import RecipeError, UsageError
from sdhub.recipes.recipe import Calibration, ComponentRecipe, Float, Palette, Recipe, parse_recipe

TREATMENTS = (Palette(bits=2), Palette(bits=4), Palette(bits=8), Float())
WEIGHTS = {"b": 1000, "a": 3000, "c": 1000}
SETTING = Calibration(prompts=("pear",), seed=1, steps=4, recorded=4, guidance=4.0, width=64, height=64)
TEMPLATE = Recipe(
    name="coreml-4bit",
    backend="coreml",
    components={"unet": ComponentRecipe(default=Palette(bits=4)), "vae": ComponentRecipe(default=Float())},
)


def analysis() -> Analysis:
    """Errors that fall fourfold a bit; layer c is a hundred times as sensitive."""
    bits = (2, 4, 8, 16)
    options = {
        name: tuple(
            Option(size * weights, 0.0 if size == 16 else (100 if name == "c" else 1) * 4.0**-size)
            for size in bits
        )
        for name, weights in WEIGHTS.items()
    }
    return Analysis(
        subject=Subject("unet", "org/model", "0" * 64, SETTING, (999.0, 1.0), {"torch": "2"}),
        treatments=TREATMENTS,
        options=options,
        numbers=dict.fromkeys(options, (0, 1, 2, 3)),
        weights=WEIGHTS,
        parameters=6000,
        peak=2.0,
        calls=24,
    )


def test_budgets_in_bits_and_bytes() -> None:
    found = analysis()
    assert found.size("4.5bits") == found.size("4.5 bit") == 22_500
    assert found.size("0.01MB") == 80_000 - 16_000
    for wrong in ("4.5", "bits", "-1bits", "4.5TB", "nanbits", ""):
        with pytest.raises(UsageError, match="is no budget"):
            found.size(wrong)


def test_sizes_of_a_choice() -> None:
    found = analysis()
    choice = found.uniform(Palette(bits=4))
    assert found.bits(choice) == 4.0
    assert found.model_bits(choice) == pytest.approx((5000 * 4 + 1000 * 16) / 6000)
    assert found.bytes(choice) == (5000 * 4 + 1000 * 16) // 8


def test_the_prediction_is_the_psnr_of_the_sum() -> None:
    found = analysis()
    choice = found.uniform(Palette(bits=4))
    assert found.predicted_db(choice) == pytest.approx(10 * math.log10(2.0**2 / (102 * 4.0**-4)))
    assert found.predicted_db(found.uniform(Float())) == MOST_DB


def test_checks_correct_predictions_between_them_and_beyond() -> None:
    found = analysis()
    low, middle, high = (found.uniform(each) for each in TREATMENTS[:3])
    checked = found.checked(low, found.raw_db(low) - 4, 8).checked(high, found.raw_db(high) + 2, 8)
    assert checked.calls == 24 + 16
    assert checked.predicted_db(low) == pytest.approx(found.raw_db(low) - 4)
    share = (found.raw_db(middle) - found.raw_db(low)) / (found.raw_db(high) - found.raw_db(low))
    assert checked.predicted_db(middle) == pytest.approx(found.raw_db(middle) - 4 + 6 * share)
    assert checked.measured_db(low) == pytest.approx(found.raw_db(low) - 4)
    assert checked.measured_db(middle) is None
    below = total(found.options, dict.fromkeys(WEIGHTS, 0))
    assert checked.predicted_db(replace(below, error=below.error * 10)) == pytest.approx(found.raw_db(low) - 14)


def test_the_sensitive_layer_gets_more_bits_within_the_budget() -> None:
    found = analysis()
    choice = found.within(found.size("4.5bits"))
    bits = {name: getattr(each, "bits", 16) for name, each in found.treatments_of(choice).items()}
    assert bits["c"] == 8 and bits["a"] <= 4
    assert found.bits(choice) <= 4.5


def test_a_recipe_has_its_layers_its_evidence_and_the_template_s_rest() -> None:
    found = analysis()
    choice = found.within(found.size("4.5bits"))
    found = found.checked(choice, 31.256, 8)
    recipe = found.recipe(choice, TEMPLATE, "coreml-mixed-4.5bit")
    assert recipe.components["vae"] == TEMPLATE.components["vae"]
    assert set(recipe.components["unet"].layers) == set(WEIGHTS)
    assert recipe.components["unet"].default == recipe.components["unet"].layers["a"]
    assert recipe.analysis is not None
    assert (recipe.analysis.measured_db, recipe.analysis.calls) == (31.26, 32)
    again = parse_recipe(json.dumps(recipe.document()))
    assert again == recipe
    assert recipe.sha256 == recipe.model_copy(update={"analysis": None}).sha256


def test_a_former_recipe_is_found_among_the_options_whatever_its_rounding() -> None:
    found = analysis()
    layers = {"a": Palette(bits=4, rounding="gptq"), "b": Palette(bits=6)}
    parts = {"unet": ComponentRecipe(default=Palette(bits=8), layers=layers)}
    recipe = Recipe(name="coreml-mine", backend="coreml", components=parts)
    assert found.former(recipe) == {"a": 1, "c": 2}
    with pytest.raises(RecipeError, match="says nothing of the unet"):
        found.former(recipe.model_copy(update={"components": {"vae": parts["unet"]}}))


def test_the_same_figures_give_the_same_bytes() -> None:
    texts = []
    for order in (WEIGHTS, sorted(WEIGHTS)):
        found = analysis()
        found = replace(found, options={name: found.options[name] for name in order})
        choice = found.within(found.size("3.1bits"))
        texts.append(found.recipe(choice, TEMPLATE, "coreml-mixed-3.1bit").model_dump_json())
    assert texts[0] == texts[1]

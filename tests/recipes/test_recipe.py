"""Recipes: the schema, the canonical form, and refusals that name the field."""

import hashlib
import json

import jsonschema
import pytest

from sdhub.core.errors import RecipeError
from sdhub.recipes.recipe import Affine, ComponentRecipe, Float, Recipe, json_schema, load_recipe, parse_recipe
from tests.recipes.made import PRESETS, preset

PARTS = ["text_encoder", "unet", "vae"]


@pytest.mark.parametrize("name", PRESETS)
def test_presets_fit_the_published_schema_and_come_back(name):
    recipe = preset(name, PARTS)
    document = json.loads(recipe.canonical())
    jsonschema.Draft202012Validator(json_schema()).validate(document)
    assert parse_recipe(recipe.canonical()) == recipe
    assert set(recipe.components) == set(PARTS)


def test_hash_is_of_sorted_compact_json_and_does_not_depend_on_order():
    recipe = preset("openvino-int8", PARTS)
    turned = preset("openvino-int8", PARTS[::-1])
    document = {name: value for name, value in recipe.document().items() if name != "analysis"}
    expected = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
    assert recipe.sha256 == turned.sha256 == hashlib.sha256(expected).hexdigest()


def test_a_missing_default_is_filled_before_hashing():
    full = preset("openvino-int8", PARTS).document()
    short = json.loads(json.dumps(full))
    del short["components"]["unet"]["layers"]
    del short["components"]["unet"]["default"]["symmetric"]
    assert parse_recipe(json.dumps(short)).sha256 == parse_recipe(json.dumps(full)).sha256


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d.update(colour="red"), "unknown field colour"),
        (lambda d: d["components"]["unet"].update(bits=8), "unknown field components.unet.bits"),
        (lambda d: d["components"]["unet"]["default"].update(bits=9), "bits"),
        (lambda d: d["components"]["unet"]["default"].update(bits="8"), "bits"),
        (lambda d: d["components"]["unet"]["default"].update(scheme="magic"), "components.unet.default"),
        (lambda d: d.update(version=3), "version"),
        (lambda d: d.update(components={}), "components"),
        (lambda d: d.update(name="../../etc"), "name"),
        (lambda d: d["components"].update({"../x": d["components"]["unet"]}), "components"),
        (lambda d: d.pop("backend"), "backend"),
    ],
)
def test_refusals_name_the_field_in_one_line(change, said):
    document = preset("openvino-int8", PARTS).document()
    change(document)
    with pytest.raises(RecipeError) as refusal:
        parse_recipe(json.dumps(document))
    assert said in refusal.value.message
    assert "\n" not in refusal.value.message
    assert list(jsonschema.Draft202012Validator(json_schema()).iter_errors(document))


@pytest.mark.parametrize("text", ["", "[]", "{", '{"version": NaN}', "null", "[" * 5000])
def test_what_is_no_recipe_is_refused(text):
    with pytest.raises(RecipeError):
        parse_recipe(text)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(RecipeError, match=r"none\.json"):
        load_recipe(tmp_path / "none.json")


def test_treatments_per_layer():
    component = ComponentRecipe(default=Affine(bits=8), layers={"conv_out": Float()})
    recipe = Recipe(name="openvino-mine", backend="openvino", components={"unet": component})
    assert parse_recipe(recipe.canonical()).components["unet"].layers["conv_out"] == Float()


def test_an_unknown_preset_names_the_known_ones():
    with pytest.raises(RecipeError) as refusal:
        preset("openvino-int3", PARTS)
    assert "openvino-int8" in refusal.value.hint


def test_the_schema_tells_what_fields_mean() -> None:
    schema = json_schema()
    assert "fixed shapes" in schema["properties"]["sizes"]["description"]
    assert "SmoothQuant" in schema["$defs"]["Affine"]["properties"]["smoothing"]["description"]

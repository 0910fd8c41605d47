"""Apple's recipe files: read, written, applied by name; hostile ones refused."""

from __future__ import annotations

import json

import pytest

from sdhub.analysis.apple import AppleFile, AppleRecipe, applied, exported, load_apple, parse_apple, write_apple
from sdhub.core.errors import RecipeError
from sdhub.recipes.recipe import Affine, Float, Palette

FILE = {
    "model_version": "stabilityai/stable-diffusion-xl-base-1.0",
    "baselines": {"original": 82.2, "linear_8bit": 66.025, "recipe_4.50_bit_mixedpalette": 75.8},
    "recipes": {
        "recipe_4.50_bit_mixedpalette": {
            "down_blocks.1.attentions.0.proj_in": 4,
            "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q": 1,
            "mid_block.resnets.0.conv1": 6,
            "conv_out": 16,
        },
        "recipe_2.71_bit_mixedpalette": {"mid_block.resnets.0.conv1": 2},
    },
    "single_layer": {"4": {"conv_out": 80.0}},
    "cumulative": {"4": {"conv_out": 79.0}},
}
SHAPES = {
    "down_blocks.1.attentions.0.proj_in": (640, 640),
    "mid_block.resnets.0.conv1": (1280, 1280, 3, 3),
    "mid_block.resnets.0.norm1": (1280,),
    "conv_out": (4, 320, 3, 3),
}


def test_a_published_file_is_read() -> None:
    file = parse_apple(json.dumps(FILE))
    assert file.model == "stabilityai/stable-diffusion-xl-base-1.0"
    assert (file.original_db, file.linear_8bit_db) == (82.2, 66.025)
    recipe = file.recipe("recipe_4.50_bit_mixedpalette")
    assert recipe.psnr_db == 75.8 and recipe.bits["mid_block.resnets.0.conv1"] == 6
    assert file.recipe("recipe_2.71_bit_mixedpalette").psnr_db is None


def test_what_was_written_is_read_again_and_has_the_original_s_form() -> None:
    file = parse_apple(json.dumps(FILE))
    text = write_apple(file)
    assert parse_apple(text) == AppleFile(
        file.model, tuple(sorted(file.recipes, key=lambda each: each.key)), 82.2, 66.025
    )
    document = json.loads(text)
    assert set(document) == set(FILE)
    assert document["recipes"] == FILE["recipes"] and document["baselines"] == FILE["baselines"]


def test_a_recipe_has_to_be_named_where_there_are_several() -> None:
    with pytest.raises(RecipeError, match="none is chosen"):
        parse_apple(json.dumps(FILE)).recipe()
    with pytest.raises(RecipeError, match="no recipe is called"):
        parse_apple(json.dumps(FILE)).recipe("recipe_9")


def test_layers_are_matched_by_name_and_the_others_listed() -> None:
    recipe = parse_apple(json.dumps(FILE)).recipe("recipe_4.50_bit_mixedpalette")
    found = applied(recipe, SHAPES)
    assert found.layers == {
        "down_blocks.1.attentions.0.proj_in": Palette(bits=4, rounding="gptq"),
        "mid_block.resnets.0.conv1": Palette(bits=6, rounding="gptq"),
        "conv_out": Float(),
    }
    assert found.unmatched == {"down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q": "no such layer"}


def test_shapes_are_compared_and_a_linear_is_a_1x1_convolution() -> None:
    recipe = AppleRecipe(
        "one", {"down_blocks.1.attentions.0.proj_in": 4, "conv_out": 4, "mid_block.resnets.0.norm1": 4}
    )
    base = {**SHAPES, "down_blocks.1.attentions.0.proj_in": (640, 640, 1, 1), "conv_out": (4, 640, 3, 3)}
    found = applied(recipe, SHAPES, base=base)
    assert list(found.layers) == ["down_blocks.1.attentions.0.proj_in"]
    assert found.unmatched == {
        "conv_out": "its weight is 4 x 320 x 3 x 3, and was 4 x 640 x 3 x 3",
        "mid_block.resnets.0.norm1": "its weight has 1 dimensions",
    }


def test_export_names_the_mean_bits_and_refuses_what_the_format_has_not() -> None:
    found = exported(
        {"a": Palette(bits=4), "b": Float(), "c": Palette(bits=1)}, {"a": 200, "b": 100, "c": 100}, 70.0
    )
    assert found == AppleRecipe("recipe_6.25_bit_mixedpalette", {"a": 4, "b": 16, "c": 1}, 70.0)
    for wrong in (Palette(bits=3), Palette(bits=4, group_size=16), Affine(bits=8)):
        with pytest.raises(RecipeError, match="Apple's recipes have no"):
            exported({"a": wrong}, {"a": 1})


@pytest.mark.parametrize(
    "document",
    [
        "[]", "{}", "not json", '{"recipes": {}}', '{"recipes": {"a": {}}}', '{"recipes": {"a": {"b": 5}}}',
        '{"recipes": {"a": {"b": true}}}', '{"recipes": {"a": {"b": "4"}}}', '{"recipes": {"a": {"": 4}}}',
        '{"recipes": {"a": {"b": [4]}}}', '{"recipes": {"a": {"b": 4}}, "baselines": 3}', "[" * 100_000,
        '{"recipes": {"a\\u0007": {"b": 4}}}',
    ],
)  # fmt: skip
def test_hostile_files_are_refused_in_one_line(document: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_apple(document)
    assert "\n" not in caught.value.message


def test_a_missing_file_is_named(tmp_path) -> None:
    with pytest.raises(RecipeError, match=r"none\.json"):
        load_apple(tmp_path / "none.json")

"""Recipes of version 1, as repositories that were published before hold them."""

import hashlib
import json

import pytest

from sdhub.backends.openvino.presets import PRESETS
from sdhub.core.errors import RecipeError
from sdhub.core.work import canonical
from sdhub.recipes.recipe import Recipe, identity, parse_recipe

GPTQ = {
    "scheme": "affine",
    "bits": 4,
    "symmetric": False,
    "group_size": 64,
    "activations": "float",
    "smoothing": 0.0,
}
OLD = {
    "version": 1,
    "name": "openvino-int4",
    "backend": "openvino",
    "components": {
        "unet": {
            "default": {**GPTQ, "rounding": "compensated", "spared": 0.1},
            "layers": {"conv_in": {"scheme": "palette", "bits": 6, "group_size": 0, "rounding": "nearest"}},
            "token_merging": 0.0,
        },
        "vae": {"default": {"scheme": "float", "dtype": "float16"}, "layers": {}, "token_merging": 0.0},
    },
    "calibration": None,
    "sizes": [],
    "attention": [],
    "chunked": False,
    "batch": 0,
}


def test_their_words_become_those_of_version_2() -> None:
    found = parse_recipe(json.dumps({**OLD, "evidence": None}))
    default = found.components["unet"].default
    assert (found.version, default.rounding, default.higher_precision) == (2, "gptq", 0.1)
    assert found.components["unet"].layers["conv_in"].rounding == "round_to_nearest"
    again = parse_recipe(json.dumps(found.document()))
    assert again == found


def test_what_identified_them_still_does() -> None:
    published = canonical(OLD)  # the bytes of recipe.json
    assert identity({**OLD, "evidence": None}) == identity(OLD) == hashlib.sha256(published).hexdigest()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"components": []}, "components"),
        ({"components": {"unet": 3}}, "components.unet"),
        ({"components": {"unet": {"default": 3}}}, "components.unet.default"),
        ({"components": {"unet": {"default": {**GPTQ, "rounding": "gptq?"}}}}, "rounding"),
        ({"analysis": None, "evidence": None}, "unknown field evidence"),
        ({"version": 3}, "version"),
        ({"version": True}, "version"),
    ],
)
def test_broken_ones_are_refused_by_field(change: dict, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        parse_recipe(json.dumps({**OLD, **change}))


def test_version_2_does_not_know_the_words_of_version_1() -> None:
    with pytest.raises(RecipeError, match="rounding"):
        parse_recipe(json.dumps({**OLD, "version": 2}))
    assert PRESETS["openvino-int4"].weights.rounding == "gptq"
    assert "spared" not in json.dumps(Recipe.model_json_schema())

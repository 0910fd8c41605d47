from __future__ import annotations

import pytest

from sdhub.backends.base import backend_of
from sdhub.core.errors import RecipeError, UnsupportedError
from sdhub.core.nearly import meant
from tests.recipes.made import preset


def test_one_name_is_suggested() -> None:
    known = [f"name-{letter}" for letter in "abcdefgh"]
    assert meant("nam-c", known) == "did you mean name-c?"
    assert meant("NAME-D", known) == "did you mean name-d?"
    assert meant("xyz", known, "see there") == "see there"
    assert meant("xyz", ["one", "two"]) == "there are: one, two"
    assert meant("", []) == ""


@pytest.mark.parametrize(
    ("word", "near"),
    [("openvino-int-8", "openvino-int8"), ("coreml-6bits", "coreml-6bit"), ("sdnq-unit4", "sdnq-uint4")],
)
def test_variants(word: str, near: str) -> None:
    with pytest.raises(UnsupportedError, match="no variant is called") as caught:
        backend_of(word)
    assert caught.value.hint == f"did you mean {near}?"
    with pytest.raises(RecipeError, match="no preset makes") as missing:
        preset(word, ["unet"])
    assert missing.value.hint == f"did you mean {near}?"

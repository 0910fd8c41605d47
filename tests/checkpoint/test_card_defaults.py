from __future__ import annotations

import pytest

from sdhub.checkpoint.card_defaults import CardDefaults, card_defaults


def test_what_a_card_shows() -> None:
    card = {
        "widget": [{"text": "a  cat"}, "a dog", {"text": "a cat"}, {"url": "x"}],
        "inference": {"parameters": {"num_inference_steps": "4", "guidance_scale": 0}},
    }
    assert card_defaults(card) == CardDefaults(("a cat", "a dog"), 4, 0.0)


@pytest.mark.parametrize(
    "value", [None, "x", [], {"parameters": []}, {"parameters": {"num_inference_steps": "inf"}}]
)
def test_what_is_no_use_is_left_out(value: object) -> None:
    assert card_defaults({"inference": value, "widget": value}).steps is None
    assert card_defaults({"widget": [5, {"text": "\x1b"}, {"text": "x" * 999}]}) == CardDefaults()

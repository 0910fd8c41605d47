"""The terms of a checkpoint with LoRAs and ControlNets."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sdhub.checkpoint.checkpoint import License, PinnedLora
from sdhub.core.errors import LicenseError
from sdhub.publishing.terms import settle_all
from tests.publishing.publications import checkpoint

SHA = "0" * 40
NC = License("cc-by-nc-4.0")


def terms(base: str, lora: License | None, override: str | None = None, *, local: bool = False) -> License:
    made = PinnedLora("a/b", 1.0, "/x/b.safetensors" if local else "b", None if local else SHA, license=lora)
    own = License(base, file="LICENSE")
    return settle_all(replace(checkpoint(), license=own, loras=(made,), companions=()), override)


def test_the_stricter_terms_hold_whichever_side_has_them() -> None:
    assert terms("apache-2.0", License("mit")).id == "apache-2.0"
    assert terms("apache-2.0", License("creativeml-openrail-m")).id == "creativeml-openrail-m"
    assert terms("openrail++", License("mit")).id == "openrail++"
    assert terms("cc-by-nc-4.0", NC).id == "cc-by-nc-4.0"
    found = terms("apache-2.0", NC)
    assert (found.id, found.file, found.texts) == ("cc-by-nc-4.0", None, ("LICENSE",))


def test_terms_that_no_order_has_are_refused() -> None:
    for lora in (License("gpl-3.0"), License("cc-by-nd-4.0"), License("other")):
        with pytest.raises(LicenseError, match="the LoRA a/b"):
            terms("cc-by-nc-4.0", lora)
    for base, lora in RIVALS:
        with pytest.raises(LicenseError, match="do not tell which of them holds") as caught:
            terms(base, License(lora))
        assert f"--license {base} or --license {lora}" in str(caught.value.hint)


RIVALS = [
    ("creativeml-openrail-m", "cc-by-nc-4.0"),
    ("cc-by-nc-4.0", "creativeml-openrail-m"),
    ("openrail++", "creativeml-openrail-m"),
    ("ms-pl", "cc-by-nc-4.0"),
    ("gpl-3.0", "openrail"),
]


@pytest.mark.parametrize(("base", "lora"), RIVALS)
def test_the_user_may_say_which_of_two_holds(base: str, lora: str) -> None:
    assert terms(base, License(lora), base).id == base
    assert terms(base, License(lora), base).file == "LICENSE"
    found = terms(base, License(lora), lora)
    assert (found.id, found.file, found.texts) == (lora, None, ("LICENSE",))
    for third in ("apache-2.0", "agpl-3.0"):
        with pytest.raises(LicenseError):
            terms(base, License(lora), third)


def test_no_word_loosens_terms() -> None:
    assert terms("apache-2.0", NC, "apache-2.0").id == "cc-by-nc-4.0"
    assert terms("apache-2.0", NC, "cc-by-nc-4.0").id == "cc-by-nc-4.0"
    with pytest.raises(LicenseError, match="contradicts"):
        terms("cc-by-nc-4.0", License("mit"), "apache-2.0")


def test_a_lora_of_the_hub_that_states_nothing_needs_a_word() -> None:
    with pytest.raises(LicenseError, match="states no licence"):
        terms("apache-2.0", None)
    assert terms("apache-2.0", None, "apache-2.0").id == "apache-2.0"
    assert terms("apache-2.0", None, "cc-by-nc-4.0").id == "cc-by-nc-4.0"


def test_ones_own_file_comes_under_the_checkpoints_terms_or_its_own() -> None:
    assert terms("openrail++", None, local=True).id == "openrail++"
    assert terms("apache-2.0", None, "cc-by-nc-4.0", local=True).id == "cc-by-nc-4.0"
    assert terms("apache-2.0", NC, local=True).id == "cc-by-nc-4.0"

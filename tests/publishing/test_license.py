from __future__ import annotations

import pytest

from sdhub.checkpoint.checkpoint import License
from sdhub.core.errors import LicenseError, UsageError
from sdhub.publishing.license import ids, settle
from sdhub.publishing.privacy import target_private
from tests.publishing.publications import checkpoint


@pytest.mark.parametrize("stated", [None, License("unknown"), License("a b"), License("x" * 200)])
def test_unknown_licences_are_refused_with_the_way_out(stated):
    with pytest.raises(LicenseError) as refused:
        settle(stated, source="org/model")
    assert refused.value.exit_code == 3
    assert "--license ID" in refused.value.hint
    assert "\n" not in refused.value.message


@pytest.mark.parametrize(
    "stated",
    [
        License("cc-by-nd-4.0"),
        License("cc-by-nc-nd-3.0"),
        License("CC-BY-NC-ND-4.0"),
        License("other", name="CC BY-ND 4.0", link="https://example.org"),
        License("other", name="no derivatives please", link="https://example.org"),
    ],
)
@pytest.mark.parametrize("override", [None, "mit"])
def test_no_derivatives_is_refused_and_cannot_be_overridden(stated, override):
    with pytest.raises(LicenseError):
        settle(stated, override)


@pytest.mark.parametrize("id", ["creativeml-openrail-m", "openrail++", "apache-2.0", "some-new-licence-2"])
def test_stated_licences_are_inherited_with_name_link_and_file(id):
    stated = License(id, name="n", link="https://example.org/l", file="LICENSE")
    assert settle(stated) == stated


def test_other_needs_name_and_link():
    for lacking in (
        License("other"),
        License("other", name="x"),
        License("other", link="https://example.org"),
        License("other", name="x", link="javascript:alert(1)"),
        License("other", name="x", link="../../etc/passwd"),
    ):
        with pytest.raises(LicenseError, match="without a name and a link"):
            settle(lacking)
    whole = License("other", name="flux-1-dev-non-commercial-license", link="LICENSE.md")
    assert settle(whole) == whole


def test_override_fills_in_but_does_not_contradict():
    assert settle(None, "MIT") == License("mit")
    assert settle(License("unknown"), "openrail++").id == "openrail++"
    assert settle(License("other"), "mit").id == "mit"
    assert settle(License("mit"), "mit") == License("mit")
    with pytest.raises(LicenseError, match="contradicts"):
        settle(License("agpl-3.0"), "mit")
    with pytest.raises(UsageError) as refused:
        settle(None, "apache2.0")
    assert "apache-2.0" in refused.value.hint
    for wrong in ("", "unknown", "cc-by-nd-4.0", "x\n---\nevil: 1"):
        with pytest.raises((LicenseError, UsageError)):
            settle(None, wrong)


def test_terms_of_an_other_licence_that_are_stated_stand():
    own = License("other", name="stabilityai-ai-community", link="https://example.org/license")
    with pytest.raises(LicenseError, match="contradicts"):
        settle(own, "mit")
    nameless = settle(License("other", name="terms without a link", file="LICENSE"), "other")
    assert nameless.name == "terms without a link"
    assert settle(License("other", link="https://example.org"), "mit") == License("mit")


def test_the_list_has_the_ids_of_diffusion_checkpoints():
    assert {"creativeml-openrail-m", "openrail++", "apache-2.0", "mit", "other", "cc-by-nc-4.0"} <= ids()


@pytest.mark.parametrize("flag", ["private", "gated"])
def test_private_and_gated_sources_stay_private(flag):
    source = checkpoint(**{flag: True})
    assert target_private(source)
    assert not target_private(source, allow_public=True)
    assert target_private(source, private=True, allow_public=True)
    assert not target_private(checkpoint())


def test_several_licences_are_not_chosen_among_in_silence() -> None:
    both = License("apache-2.0 and mit", file="LICENSE")
    with pytest.raises(LicenseError, match="states several licences"):
        settle(both)
    assert settle(both, "mit") == License("mit", file="LICENSE")
    with pytest.raises(LicenseError, match="contradicts"):
        settle(both, "gpl-3.0")
    for chosen in (None, "mit"):
        with pytest.raises(LicenseError, match="no derivatives"):
            settle(License("mit and cc-by-nd-4.0"), chosen)

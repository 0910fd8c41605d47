from __future__ import annotations

import pytest
from huggingface_hub.utils import validate_repo_id
from hypothesis import given
from hypothesis import strategies as st

from sdhub.core.errors import UsageError
from sdhub.publishing.names import MAX_LENGTH, repository_id, repository_name

TEMPLATE = "{model}-openvino-{treatment}"


@pytest.mark.parametrize(
    ("template", "model", "treatment", "name"),
    [
        (TEMPLATE, "emoji-sd", "int8", "emoji-sd-openvino-int8"),
        ("coreml-{model}-{treatment}", "SD v1.5", "mixed-4.5bit", "coreml-SD-v1.5-mixed-4.5bit"),
        (TEMPLATE, "../..//x--y..z.git", "int8", "x-y.z-openvino-int8"),
        (TEMPLATE, "Ünï", "int8", "n-openvino-int8"),
        ("{model}", "a.git", "", "a"),
    ],
)
def test_names(template, model, treatment, name):
    assert repository_name(template, model=model, treatment=treatment) == name


@given(st.text(min_size=1, max_size=300))
def test_any_model_name_gives_a_name_that_the_hub_takes(model):
    name = repository_name(TEMPLATE, model=model, treatment="int8")
    validate_repo_id(repository_id("someone", name))
    assert len(name) <= MAX_LENGTH
    assert name.endswith("openvino-int8")


def test_long_names_that_differ_stay_different():
    names = {repository_name(TEMPLATE, model="m" * 100 + end, treatment="int8") for end in "abc"}
    assert len(names) == 3
    assert {len(name) for name in names} == {MAX_LENGTH}


@pytest.mark.parametrize(
    "template", ["{model.__class__}", "{0}", "{}", "{other}-{model}", "---", "{model}" + "x" * 99]
)
def test_templates_that_mean_nothing(template):
    with pytest.raises(UsageError):
        repository_name(template, model="a", treatment="b")


@pytest.mark.parametrize("namespace", ["", "-a", "a-", "a/b", "ä", "a b", "a--b", ".."])
def test_namespaces_that_the_hub_refuses(namespace):
    with pytest.raises(UsageError):
        repository_id(namespace, "x")

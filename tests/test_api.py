"""The public names are what they say, in a fresh interpreter, whatever was imported before."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import sdhub
from sdhub.core.errors import UsageError

VERBS = ("inspect", "plan", "build", "load", "generate", "analyze", "publish", "verify")
BEFORE = {
    "nothing": "",
    "every submodule": """
import pkgutil
for each in pkgutil.iter_modules(sdhub.__path__):
    if each.name != "__main__":
        importlib.import_module(f"sdhub.{each.name}")
""",
    "the modules of the verbs": """
from sdhub.workflow.publish import prepare
import sdhub.workflow.plan, sdhub.workflow.analyze
""",
}
SCRIPT = """
import importlib, types
import sdhub
{before}
for name in sdhub.__all__:
    found = getattr(sdhub, name)
    assert callable(found) and not isinstance(found, types.ModuleType), name
from sdhub import inspect, load, publish
assert publish.__module__ == "sdhub.workflow.publish" and publish.__name__ == "publish"
assert "torch" not in importlib.import_module("sys").modules
"""


@pytest.mark.parametrize("before", BEFORE)
def test_public_names(before):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(before=BEFORE[before])], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_editors_see_what_is_loaded_late():
    """The names imported for type checkers are those of `__all__`, from the places that `_WHERE` says."""
    tree = ast.parse(Path(sdhub.__file__).read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {
        each.asname or each.name: (node.module, each.name)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for each in node.names
    }
    assert seen == sdhub._WHERE
    assert sorted(seen) == sorted(sdhub.__all__)
    assert set(sdhub.__all__) <= set(dir(sdhub))


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_is_typed_and_says_what_it_raises(verb):
    found = getattr(sdhub, verb)
    signature = inspect.signature(found)
    assert signature.return_annotation is not inspect.Signature.empty
    assert all(each.annotation is not inspect.Parameter.empty for each in signature.parameters.values())
    assert found.__name__ == verb
    assert "Raises" in found.__doc__


def test_a_source_is_a_string_or_a_checkpoint_and_variants_are_one_or_many():
    checkpoint = sdhub.inspect("demo")
    one = sdhub.plan("demo", "openvino-int8")
    assert one == sdhub.plan(checkpoint, ["openvino-int8"])
    assert [each.name for each in one.variants] == ["openvino-int8"]
    two = sdhub.plan(checkpoint, ("openvino-int8", "sdnq-int8"), sdhub.Options(namespace="me"))
    assert [each.repo_id for each in two.variants] == ["me/emoji-sd-openvino-int8", "me/emoji-sd-sdnq-int8"]
    with pytest.raises(UsageError, match="twice"):
        sdhub.plan(checkpoint, "sdnq-int8", sdhub.Options(variants=("openvino-int8",)))
    with pytest.raises(AttributeError, match="nothing_of_ours"):
        sdhub.nothing_of_ours  # noqa: B018

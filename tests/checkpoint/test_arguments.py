"""`arguments.json` is held against the constructors of the libraries that are installed."""

from __future__ import annotations

import ast
import inspect
import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import sdhub
from sdhub.checkpoint.configs import NESTED
from sdhub.checkpoint.known import SCHEDULERS
from sdhub.checkpoint.values import RULES

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")
DOCUMENT: dict[str, list[str]] = json.loads(
    (Path(sdhub.__path__[0]) / "checkpoint" / "arguments.json").read_text()
)
MODELS = [kind for kind in DOCUMENT if kind != "scheduler" and hasattr(diffusers, kind)]
CONFIGS = [kind for kind in DOCUMENT if kind.endswith("Config")]
PROCESSORS = [kind for kind in DOCUMENT if kind.endswith("Processor")]
# Arguments of transformers before 5, which a config of that time holds.
FORMER = {
    "Gemma2Config": {"cache_implementation", "rope_theta"},
    "Qwen2_5_VLConfig": {"rope_scaling", "rope_theta"},
    "Qwen2_5_VLVisionConfig": {"rope_parameters"},
    "SiglipVisionConfig": {"vision_use_head"},
    "T5Config": {"tie_word_embeddings"},
}
# Arguments that every config has: who wrote it, and what classifiers, searches and trainers read; no picture
# depends on them. (`is_encoder_decoder` is T5's own as well.)
GENERAL = {
    *("architectures", "chunk_size_feed_forward", "dtype", "id2label", "is_encoder_decoder", "label2id"),
    *("output_hidden_states", "problem_type", "return_dict", "transformers_version"),
}
newest = pytest.mark.skipif(int(transformers.__version__.partition(".")[0]) < 5, reason="of transformers 5")


def arguments(kind: Any) -> set[str]:
    found = inspect.signature(kind.__init__).parameters.values()
    return {each.name for each in found if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)} - {"self"}


def config_of(kind: str) -> Any:
    return getattr(transformers, kind, None) or getattr(
        import_module("transformers.models.qwen2_5_vl.configuration_qwen2_5_vl"), kind
    )


def in_source(path: Path, kind: str) -> set[str]:
    """Of a class that cannot be imported without another package."""
    made = next(
        each for each in ast.parse(path.read_text()).body if isinstance(each, ast.ClassDef) and each.name == kind
    )
    function = next(each for each in made.body if isinstance(each, ast.FunctionDef) and each.name == "__init__")
    return {each.arg for each in function.args.args} - {"self"}


def test_schedulers_take_just_these() -> None:
    found: set[str] = set()
    for kind in SCHEDULERS:
        found |= arguments(getattr(diffusers, kind))
    sde = Path(diffusers.__path__[0]) / "schedulers" / "scheduling_dpmsolver_sde.py"
    found |= in_source(sde, "DPMSolverSDEScheduler")
    assert set(DOCUMENT["scheduler"]) == found - {"args", "kwargs"}


@pytest.mark.parametrize("kind", MODELS)
def test_models_take_just_these(kind: str) -> None:
    assert set(DOCUMENT[kind]) == arguments(getattr(diffusers, kind)) - {"kwargs"}


@newest
@pytest.mark.parametrize("kind", CONFIGS)
def test_configs_take_just_these_and_what_every_config_has(kind: str) -> None:
    found, listed = arguments(config_of(kind)), set(DOCUMENT[kind])
    assert found - listed <= GENERAL <= arguments(transformers.PretrainedConfig)
    flat = set(DOCUMENT["Qwen2_5_VLTextConfig"]) if kind == "Qwen2_5_VLConfig" else set()  # before it was nested
    assert listed - found - flat - FORMER.get(kind, set()) == set()
    assert FORMER.get(kind, set()) <= listed - found


@newest
@pytest.mark.parametrize("kind", PROCESSORS)
def test_processors_have_these_settings(kind: str) -> None:
    assert set(DOCUMENT[kind]) <= set(transformers.ImagesKwargs.__annotations__) | set(
        dir(getattr(transformers, kind))
    )


def test_every_argument_has_its_bounds() -> None:
    for kind, listed in DOCUMENT.items():
        assert len(listed) == len(set(listed))
        assert set(listed) - set(RULES) == set(NESTED.get(kind, ()))

"""`coreml-mixed-<bits>bit` as a variant: planned at once, its layers found by an analysis when it is made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sdhub.analysis.analyzer import SensitivityAnalyzer
from sdhub.backends.coreml.backend import BACKEND
from sdhub.checkpoint.resolve import resolve
from sdhub.core.errors import UnsupportedError
from sdhub.core.hub import Hub
from sdhub.core.progress import SILENT
from sdhub.recipes.adjust import Adjustment
from sdhub.recipes.recipe import Palette, load_recipe
from sdhub.workflow import analyze, mixed
from sdhub.workflow.plan import choose

NAME = "coreml-mixed-4.5bit"


def test_a_name_says_the_bits() -> None:
    assert BACKEND.knows(NAME)
    assert "4.5 bits on average" in str(BACKEND.describe(NAME))
    for name in ("coreml-mixed-0.5bit", "coreml-mixed-9bit", "coreml-mixed-bit", "coreml-mixed-4.5"):
        assert not BACKEND.knows(name)
        with pytest.raises(UnsupportedError, match="no variant is called"):
            choose(resolve("demo"), [name], None)


def test_it_is_planned_without_an_analysis_and_larger_with_more_bits() -> None:
    checkpoint = resolve("demo")
    sizes = []
    for name in ("coreml-mixed-2bit", NAME, "coreml-mixed-7bit"):
        ((backend, recipe),) = choose(checkpoint, [name], None)
        assert mixed.is_open(recipe)
        backend.accept(checkpoint, recipe)
        sizes.append(backend.forecast(checkpoint, recipe).bytes)
    assert sizes == sorted(set(sizes))


def test_the_analysis_fills_in_the_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A brief one, of few layers: what is asked for here is the way from a name to a recipe and its curve."""
    monkeypatch.setenv("SDHUB_HOME", str(tmp_path / "home"))
    checkpoint = resolve("demo")
    adjusted = Adjustment(attention=("original",), chunked=True)
    ((_, recipe),) = choose(checkpoint, [NAME], None, adjusted)
    monkeypatch.setattr(analyze, "sensitivity_analyzer", brief(analyze.sensitivity_analyzer))
    mixed.run_analysis(checkpoint, Hub(), recipe, "cpu", tmp_path, SILENT)
    found = load_recipe(tmp_path / mixed.RECIPE)
    assert (found.name, found.attention, found.chunked) == (NAME, ("original",), True)
    assert found.analysis is not None and found.analysis.bits <= 4.5
    assert not mixed.is_open(found)
    layers = found.components["unet"].layers
    assert len(layers) == 4
    assert all(not isinstance(each, Palette) or each.bits in (1, 2, 4, 6, 8) for each in layers.values())
    BACKEND.accept(checkpoint, found)
    assert (tmp_path / mixed.CURVE).read_bytes().startswith(b"\x89PNG")
    (tmp_path / "mine.json").write_text(json.dumps(found.document()))
    assert choose(checkpoint, [], tmp_path / "mine.json") == [(BACKEND, found)]


def brief(usual: Any) -> Any:
    def sensitivity_analyzer(*arguments: Any, **named: Any) -> SensitivityAnalyzer:
        analyzer: SensitivityAnalyzer = usual(*arguments, **named)
        analyzer.setting = analyzer.setting.model_copy(
            update={"prompts": analyzer.setting.prompts[:1], "steps": 2, "recorded": 2, "block": 256}
        )
        analyzer.layers = analyzer.layers[:4]
        return analyzer

    return sensitivity_analyzer

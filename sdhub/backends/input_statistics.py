"""What calibration sees of a component's layers, within a bound of memory.

Projections that are given the same inputs (query, key and value of an attention) are looked at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sdhub.core.progress import SILENT, Progress
from sdhub.recipes.recipe import Calibration

if TYPE_CHECKING:
    from sdhub.compression.calibration import LayerStatistics

BUDGET = 2**30  # bytes of Gram matrices
TRIPLES = (  # query, key, value
    ("to_q", "to_k", "to_v"),
    ("add_q_proj", "add_k_proj", "add_v_proj"),
    ("q_proj", "k_proj", "v_proj"),
    ("q", "k", "v"),
)
CROSS = "attn2"  # diffusers' name of an attention to something else


def input_statistics(
    pipeline: Any,
    component: str,
    layers: Sequence[str],
    calibration: Calibration | None,
    *,
    tokens: int = 0,
    progress: Progress = SILENT,
) -> Mapping[str, LayerStatistics]:
    """Statistics of the inputs of a component's `layers`, with Gram matrices and so many tokens each.

    The blocks of Gram matrices are the calibration's, or as much narrower as keeps them within 1 GiB together.
    Without a calibration, or layers, nothing is run.
    """
    if calibration is None or not layers:
        return {}
    from sdhub.compression.calibration import fitting_block
    from sdhub.recipes.calibration import calibrate

    module = getattr(pipeline, component)
    leaders = shared_inputs(module, layers)
    watched = sorted(set(leaders.values()))
    block = min(calibration.block, fitting_block(module, BUDGET, watched))
    limited = calibration.model_copy(update={"block": block})
    found = calibrate(pipeline, limited, component, watched, tokens=tokens, progress=progress)
    return {name: found[leader] for name, leader in leaders.items() if leader in found}


def shared_inputs(module: Any, layers: Sequence[str]) -> dict[str, str]:
    """For each of `layers` the one of them that is looked at in its place: itself, or one with the same inputs."""
    chosen = set(layers)
    crossing = bool(getattr(module.config, "only_cross_attention", False))
    leaders = {}
    for name in layers:
        parent, _, own = name.rpartition(".")
        alike: tuple[str, ...] = next((each for each in TRIPLES if own in each), ())
        if crossing or parent.rpartition(".")[2] == CROSS:
            alike = alike[1:] if own in alike[1:] else ()
        group = [f"{parent}.{each}" for each in alike if f"{parent}.{each}" in chosen]
        leaders[name] = group[0] if group and _width(module, group[0]) == _width(module, name) else name
    return leaders


def _width(module: Any, name: str) -> int:
    return int(module.get_submodule(name).weight.shape[1])

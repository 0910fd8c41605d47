"""Compressing one exported component as its recipe says."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdhub.backends.openvino import constants, graph
from sdhub.backends.openvino.integers import compute_in_integers
from sdhub.core.errors import BuildError
from sdhub.core.progress import SILENT, Progress
from sdhub.core.quiet import quiet
from sdhub.recipes.recipe import Affine, ComponentRecipe, Treatment
from sdhub.recipes.weights import MEMORY

if TYPE_CHECKING:
    import torch

    from sdhub.compression.calibration import LayerStatistics

HIGHER_PRECISION = Affine(bits=8)  # what layers get that lose too much


def compress(
    folder: Path,
    component: ComponentRecipe,
    *,
    higher_precision: Iterable[str] = (),
    statistics: Mapping[str, LayerStatistics] | None = None,
    device: torch.device | None = None,
    progress: Progress = SILENT,
) -> None:
    """Compress the model in `folder` in place.

    `higher_precision`: layers that keep 8-bit weights and float activations whatever the recipe says.
    `statistics`: of the inputs of layers whose activations are rounded or that are rounded by GPTQ. Layers that
    the component names and the graph does not have (the other half of a VAE) are passed over. `device`: as in
    `weights.compress`. Raises BuildError.
    """
    if not any(isinstance(each, Affine) for each in component.treatments.values()):
        return
    with quiet():
        model = graph.read(folder)
    found = graph.layers(model)
    wanted = {layer: _treatment(layer, component, higher_precision) for layer in found}
    integers = [layer for layer in found if _is_integer(found[layer], wanted[layer])]
    own = [layer for layer in found if layer not in integers and _is_own(wanted[layer])]
    statistics = statistics or {}
    if unseen := sorted(set(integers) - set(statistics)):
        raise BuildError(f"{folder.name}: the inputs of {unseen[0]} are to be rounded without calibration")
    _put_grids(found, {layer: wanted[layer] for layer in own}, statistics, device, progress)
    taken = [found[layer].get_friendly_name() for layer in (*integers, *own)]
    model = _plain(model, component, found, wanted, taken)
    if integers:
        found = graph.layers(model)
        chosen = {layer: found[layer] for layer in integers}
        compute_in_integers(chosen, statistics, smoothing_of(component), memory=MEMORY, progress=progress)
    with quiet():
        graph.save(model, folder)


def smoothing_of(component: ComponentRecipe) -> float:
    """The smoothing of a component's rounded activations; a backend accepts one for all its layers."""
    rounding = [
        each for each in component.treatments.values() if isinstance(each, Affine) and each.activations != "float"
    ]
    return rounding[0].smoothing if rounding else 0.0


def _treatment(layer: str, component: ComponentRecipe, higher_precision: Iterable[str]) -> Treatment:
    named = component.layers.get(layer)
    if named is not None:
        return named
    return HIGHER_PRECISION if layer in higher_precision else component.default


def _is_integer(operation: Any, treatment: Treatment) -> bool:
    if not isinstance(treatment, Affine) or treatment.activations == "float":
        return False
    return treatment.activations == "int8" or operation.get_type_name() != "MatMul"


def _is_own(treatment: Treatment) -> bool:
    """Whether the grid is made here; NNCF makes those of 8 bits and one scale per channel."""
    if not isinstance(treatment, Affine):
        return False
    return treatment.bits != 8 or bool(treatment.group_size) or treatment.rounding == "gptq"


def _put_grids(
    found: Mapping[str, Any],
    wanted: Mapping[str, Treatment],
    statistics: Mapping[str, LayerStatistics],
    device: torch.device | None,
    progress: Progress,
) -> None:
    from sdhub.compression.affine import Grid
    from sdhub.recipes import weights

    if not wanted:
        return
    given = {layer: constants.weight_of(found[layer]) for layer in wanted}
    fitting = {layer: _fitting(each, given[layer][0].numel()) for layer, each in wanted.items()}
    component = ComponentRecipe(default=HIGHER_PRECISION, layers=fitting)
    for layer, grid in weights.compress(
        given, component, statistics, memory=MEMORY, device=device, progress=progress
    ):
        assert isinstance(grid, Grid)
        constants.put(found[layer], grid)


def _fitting(treatment: Treatment, columns: int) -> Treatment:
    """One scale per output channel where groups do not divide the inputs."""
    assert isinstance(treatment, Affine)
    if treatment.group_size and columns % treatment.group_size:
        return treatment.model_copy(update={"group_size": 0})
    return treatment


def _plain(
    model: Any,
    component: ComponentRecipe,
    found: Mapping[str, Any],
    wanted: Mapping[str, Treatment],
    taken: list[str],
) -> Any:
    """8-bit weights, a scale per output channel, of all that is left: layers, and embeddings by the default."""
    import nncf

    modes = {False: nncf.CompressWeightsMode.INT8_ASYM, True: nncf.CompressWeightsMode.INT8_SYM}
    for symmetric, mode in modes.items():
        chosen = {
            operation.get_friendly_name()
            for layer, operation in found.items()
            if isinstance(each := wanted[layer], Affine) and each.symmetric == symmetric
        } - set(taken)
        embeddings = isinstance(component.default, Affine) and component.default.symmetric == symmetric
        if not chosen and not embeddings:
            continue
        ignored = {each.get_friendly_name() for each in found.values()} - chosen
        ignored |= set() if embeddings else _gathers(model)
        with quiet():
            model = nncf.compress_weights(
                model, mode=mode, ignored_scope=nncf.IgnoredScope(names=sorted(ignored), validate=False)
            )
    return model


def _gathers(model: Any) -> set[str]:
    return {each.get_friendly_name() for each in model.get_ops() if each.get_type_name() == "Gather"}

"""Layers that multiply in integers: inputs in 8 bits with a whole zero point, weights in 7 of 8 bits.

The nodes are those that NNCF writes and that OpenVINO's plugins turn into integer arithmetic: FakeQuantize before
a layer, and a weight of integers times a scale for each output channel. Inputs are smoothed by SmoothQuant (see
`sdhub.compression.smoothquant`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sdhub.backends.openvino import constants
from sdhub.backends.openvino.graph import moves
from sdhub.core.progress import SILENT, Progress

if TYPE_CHECKING:
    import torch

    from sdhub.compression.calibration import LayerStatistics

WEIGHT_BITS = 7  # processors without VNNI add two products in 16 bits: those of full weights would not fit
LEVELS = 256
LEAST, MOST = 2.0**-14, 2.0**14  # smoothing is stored in 16 bits


def compute_in_integers(
    found: Mapping[str, Any],
    statistics: Mapping[str, LayerStatistics],
    smoothing: float,
    *,
    memory: int,
    progress: Progress = SILENT,
) -> None:
    """Round the inputs and the weights of the layers in `found`, operations of one graph by their names.

    Ranges of inputs are the widest that any call had: they differ from timestep to timestep, and averages would
    clip. Layers that have the same input share its rounding. `smoothing`: the exponent of the inputs' ranges, of
    products of matrices; 0 for none.
    """
    from sdhub.compression.affine import Grid, quantize
    from sdhub.compression.layers import each_layer

    factors: dict[str, torch.Tensor] = {}
    for layers in _of_one_input(found):
        operations = [found[layer] for layer in layers]
        observed, smooth = statistics[layers[0]], None
        if smoothing and _is_smooth(operations[0]):
            smooth = factors_of(observed, [constants.weight_of(each) for each in operations], smoothing)
            factors |= dict.fromkeys(layers, smooth)
        _round_input(operations, *grid_of(observed, smooth), smooth)

    def work(layer: str) -> Grid:
        weight = constants.weight_of(found[layer]).float()
        smooth = factors.get(layer)
        return quantize(weight if smooth is None else weight * smooth, WEIGHT_BITS, symmetric=True)

    sizes = {layer: constants.weight_of(each).numel() for layer, each in found.items()}
    millions = sum(sizes.values()) / 1e6
    with progress.task("rounding to integers", total=millions, unit="M weights") as task:
        for layer, grid in each_layer(found, work, cost=lambda layer: 16 * sizes[layer], memory=memory):
            constants.put_integers(found[layer], grid)
            task.advance(sizes[layer] / 1e6)


def factors_of(observed: LayerStatistics, weights: Sequence[torch.Tensor], alpha: float) -> torch.Tensor:
    """SmoothQuant's factors (K,) of one input of several weights (N, K); their inverses are float16's."""
    import torch

    from sdhub.compression.smoothquant import smoothing_factors

    columns = torch.stack([each.float().abs().amax(dim=0) for each in weights]).amax(dim=0)
    factors = smoothing_factors(observed.absmax.to(columns.device), columns, alpha, 1 - alpha)
    return 1 / (1 / factors).clamp(LEAST, MOST).half().float()


def grid_of(observed: LayerStatistics, smoothing: torch.Tensor | None = None) -> tuple[float, int]:
    """Step and zero point of the 256 levels of a layer's inputs, which are divided by `smoothing` (C,) first."""
    low, high = observed.low, observed.high
    if smoothing is not None:
        low, high = (each / smoothing.to(each.device) for each in (low, high))
    least, most = min(float(low.min()), 0.0), max(float(high.max()), 0.0)
    step = max(most - least, 1e-12) / (LEVELS - 1)
    return step, round(-least / step)


def _of_one_input(found: Mapping[str, Any]) -> list[list[str]]:
    """Layers, by the output of the graph that they all read, and read alike."""
    groups: dict[tuple[str, int, bool], list[str]] = defaultdict(list)
    for layer, operation in found.items():
        source = operation.input_value(0)
        groups[source.get_node().get_name(), source.get_index(), _is_smooth(operation)].append(layer)
    return list(groups.values())


def _is_smooth(operation: Any) -> bool:
    """Whether an operation's inputs can be smoothed: products of matrices (…, tokens, C).

    Of (…, C, tokens), as converting a transposed input leaves them, the CPU plugin takes the factor of the first
    channel for all.
    """
    return operation.get_type_name() == "MatMul" and not operation.get_attributes()["transpose_a"]


def _round_input(operations: Sequence[Any], step: float, zero: int, smoothing: torch.Tensor | None) -> None:
    """Put levels, and smoothing before them, between operations and the input that they share."""
    import numpy as np
    from openvino import opset13 as ops

    ports = [each.input(0) for each in operations]
    if smoothing is None:
        ports = _before_moves(ports)
    source = ports[0].get_source_output()
    name = operations[0].get_friendly_name()
    if smoothing is not None:
        rank = source.get_partial_shape().rank.get_length()
        inverse = (1 / smoothing).reshape([1] * (rank - 1) + [-1]).numpy()
        node = ops.multiply(source, ops.constant(inverse, name=f"{name}/smoothing"))
        node.set_friendly_name(f"{name}/smoothed")
        source = node.output(0)
    ends = [np.float32(-zero * step), np.float32((LEVELS - 1 - zero) * step)]
    rounded = ops.fake_quantize(source, *ends, *ends, LEVELS)
    rounded.set_friendly_name(f"{name}/rounded")
    for port in ports:
        port.replace_source_output(rounded.output(0))


def _before_moves(ports: list[Any]) -> list[Any]:
    """As far up as values are only moved, so that bytes are moved instead."""
    while True:
        source = ports[0].get_source_output()
        node = source.get_node()
        if not moves(node) or len(source.get_target_inputs()) > len(ports):
            return ports
        ports = [node.input(0)]

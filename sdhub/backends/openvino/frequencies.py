"""Frequencies of timestep embeddings, exact where 16 bits would round them.

A denoiser is told the time by sines and cosines of t · 10000^(-i / n) (Vaswani et al. 2017, arXiv 1706.03762), t
up to 1000. The table of these powers is a constant, and files with float weights in 16 bits keep it in 16 bits: an
error of 2^-12 in a frequency is a quarter of a radian at t = 1000, and more where guidance is embedded alike.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

BASE = 10000.0
SHIFTS = (0, 1)  # the exponents go up to (n - 1) / n, or to 1


def restore(model: Any) -> int:
    """Give the tables that 16 bits rounded their other digits back, as a second table to add; how many it found.

    Two tables in 16 bits have the precision of 32 bits, and stay so however often the model is saved.
    """
    import numpy as np
    from openvino import opset13 as ops

    found = 0
    for widened in _tables(model):
        rounded = widened.input_value(0).get_node().data
        exact = _exact(rounded)
        if exact is None:
            continue
        users = list(widened.output(0).get_target_inputs())
        rest = ops.convert(ops.constant((exact - rounded.astype(np.float64)).astype(np.float16)), "f32")
        whole = ops.add(widened, rest)
        for user in users:
            user.replace_source_output(whole.output(0))
        found += 1
    return found


def _tables(model: Any) -> list[Any]:
    """Converts of 16-bit constants (1, n) that a sine's or a cosine's angle is a multiple of."""
    tables = {}
    for operation in model.get_ordered_ops():
        if operation.get_type_name() not in ("Sin", "Cos"):
            continue
        angle = operation.input_value(0).get_node()
        if angle.get_type_name() != "Multiply":
            continue
        for value in angle.input_values():
            node = value.get_node()
            if _is_table(node):
                tables[node.get_friendly_name()] = node
    return list(tables.values())


def _is_table(node: Any) -> bool:
    if node.get_type_name() != "Convert":
        return False
    source = node.input_value(0).get_node()
    is_half = source.get_type_name() == "Constant" and source.get_element_type().get_type_name() == "f16"
    return is_half and len(source.get_output_shape(0)) == 2 and source.get_output_shape(0)[0] == 1


def _exact(rounded: npt.NDArray[np.float16]) -> npt.NDArray[np.float64] | None:
    """The powers that were rounded; None for a table of something else."""
    import numpy as np

    count = rounded.shape[1]
    for shift in SHIFTS:
        if count > shift:
            powers: npt.NDArray[np.float64] = BASE ** (-np.arange(count) / (count - shift))
            if np.allclose(powers.astype(np.float16), rounded[0], rtol=2**-10, atol=2**-24):
                return powers.reshape(1, -1)
    return None

"""OpenVINO graphs on disk, and their weighted operations by the checkpoint's own layer names."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

from sdhub.backends.openvino import telemetry
from sdhub.core.errors import BuildError
from sdhub.core.foreign import translate_errors

MODEL = "openvino_model.xml"
# The converter names operations after the module and the torch function that they come from.
OPERATION = re.compile(r"__module\.(?P<layer>.+)/aten::(?:linear|_convolution\w*|conv2d)/(?:MatMul|Convolution)")
WRAPPER = "model."  # what the converter puts around modules whose inputs it has to reorder, such as SDXL's UNet
PRODUCTS = ("MatMul", "Convolution", "GroupConvolution")
WEIGHT = 1  # the input of a product that holds its weight


def read(folder: Path) -> Any:
    """The model of an exported component; its weights stay in the file until they are used."""
    telemetry.off()
    import openvino

    return openvino.Core().read_model(folder / MODEL)


def require_readable(folder: Path) -> None:
    """Raises BuildError that names the first part of a variant whose graph OpenVINO does not read."""
    for path in sorted(folder.glob(f"*/{MODEL}")):
        with translate_errors(f"{path.parent.name} does not open", BuildError):
            read(path.parent)


def save(model: Any, folder: Path) -> None:
    """Write the model, with float weights in 16 bits, in place of the one it was read from."""
    import openvino

    # Beside the old files first: those are still mapped into memory.
    fresh = folder / "fresh.xml"
    openvino.save_model(model, fresh, compress_to_fp16=True)
    fresh.with_suffix(".bin").replace(folder / "openvino_model.bin")
    fresh.replace(folder / MODEL)


def take_fractions(model: Any, name: str) -> bool:
    """Let the input `name` be float32 where it is an integer; whether it was one.

    optimum-intel traces UNets with whole timesteps, and schedulers give others (Karras et al. 2022, arXiv
    2206.00364); OpenVINO's Python API casts what it is given to an input's type.
    """
    import openvino

    found = [each for each in model.inputs if name in each.names and each.element_type.is_integral()]
    for each in found:
        each.get_node().set_element_type(openvino.Type.f32)
    model.validate_nodes_and_infer_types()
    return bool(found)


def layers(model: Any) -> dict[str, Any]:
    """Every Linear and Conv2d of the graph by its module path: the operation that multiplies with its weight."""
    found = {}
    for operation in model.get_ordered_ops():
        match = OPERATION.fullmatch(operation.get_friendly_name())
        if match and operation.get_type_name() in PRODUCTS:
            found[match["layer"]] = operation
    if all(layer.startswith(WRAPPER) for layer in found):
        return {layer.removeprefix(WRAPPER): operation for layer, operation in found.items()}
    return found


def constant_of(operation: Any) -> Any:
    """The constant that a weighted operation's weight is computed from."""
    node = operation.input_value(WEIGHT).get_node()
    while node.get_type_name() != "Constant":
        node = node.input_value(0).get_node()
    return node


def weight_types(model: Any) -> Counter[str]:
    """How many layers keep their weight in which type: "f16", "u8", "i8", "u4", "i4"."""
    return Counter(
        constant_of(operation).get_output_element_type(0).get_type_name() for operation in layers(model).values()
    )


def moves(node: Any) -> bool:
    """Whether an operation only moves or repeats values."""
    if node.get_type_name() == "Interpolate":
        return bool(node.get_attributes()["mode"] == "nearest")
    return node.get_type_name() in ("Reshape", "Transpose")

"""What each MIL operation computes, with torch.

Source: documentation of the operations in `coremltools/converters/mil/mil/ops/defs` of coremltools 9.0.
"""

from sdhub.backends.coreml.mil.operations import (
    activation,
    convolution,
    elementwise,
    indexing,
    normalization,
    padding,
    product,
    quantization,
    reduction,
    shaping,
)
from sdhub.backends.coreml.mil.operations.registry import OPERATIONS, TUPLES, Definition

__all__ = [
    "OPERATIONS",
    "TUPLES",
    "Definition",
    "activation",
    "convolution",
    "elementwise",
    "indexing",
    "normalization",
    "padding",
    "product",
    "quantization",
    "reduction",
    "shaping",
]

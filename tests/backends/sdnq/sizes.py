"""What SDNQ's format takes, by arithmetic."""

import math


def stored_bytes(shape, layout):
    """Bytes of a weight of `shape`: codes, 16 bits for each scale and zero point, and the factors' 16 bits."""
    layout = layout.fitting(shape)
    outputs, channels, *kernel = shape
    places = math.prod(kernel)
    scales = outputs * (channels // layout.width(channels)) * places * (1 if layout.symmetric else 2)
    codes = outputs * channels * places * layout.bits // 8
    return codes + 2 * scales + 2 * layout.rank * (outputs + channels * places)

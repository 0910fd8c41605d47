"""How large a result may become that a few bytes of a program can ask for."""

from __future__ import annotations

import math
from collections.abc import Iterable

from sdhub.backends.coreml.mil.types import MOST_ELEMENTS


def bounded(shape: Iterable[int]) -> list[int]:
    """`shape` as a list.

    Raises ValueError where a tensor of it has more than 2³¹ elements.
    """
    lengths = list(shape)
    if math.prod(max(length, 0) for length in lengths) > MOST_ELEMENTS:
        raise ValueError(f"a tensor of shape {lengths}")
    return lengths

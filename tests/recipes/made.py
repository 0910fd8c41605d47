"""Presets of all backends, for tests of what recipes are."""

from __future__ import annotations

from collections.abc import Sequence

from sdhub.backends.coreml import presets as coreml
from sdhub.backends.openvino import presets as openvino
from sdhub.backends.sdnq import presets as sdnq
from sdhub.backends.svdquant import presets as svdquant
from sdhub.recipes import presets
from sdhub.recipes.recipe import Recipe

BY_BACKEND = {
    "coreml": coreml.PRESETS,
    "openvino": openvino.PRESETS,
    "sdnq": sdnq.PRESETS,
    "svdquant": svdquant.PRESETS,
    "nunchaku": svdquant.NUNCHAKU_PRESETS,
}
PRESETS = {name: each for found in BY_BACKEND.values() for name, each in found.items()}


def preset(variant: str, components: Sequence[str]) -> Recipe:
    """The recipe of a preset."""
    backend = variant.partition("-")[0]
    return presets.preset(backend, BY_BACKEND.get(backend, PRESETS), variant, components)

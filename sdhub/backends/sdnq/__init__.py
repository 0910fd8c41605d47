"""SDNQ: 4- and 8-bit weights for every device, in the format that diffusers loads with the `sdnq` package."""

from sdhub.backends.sdnq.backend import BACKEND

__all__ = ["BACKEND"]

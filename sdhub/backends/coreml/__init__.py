"""Core ML: packages in the layout of apple/ml-stable-diffusion, made, compressed, read and run on any machine."""

from sdhub.backends.coreml.backend import BACKEND

__all__ = ["BACKEND"]

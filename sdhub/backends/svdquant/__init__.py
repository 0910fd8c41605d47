"""SVDQuant: 4-bit weights and 4-bit arithmetic on NVIDIA's GPUs, in two formats of files.

`BACKEND` writes `nunchaku_lite`, which diffusers loads, `NUNCHAKU` the single files of Nunchaku, for ComfyUI.
"""

from sdhub.backends.svdquant.backend import BACKEND
from sdhub.backends.svdquant.nunchaku import NUNCHAKU

__all__ = ["BACKEND", "NUNCHAKU"]

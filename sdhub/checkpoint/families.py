"""Families: what an architecture is, as small records.

To add one, add a record here and its example to `tests/checkpoint/test_families.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

TRAITS = {
    "inpainting": "the denoiser takes a mask and a masked image (9 latent channels)",
    "student": "blocks removed by distillation (mid_block_type null, or one layer a block)",
    "turbo": "distilled to few steps, sampled without guidance",
    "lcm": "a latent consistency model: few steps, guidance as an embedding",
    "no-safety-checker": "the pipeline has no safety checker",
}


@dataclass(frozen=True)
class Family:
    """One architecture.

    `denoiser` names the component that is called at every step; `quantizable` the components with weights
    worth compressing, largest first. `size` is the default side in pixels, `steps` and `guidance` what a
    checkpoint of the family is sampled with where nothing else is said. `buildable` False means that sdhub
    can inspect but not yet build it.
    """

    name: str
    title: str
    denoiser: str
    quantizable: tuple[str, ...]
    size: int
    steps: int
    guidance: float
    buildable: bool = True

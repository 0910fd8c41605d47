"""Families: what an architecture is, as small records.

To add one, add a record to `FAMILIES`, its pipelines to `PIPELINES`, its classes to `known.py`, and its example to
`tests/checkpoint/test_families.py`. `detect.py` tells them apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

TRAITS = {
    "inpainting": "the denoiser takes a mask and a masked image (9 latent channels)",
    "student": "blocks removed by distillation (mid_block_type null, or one layer a block)",
    "turbo": "distilled to few steps, sampled without guidance",
    "lcm": "a latent consistency model: few steps, guidance as an embedding",
    "ema": "the file also holds averaged weights (model_ema); its plain ones are used",
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


_ENCODERS_XL = ("text_encoder_2", "text_encoder")

FAMILIES: Mapping[str, Family] = {
    family.name: family
    for family in (
        Family("sd1", "Stable Diffusion 1.x", "unet", ("unet", "text_encoder", "vae"), 512, 25, 7.5),
        Family("sd2", "Stable Diffusion 2.x", "unet", ("unet", "text_encoder", "vae"), 768, 25, 7.5),
        Family("sdxl", "Stable Diffusion XL", "unet", ("unet", *_ENCODERS_XL, "vae"), 1024, 30, 5.0),
        Family(
            "sdxl-refiner",
            "Stable Diffusion XL refiner",
            "unet",
            ("unet", "text_encoder_2", "vae"),
            1024,
            30,
            5.0,
        ),
        Family(
            "sd3",
            "Stable Diffusion 3.x",
            "transformer",
            ("transformer", "text_encoder_3", *_ENCODERS_XL, "vae"),
            1024,
            28,
            4.5,
        ),
        Family(
            "flux",
            "FLUX.1",
            "transformer",
            ("transformer", *_ENCODERS_XL, "vae"),
            1024,
            28,
            3.5,
        ),
        Family(
            "pixart",
            "PixArt",
            "transformer",
            ("text_encoder", "transformer", "vae"),
            1024,
            20,
            4.5,
            buildable=False,
        ),
        Family(
            "sana",
            "Sana",
            "transformer",
            ("text_encoder", "transformer", "vae"),
            1024,
            20,
            4.5,
        ),
        Family(
            "qwen-image",
            "Qwen-Image",
            "transformer",
            ("transformer", "text_encoder", "vae"),
            1024,
            50,
            4.0,
            buildable=False,
        ),
    )
}

# The class that draws with nine latent channels, in the place of one that does not.
INPAINTING: Mapping[str, str] = {
    "StableDiffusionPipeline": "StableDiffusionInpaintPipeline",
    "StableDiffusionImg2ImgPipeline": "StableDiffusionInpaintPipeline",
    "StableDiffusionXLPipeline": "StableDiffusionXLInpaintPipeline",
    "StableDiffusionXLImg2ImgPipeline": "StableDiffusionXLInpaintPipeline",
}

# The families that a pipeline class can hold; where there are several, the structure decides.
PIPELINES: Mapping[str, tuple[str, ...]] = {
    "StableDiffusionPipeline": ("sd1", "sd2"),
    "StableDiffusionImg2ImgPipeline": ("sd1", "sd2"),
    "StableDiffusionInpaintPipeline": ("sd1", "sd2"),
    "LatentConsistencyModelPipeline": ("sd1", "sd2"),
    "StableDiffusionXLPipeline": ("sdxl",),
    "StableDiffusionXLImg2ImgPipeline": ("sdxl", "sdxl-refiner"),
    "StableDiffusionXLInpaintPipeline": ("sdxl",),
    "StableDiffusion3Pipeline": ("sd3",),
    "FluxPipeline": ("flux",),
    "PixArtAlphaPipeline": ("pixart",),
    "PixArtSigmaPipeline": ("pixart",),
    "SanaPipeline": ("sana",),
    "SanaSprintPipeline": ("sana",),
    "QwenImagePipeline": ("qwen-image",),
}

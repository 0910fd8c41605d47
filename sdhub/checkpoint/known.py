"""The classes that a checkpoint may name. Everything else is refused before anything is imported.

To add one, add it here by its library; a class without weights also goes into `SCHEDULERS` or `TOKENIZERS`.
"""

from __future__ import annotations

SCHEDULERS = frozenset(
    {
        "DDIMScheduler",
        "DDPMScheduler",
        "DEISMultistepScheduler",
        "DPMSolverMultistepScheduler",
        "DPMSolverSDEScheduler",
        "DPMSolverSinglestepScheduler",
        "EDMDPMSolverMultistepScheduler",
        "EDMEulerScheduler",
        "EulerAncestralDiscreteScheduler",
        "EulerDiscreteScheduler",
        "FlowMatchEulerDiscreteScheduler",
        "FlowMatchHeunDiscreteScheduler",
        "HeunDiscreteScheduler",
        "IPNDMScheduler",
        "KDPM2AncestralDiscreteScheduler",
        "KDPM2DiscreteScheduler",
        "LCMScheduler",
        "LMSDiscreteScheduler",
        "PNDMScheduler",
        "SASolverScheduler",
        "SCMScheduler",
        "TCDScheduler",
        "UniPCMultistepScheduler",
    }
)

TOKENIZERS = frozenset(
    {
        "CLIPTokenizer",
        "CLIPTokenizerFast",
        "GemmaTokenizer",
        "GemmaTokenizerFast",
        "Qwen2Tokenizer",
        "Qwen2TokenizerFast",
        "T5Tokenizer",
        "T5TokenizerFast",
    }
)

CLASSES: dict[str, frozenset[str]] = {
    "diffusers": SCHEDULERS
    | {
        "AutoencoderDC",
        "AutoencoderKL",
        "AutoencoderKLQwenImage",
        "AutoencoderTiny",
        "FluxTransformer2DModel",
        "PixArtTransformer2DModel",
        "QwenImageTransformer2DModel",
        "SD3Transformer2DModel",
        "SanaTransformer2DModel",
        "Transformer2DModel",
        "UNet2DConditionModel",
    },
    "transformers": TOKENIZERS
    | {
        "CLIPFeatureExtractor",
        "CLIPImageProcessor",
        "CLIPTextModel",
        "CLIPTextModelWithProjection",
        "CLIPVisionModelWithProjection",
        "Gemma2Model",
        "Qwen2_5_VLForConditionalGeneration",
        "SiglipImageProcessor",
        "SiglipVisionModel",
        "T5EncoderModel",
    },
    "stable_diffusion": frozenset({"StableDiffusionSafetyChecker"}),
}

_DENOISERS = frozenset(
    each for each in CLASSES["diffusers"] if each.startswith("UNet") or each.endswith("Transformer2DModel")
) | {"Transformer2DModel"}
_TEXT_ENCODERS = frozenset(
    {
        "CLIPTextModel",
        "CLIPTextModelWithProjection",
        "Gemma2Model",
        "Qwen2_5_VLForConditionalGeneration",
        "T5EncoderModel",
    }
)

# The components that pipelines have, and the classes that each may be.
ROLES: dict[str, frozenset[str]] = {
    "unet": _DENOISERS,
    "transformer": _DENOISERS,
    "vae": frozenset(each for each in CLASSES["diffusers"] if each.startswith("Autoencoder")),
    "scheduler": SCHEDULERS,
    **dict.fromkeys(("text_encoder", "text_encoder_2", "text_encoder_3"), _TEXT_ENCODERS),
    **dict.fromkeys(("tokenizer", "tokenizer_2", "tokenizer_3"), TOKENIZERS),
    "safety_checker": CLASSES["stable_diffusion"],
    "feature_extractor": frozenset({"CLIPFeatureExtractor", "CLIPImageProcessor", "SiglipImageProcessor"}),
    "image_encoder": frozenset({"CLIPVisionModelWithProjection", "SiglipVisionModel"}),
}

# What else a pipeline may be told, true or false.
SETTINGS = (
    "add_watermarker",
    "force_zeros_for_empty_prompt",
    "is_distilled",
    "requires_aesthetics_score",
    "requires_safety_checker",
)

# Neither drawn with nor part of a variant: a safety_checker/ folder breaks optimum-intel's loading from the Hub.
UNLOADED = frozenset({"safety_checker", "feature_extractor", "image_encoder"})

# The stem of weight files, by library.
STEMS = {"diffusers": "diffusion_pytorch_model", "transformers": "model"}

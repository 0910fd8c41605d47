"""What a call of a denoiser costs, known from its config alone: multiplications and additions, two for each pair.

Convolutions and matrix products are counted, as `torch.utils.flop_counter` counts them; norms, activations and
embeddings are hundredths of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sdhub.checkpoint.checkpoint import Checkpoint
from sdhub.checkpoint.half_precision import stored
from sdhub.core.machine import operations_per_second
from sdhub.core.units import GIB

TEXT_TOKENS = 77  # of CLIP
TRANSFORMER_TEXT = {"sd3": 333, "flux": 512}  # tokens of text that go through the blocks
BLOCK_WIDTHS = {"sana": 13.5, "pixart": 14}  # squared widths of a block's weights that every token meets
SANA_DOWN = 32  # of Sana's autoencoder (DC-AE)
EFFICIENCY = 0.5  # of products of large matrices, that torch has in a denoiser in float32; measured
DECODING_EFFICIENCY = 1.0  # the same of an autoencoder, whose convolutions are large
OVERHEAD_SECONDS = 0.01  # of one call, however small
KEPT_BYTES = 4 * GIB  # of a denoiser in float32
RUNTIME_BYTES, ACTIVATION_BYTES = int(0.7 * GIB), 4096  # of torch and its libraries; of a pixel of the picture
VAE_OPERATIONS = 9.6e6  # of decoding, a pixel, by Stable Diffusion's autoencoder; counted


def call_seconds(checkpoint: Checkpoint, width: int, height: int) -> float:
    """Forecast of `call_operations` in torch's float32 on this machine."""
    return call_operations(checkpoint, width, height) / (EFFICIENCY * operations_per_second()) + OVERHEAD_SECONDS


def decoding_seconds(checkpoint: Checkpoint, width: int, height: int) -> float:
    """Forecast of `decoding_operations` in torch's float32 on this machine."""
    operations = decoding_operations(checkpoint, width, height)
    return operations / (DECODING_EFFICIENCY * operations_per_second()) + OVERHEAD_SECONDS


def passes(checkpoint: Checkpoint, guidance: float) -> int:
    """Calls of the denoiser at a step: two with classifier-free guidance, one where it is embedded."""
    part = checkpoint.component(checkpoint.family.denoiser)
    config = part.config if part else {}
    embedded = config.get("guidance_embeds") or config.get("time_cond_proj_dim") is not None
    return 2 if guidance > 1 and not embedded and checkpoint.family.name != "flux" else 1


def stays_half(checkpoint: Checkpoint) -> bool:
    """Whether a denoiser keeps its files' 16-bit weights to draw with, widened a layer at a time: where it would
    take much in float32."""
    part = checkpoint.component(checkpoint.family.denoiser)
    return part is not None and 4 * part.parameters > KEPT_BYTES and stored(checkpoint) is not None


def drawing_bytes(checkpoint: Checkpoint, width: int, height: int) -> int:
    """Forecast of the memory that drawing with the base takes, with what torch itself does."""
    weights = 4 * sum(part.parameters for part in checkpoint.components)
    if stays_half(checkpoint):
        part = checkpoint.component(checkpoint.family.denoiser)
        weights -= 2 * part.parameters if part else 0
    return weights + RUNTIME_BYTES + ACTIVATION_BYTES * width * height


def call_operations(checkpoint: Checkpoint, width: int, height: int) -> float:
    """Of one call of the denoiser for one picture of `width` x `height` pixels, without guidance."""
    part = checkpoint.component(checkpoint.family.denoiser)
    if part is None:
        return 0.0
    down = _down(checkpoint)
    positions = width / down * height / down
    if checkpoint.family.denoiser == "unet":
        return 2 * _unet(part.config, positions)
    return 2 * _transformer(part.config, checkpoint.family.name, positions)


def decoding_operations(checkpoint: Checkpoint, width: int, height: int) -> float:
    """Of the autoencoder, from latents to one picture; from the squared width of its highest stage."""
    part = checkpoint.component("vae")
    first = _each(part.config.get("block_out_channels") if part else None, 1, 128)[0]
    return VAE_OPERATIONS * (first / 128) ** 2 * width * height


def _down(checkpoint: Checkpoint) -> int:
    """Pixels of a latent position's side."""
    if checkpoint.family.name == "sana":
        return SANA_DOWN
    part = checkpoint.component("vae")
    stages = _stages(part.config.get("block_out_channels") if part else None) or 4
    return int(2 ** (stages - 1))


def _unet(config: Mapping[str, Any], positions: float) -> float:
    """Pairs of a multiplication and an addition of diffusers' UNet2DConditionModel at so many latent positions."""
    stages = _stages(config.get("block_out_channels")) or 4
    widths = _each(config.get("block_out_channels"), stages, 320)
    layers = _each(config.get("layers_per_block"), stages, 2)
    depths = _each(config.get("transformer_layers_per_block"), stages, 1)
    texts = _each(config.get("cross_attention_dim"), stages, widths[0])
    names = config.get("down_block_types")
    crosses = ["CrossAttn" in str(name) for name in (names if isinstance(names, (list, tuple)) else ())]
    crosses = (crosses + [False] * stages)[:stages]

    total = 9.0 * _whole(config.get("in_channels"), 4) * widths[0] * positions
    skips, inputs, here = [widths[0]], widths[0], positions
    for stage, width in enumerate(widths):
        for _ in range(layers[stage]):
            total += _resnet(inputs, width, here)
            if crosses[stage]:
                total += _attention(width, depths[stage], texts[stage], here)
            inputs = width
            skips.append(width)
        if stage < stages - 1:
            here /= 4
            total += 9 * width**2 * here
            skips.append(width)
    if config.get("mid_block_type", "UNetMidBlock2DCrossAttn") is not None:
        total += 2 * _resnet(inputs, inputs, here) + _attention(inputs, depths[-1], texts[-1], here)
    for stage in reversed(range(stages)):
        width = widths[stage]
        for _ in range(layers[stage] + 1):
            total += _resnet(inputs + (skips.pop() if skips else width), width, here)
            if crosses[stage]:
                total += _attention(width, depths[stage], texts[stage], here)
            inputs = width
        if stage:
            here *= 4
            total += 9 * width**2 * here
    return float(total + 9 * widths[0] * _whole(config.get("out_channels"), 4) * positions)


def _resnet(inputs: int, outputs: int, positions: float) -> float:
    shortcut = inputs * outputs if inputs != outputs else 0
    return (9 * inputs * outputs + 9 * outputs**2 + shortcut) * positions


def _attention(width: int, depth: int, text: int, positions: float) -> float:
    """`depth` blocks: attention to itself, to the text, and a feed-forward part of 4 x `width` with a gate."""
    to_itself = 4 * width**2 * positions + 2 * positions**2 * width
    to_text = 2 * width**2 * positions + 2 * text * width * TEXT_TOKENS + 2 * TEXT_TOKENS * positions * width
    return 2 * width**2 * positions + depth * (to_itself + to_text + 12 * width**2 * positions)


def _transformer(config: Mapping[str, Any], family: str, positions: float) -> float:
    """Blocks of 12 times the squared width a token (attention 4, feed-forward 8), and attention among all tokens.

    Sana's attention is linear in the tokens, and it attends to the text, as PixArt does, with weights of its own.
    """
    # FLUX packs four positions into a token before the model sees them.
    patch = 2 if family == "flux" else _whole(config.get("patch_size"), 1)
    tokens = positions / patch**2 + TRANSFORMER_TEXT.get(family, 0)
    width = _whole(config.get("num_attention_heads"), 0) * _whole(config.get("attention_head_dim"), 0)
    blocks = _whole(config.get("num_layers"), 0) + _whole(config.get("num_single_layers"), 0)
    among = 0.0 if family == "sana" else 2 * tokens**2 * width
    return float(blocks * (BLOCK_WIDTHS.get(family, 12) * width**2 * tokens + among))


def _each(value: Any, stages: int, default: int) -> list[int]:
    """One number for each stage, where one stands for all; of nested lists the largest."""
    values = list(value) if isinstance(value, (list, tuple)) and value else [value]
    flat = [max(_each(each, len(each), default)) if _stages(each) else _whole(each, default) for each in values]
    return (flat + flat[-1:] * stages)[:stages]


def _stages(value: Any) -> int:
    return len(value) if isinstance(value, (list, tuple)) else 0


def _whole(value: Any, default: int) -> int:
    """A number above zero, as configs that load have; a stranger's that is none is refused elsewhere."""
    return value if isinstance(value, int) and value > 0 else default

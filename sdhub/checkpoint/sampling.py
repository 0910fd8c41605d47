"""How a checkpoint is sampled where nobody says otherwise: evidence, calibration, guidance that is embedded."""

from __future__ import annotations

from dataclasses import dataclass

from sdhub.checkpoint.checkpoint import Checkpoint

FEW_STEPS = 4  # of what was distilled to few: turbo models (Sauer et al. 2023), latent consistency models
EMBEDDED_GUIDANCE = 8.5  # the default of diffusers' LatentConsistencyModelPipeline, which embeds it
TIMESTEPS = 1000  # of Ho et al. 2020; diffusers' default of every scheduler
WITHOUT = 1.0  # classifier-free guidance of 1 is none, as LCM-LoRAs are drawn with (Luo et al. 2023)


@dataclass(frozen=True)
class SamplingDefaults:
    """Steps, guidance scale, and the side of a square picture in pixels."""

    steps: int
    guidance: float
    side: int


def sampling_defaults(checkpoint: Checkpoint) -> SamplingDefaults:
    """What the author's card shows, else what the kind of checkpoint asks for, else its family's default."""
    steps, guidance = _usual(checkpoint)
    return SamplingDefaults(
        steps=min(checkpoint.steps or steps, most_steps(checkpoint)),
        guidance=float(guidance if checkpoint.guidance is None else checkpoint.guidance),
        side=checkpoint.size or checkpoint.family.size,
    )


def most_steps(checkpoint: Checkpoint) -> int:
    """The most steps that its scheduler can take: as many as it was trained on."""
    scheduler = checkpoint.component("scheduler")
    trained = scheduler.config.get("num_train_timesteps") if scheduler else None
    return trained if isinstance(trained, int) else TIMESTEPS


def _usual(checkpoint: Checkpoint) -> tuple[int, float]:
    if "lcm" in checkpoint.traits:
        denoiser = checkpoint.component(checkpoint.family.denoiser)
        embeds = denoiser is not None and denoiser.config.get("time_cond_proj_dim") is not None
        return FEW_STEPS, EMBEDDED_GUIDANCE if embeds else WITHOUT
    if "turbo" in checkpoint.traits:
        return FEW_STEPS, 0.0
    return checkpoint.family.steps, checkpoint.family.guidance

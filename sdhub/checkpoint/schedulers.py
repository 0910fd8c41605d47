"""What schedulers need and give, known from their class and config as diffusers has them."""

from __future__ import annotations

import inspect
import math
from importlib.util import find_spec
from typing import Any

from sdhub.checkpoint.checkpoint import Component

NEEDS = {"DPMSolverSDEScheduler": "torchsde", "LMSDiscreteScheduler": "scipy"}
BETA, BETA_NEEDS = "use_beta_sigmas", "scipy"
ALWAYS_FRACTIONAL = frozenset(
    {
        "DPMSolverSDEScheduler",
        "EDMDPMSolverMultistepScheduler",
        "EDMEulerScheduler",
        "IPNDMScheduler",
        "KDPM2AncestralDiscreteScheduler",
        "KDPM2DiscreteScheduler",
    }
)
# Their timesteps are those of the sigmas they choose, or evenly spaced between the first and the last.
FRACTIONAL = frozenset(
    {
        "EulerAncestralDiscreteScheduler",
        "EulerDiscreteScheduler",
        "HeunDiscreteScheduler",
        "LMSDiscreteScheduler",
    }
)
SIGMAS = ("use_karras_sigmas", "use_exponential_sigmas", BETA)


def missing(scheduler: Component) -> str | None:
    """The package that diffusers' scheduler wants and that is not installed."""
    wanted = {NEEDS.get(scheduler.class_name), BETA_NEEDS if scheduler.config.get(BETA) else None} - {None}
    return next((name for name in sorted(str(each) for each in wanted) if find_spec(name) is None), None)


def fractional(scheduler: Component) -> bool:
    """Whether its timesteps are not all whole numbers."""
    if scheduler.class_name in ALWAYS_FRACTIONAL or scheduler.class_name.startswith("FlowMatch"):
        return True
    if scheduler.class_name not in FRACTIONAL:
        return False
    config = scheduler.config
    return config.get("timestep_spacing", "linspace") == "linspace" or any(config.get(each) for each in SIGMAS)


def draw_nothing(scheduler: Any, steps: int) -> None:
    """Take all steps of a scheduler of diffusers with a model that predicts zeros, on one small latent.

    Raises whatever the scheduler raises, and ValueError where what comes out is not finite.
    """
    import torch

    takes = inspect.signature(scheduler.set_timesteps).parameters
    settings: dict[str, Any] = {}
    if "mu" in takes and scheduler.config.get("use_dynamic_shifting"):
        settings["mu"] = 1.0  # pipelines reckon it from the side of the picture
    arrives = "intermediate_timesteps" in takes  # of SCM, whose last timestep is where it arrives
    if arrives:
        settings |= {"max_timesteps": math.pi / 2, "intermediate_timesteps": None}
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        scheduler.set_timesteps(steps, **settings)
        latent = torch.full((1, 4, 8, 8), 0.5)
        for timestep in scheduler.timesteps[:-1] if arrives else scheduler.timesteps:
            if hasattr(scheduler, "scale_model_input"):
                scheduler.scale_model_input(latent, timestep)
            latent = scheduler.step(torch.zeros_like(latent), timestep, latent, return_dict=False)[0]
    if not torch.isfinite(latent).all():
        raise ValueError("its steps end in numbers that are not finite")

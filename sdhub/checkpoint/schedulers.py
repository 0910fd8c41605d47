"""What schedulers need and give, known from their class and config as diffusers has them."""

from __future__ import annotations

from importlib.util import find_spec

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

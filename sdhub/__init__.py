"""sdhub: any diffusion checkpoint on the Hub, made small and fast, measured, and published.

import sdhub

checkpoint = sdhub.inspect("org/model")
sdhub.build(checkpoint, "openvino-int8", output="out")
pipe = sdhub.load("out")
report = sdhub.publish(checkpoint, ["openvino-int8", "sdnq-int8"], sdhub.Options(private=True))
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sdhub.checkpoint.checkpoint import Checkpoint
    from sdhub.checkpoint.resolve import inspect
    from sdhub.core.errors import SdhubError
    from sdhub.evidence.sampling import Prompt, Sampling
    from sdhub.recipes.adjust import Adjustment
    from sdhub.recipes.recipe import Recipe, load_recipe
    from sdhub.workflow.analyze import Wanted, analyze
    from sdhub.workflow.build import build
    from sdhub.workflow.options import Options
    from sdhub.workflow.plan import Plan, plan
    from sdhub.workflow.publish import publish
    from sdhub.workflow.report import Report
    from sdhub.workflow.variants import generate, load
    from sdhub.workflow.verify import Verified, verify

__all__ = [
    "Adjustment",
    "Checkpoint",
    "Options",
    "Plan",
    "Prompt",
    "Recipe",
    "Report",
    "Sampling",
    "SdhubError",
    "Verified",
    "Wanted",
    "analyze",
    "build",
    "generate",
    "inspect",
    "load",
    "load_recipe",
    "plan",
    "publish",
    "verify",
]

_WHERE = {
    "Adjustment": ("sdhub.recipes.adjust", "Adjustment"),
    "Checkpoint": ("sdhub.checkpoint.checkpoint", "Checkpoint"),
    "Options": ("sdhub.workflow.options", "Options"),
    "Plan": ("sdhub.workflow.plan", "Plan"),
    "Prompt": ("sdhub.evidence.sampling", "Prompt"),
    "Recipe": ("sdhub.recipes.recipe", "Recipe"),
    "Report": ("sdhub.workflow.report", "Report"),
    "Sampling": ("sdhub.evidence.sampling", "Sampling"),
    "SdhubError": ("sdhub.core.errors", "SdhubError"),
    "Verified": ("sdhub.workflow.verify", "Verified"),
    "Wanted": ("sdhub.workflow.analyze", "Wanted"),
    "analyze": ("sdhub.workflow.analyze", "analyze"),
    "build": ("sdhub.workflow.build", "build"),
    "generate": ("sdhub.workflow.variants", "generate"),
    "inspect": ("sdhub.checkpoint.resolve", "inspect"),
    "load": ("sdhub.workflow.variants", "load"),
    "load_recipe": ("sdhub.recipes.recipe", "load_recipe"),
    "plan": ("sdhub.workflow.plan", "plan"),
    "publish": ("sdhub.workflow.publish", "publish"),
    "verify": ("sdhub.workflow.verify", "verify"),
}


def __getattr__(name: str) -> Any:
    """Load the public names when they are first used: `import sdhub` stays light."""
    if name not in _WHERE:
        raise AttributeError(f"module 'sdhub' has no attribute {name!r}")
    from importlib import import_module

    module, attribute = _WHERE[name]
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

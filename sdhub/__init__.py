"""sdhub: any diffusion checkpoint on the Hub, made small and fast, measured, and published.

import sdhub

checkpoint = sdhub.inspect("org/model")
report = sdhub.publish(checkpoint, sdhub.Options(variants=("openvino-int8",)))
pipe = sdhub.open_variant("me/model-openvino-int8")
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

__all__ = ["Options", "SdhubError", "inspect", "load_recipe", "make_plan", "open_variant", "publish"]

_WHERE = {
    "Options": ("sdhub.workflow.job", "Options"),
    "SdhubError": ("sdhub.core.errors", "SdhubError"),
    "inspect": ("sdhub.checkpoint.resolve", "resolve"),
    "load_recipe": ("sdhub.recipes.recipe", "load_recipe"),
    "make_plan": ("sdhub.workflow.plan", "make_plan"),
    "open_variant": ("sdhub.workflow.variants", "open_variant"),
    "publish": ("sdhub.workflow.publish", "publish"),
}


def __getattr__(name: str) -> Any:
    """Load the public names when they are first used: `import sdhub` stays light."""
    if name not in _WHERE:
        raise AttributeError(f"module 'sdhub' has no attribute {name!r}")
    from importlib import import_module

    module, attribute = _WHERE[name]
    return getattr(import_module(module), attribute)


class _Package(ModuleType):
    """The package, whose public names are what `__all__` promises although submodules are called alike."""

    def __setattr__(self, name: str, value: Any) -> None:
        """The import system binds a submodule here: not over a public name."""
        if not (name in _WHERE and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package

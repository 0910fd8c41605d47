"""What stands beside the networks of a view: its scheduler and tokenizers, loaded one by one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sdhub.backends.variant.gate import INDEX
from sdhub.checkpoint.known import SCHEDULERS, TOKENIZERS
from sdhub.checkpoint.schedulers import draw_nothing
from sdhub.core.errors import BuildError
from sdhub.core.foreign import translate_errors
from sdhub.core.quiet import quiet

STEPS = 4  # that a scheduler takes before it is believed to draw


def load_beside(view: Path) -> dict[str, Any]:
    """Schedulers and tokenizers by component, given to pipelines so that these look up no class themselves.

    Raises BuildError that names the part, also a scheduler whose settings draw nothing.
    """
    import diffusers
    import transformers

    found = {}
    for name, (library, class_name) in _entries(view).items():
        if class_name in SCHEDULERS | TOKENIZERS:
            kind = getattr({"diffusers": diffusers, "transformers": transformers}[library], class_name)
            with quiet(), translate_errors(f"{name} does not load", BuildError):
                found[name] = kind.from_pretrained(view / name, local_files_only=True)
                if class_name in SCHEDULERS:
                    draw_nothing(kind.from_config(found[name].config), STEPS)
    return found


def _entries(view: Path) -> dict[str, tuple[str, str]]:
    """The components of the index that the gate wrote."""
    index = json.loads((view / INDEX).read_text(encoding="utf-8"))
    return {name: (each[0], each[1]) for name, each in index.items() if isinstance(each, list) and each[0]}

"""What PEFT notes of an adapter: `adapter_config.json`, or `lora_adapter_metadata` in a file that diffusers saved.

Of its settings five say how a saved adapter is added to the weights; all others have to be ones that change
nothing then. Source: peft, `LoraConfig` and `tuners/lora/layer.py`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sdhub.checkpoint.headers import Header
from sdhub.core.documents import parse_object, shown
from sdhub.core.errors import SourceError, UnsafeError, UnsupportedError

METADATA = "lora_adapter_metadata"
PATTERN = re.compile(r"\^?[\w.-]{1,300}\$?")
MAX_ALPHA = 1e6
HINT = "only plain LoRAs can be fused (--lora)"
# Without effect on a saved adapter: they were of use while it was trained.
IDLE = frozenset(
    [
        "task_type",
        "peft_type",
        "auto_mapping",
        "peft_version",
        "base_model_name_or_path",
        "revision",
        "inference_mode",
        "target_modules",
        "exclude_modules",
        "lora_dropout",
        "bias",
        "layers_to_transform",
        "layers_pattern",
        "megatron_config",
        "megatron_core",
        "loftq_config",
        "eva_config",
        "runtime_config",
        "qalora_group_size",
        "lora_bias",
        "ensure_weight_tying",
    ]
)
TEXTS = frozenset(
    ["task_type", "peft_type", "bias", "base_model_name_or_path", "revision", "peft_version", "megatron_core"]
)
READ = frozenset({"r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora"})
STARTS = (True, False, None, "gaussian", "orthogonal", "eva")  # of training, that leave the base as it is


@dataclass(frozen=True)
class Settings:
    """`documents`: PEFT's settings by component, those under "" for all."""

    documents: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def factor(self, component: str, layer: str, rank: int, label: str) -> float | None:
        """What `up @ down` of a layer is multiplied by; None where nothing is said of its component.

        `layer` is its path in the component. Raises SourceError where the file's rank is another.
        """
        document = self.documents.get(component, self.documents.get(""))
        if document is None or not {"r", "lora_alpha", "rank_pattern", "alpha_pattern"} & set(document):
            return None
        said = _matching(document.get("rank_pattern"), layer, document.get("r", rank))
        if said != rank:
            raise SourceError(f"{label} has rank {rank}, its settings say {said}", hint="use another file")
        alpha = _matching(document.get("alpha_pattern"), layer, document.get("lora_alpha", rank))
        return float(alpha) / (math.sqrt(rank) if document.get("use_rslora") else rank)


def in_header(header: Header, where: str) -> Settings:
    """What a file's own metadata say. Raises SourceError, UnsafeError, UnsupportedError."""
    if METADATA not in header.metadata:
        return Settings()
    label = f"{METADATA} of {where}"
    documents: dict[str, dict[str, Any]] = {}
    for key, value in parse_object(header.metadata[METADATA].encode(), label).items():
        component, dot, name = key.partition(".")
        documents.setdefault(component if dot else "", {})[name if dot else key] = value
    for document in documents.values():
        _vet(document, label)
    return Settings(documents)


def in_config(raw: bytes, where: str) -> Settings:
    """What an `adapter_config.json` says. Raises as `in_header`."""
    document = parse_object(raw, where)
    _vet(document, where)
    return Settings({"": document})


def _vet(document: Mapping[str, Any], where: str) -> None:
    if document.get("use_dora"):
        raise UnsupportedError(f"{where} is a DoRA", hint=HINT)
    if str(document.get("peft_type") or "LORA").upper() != "LORA":
        raise UnsupportedError(f"{where} is of the kind {shown(document['peft_type'], 40)}", hint=HINT)
    for key, value in document.items():
        if key in READ:
            _vet_number(key, value, where)
        elif key == "init_lora_weights" and isinstance(value, str) and value not in STARTS:
            raise UnsafeError(f"{where}: {key} is {shown(value, 40)}, which changes the base", hint=HINT)
        elif key in IDLE:
            _vet_text(key, value, where)
        elif key != "init_lora_weights" and value:
            raise UnsupportedError(f"{where} sets {shown(key, 60)}, which sdhub cannot follow", hint=HINT)


def _vet_number(key: str, value: Any, where: str) -> None:
    numbers = value
    if key.endswith("_pattern"):
        if not isinstance(value, dict | None):
            raise SourceError(f"{where}: {key} is no object", hint="use another file")
        _vet_text(key, value, where)
        numbers = list((value or {}).values())
    for number in numbers if isinstance(numbers, list) else [numbers]:
        sound = isinstance(number, int | float) and math.isfinite(number) and abs(number) <= MAX_ALPHA
        if not sound:
            raise SourceError(f"{where}: {key} is {shown(number, 40)}", hint="use another file")


def _vet_text(key: str, value: Any, where: str) -> None:
    """Layers are named plainly, not by expressions that a stranger wrote."""
    names = [value] if isinstance(value, str) and key not in TEXTS else value
    listed = list(names) if isinstance(names, dict | list) else []
    if not all(isinstance(name, str) and PATTERN.fullmatch(name) for name in listed if key not in _NUMBERS):
        raise UnsafeError(f"{where} sets {shown(key)} to what no LoRA needs", hint="use another file")


_NUMBERS = frozenset({"layers_to_transform"})


def _matching(patterns: Mapping[str, Any] | None, layer: str, usual: Any) -> Any:
    """The first pattern that is the layer, or an end of its path."""
    for pattern, value in (patterns or {}).items():
        if re.fullmatch(rf"(.*\.)?({pattern})", layer):
            return value
    return usual

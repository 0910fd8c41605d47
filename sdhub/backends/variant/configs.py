"""Configs of a variant's components, and what of them the view holds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sdhub.backends.variant.keys import HINT
from sdhub.backends.variant.layout import Variant
from sdhub.checkpoint.configs import keep_component
from sdhub.checkpoint.known import TOKENIZERS
from sdhub.checkpoint.safety import vet_config
from sdhub.checkpoint.tokens import keep_tokenizer
from sdhub.core.documents import shown
from sdhub.core.errors import SourceError, UnsafeError

REACHING = frozenset({"attribute_map", "config_class", "init_inputs", "transformers_weights"})


def config(variant: Variant, path: str) -> bytes:
    """A component's `config.json`."""
    document, where = variant.tree.document(path), variant.where(path)
    entry = variant.entry(path)
    if entry is None:
        raise SourceError(f"{where} belongs to no component that model_index.json names", hint=HINT)
    quantization = document.pop("quantization_config", None)
    kept = vet(entry.library, entry.class_name, document, where)
    if quantization is not None:
        if variant.layout.quantization is None or not isinstance(quantization, Mapping):
            raise UnsafeError(f"{where} has a quantization_config, which its kind of variant has not", hint=HINT)
        kept["quantization_config"] = dict(variant.layout.quantization(quantization, where))
    return written(kept)


def scheduler(variant: Variant, path: str) -> bytes:
    """`scheduler_config.json`."""
    entry, where = variant.entry(path), variant.where(path)
    if entry is None:
        raise SourceError(f"{where} belongs to no component that model_index.json names", hint=HINT)
    return written(vet(entry.library, entry.class_name, variant.tree.document(path), where))


def tokenizer(variant: Variant, path: str) -> bytes:
    """`tokenizer_config.json` and the small files beside it."""
    name = path.rpartition("/")[2]
    document, where = variant.tree.document(path), variant.where(path)
    _refuse(document, where)
    kind = document.get("tokenizer_class")
    if kind is not None and kind not in TOKENIZERS:
        raise UnsafeError(
            f"{where} asks for the tokenizer {shown(kind, 60)}, which sdhub does not know", hint=HINT
        )
    return written(keep_tokenizer(name, document, where).document)


def vet(library: str, class_name: str, document: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The part of a config that its class takes. Raises UnsafeError, SourceError."""
    _refuse(document, where)
    named = document.get("_class_name", class_name)
    if library == "diffusers" and named != class_name:
        raise SourceError(f"{where} is of {shown(named, 60)}, model_index.json says {class_name}", hint=HINT)
    return dict(keep_component(library, class_name, document, where).document)


def written(document: Mapping[str, Any]) -> bytes:
    """The JSON of a view."""
    return json.dumps(document, ensure_ascii=False).encode()


def _refuse(document: Mapping[str, Any], where: str) -> None:
    """Raises UnsafeError for a key with which a config reaches for what is not its own."""
    vet_config(document, where)
    for key in document:
        if key in REACHING or key.endswith("_file") or key.startswith("__"):
            raise UnsafeError(
                f"{where} sets {shown(key, 60)}, which could run or read what is not its own", hint=HINT
            )

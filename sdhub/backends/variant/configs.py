"""Configs of a variant's components, and what of them the view holds."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from sdhub.backends.variant.keys import HINT
from sdhub.backends.variant.layout import Variant
from sdhub.checkpoint.documents import shown
from sdhub.checkpoint.known import TOKENIZERS
from sdhub.checkpoint.safety import CODE_KEYS, vet_config
from sdhub.errors import SourceError, UnsafeError

REFUSED = CODE_KEYS | {"attribute_map", "init_inputs", "transformers_weights", "config_class"}
PLACES = frozenset({"_name_or_path", "name_or_path", "_commit_hash", "chat_template", "sp_model_kwargs"})
MOST, MOST_DEEP, MOST_TRAINED, MOST_TEXT = 2**20, 256, 10_000, 4096
COUNTS = ("layers", "layers_per_block", "blocks")


def config(variant: Variant, path: str) -> bytes:
    """A component's `config.json`."""
    document, where = variant.tree.document(path), variant.where(path)
    entry = variant.entry(path)
    if entry is None:
        raise SourceError(f"{where} belongs to no component that model_index.json names", hint=HINT)
    quantization = document.pop("quantization_config", None)
    kept = keep_component(entry.library, entry.class_name, document, where)
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
    return written(keep_component(entry.library, entry.class_name, variant.tree.document(path), where))


def tokenizer(variant: Variant, path: str) -> bytes:
    """`tokenizer_config.json` and the small files beside it."""
    name = path.rpartition("/")[2]
    return written(keep_tokenizer(name, variant.tree.document(path), variant.where(path)))


def written(document: Mapping[str, Any]) -> bytes:
    """The JSON of a view."""
    return json.dumps(document, ensure_ascii=False).encode()


def keep_component(library: str, class_name: str, document: Mapping[str, Any], where: str) -> dict[str, Any]:
    """What of the config of a model or scheduler the view holds."""
    _vet(document, where)
    named = document.get("_class_name", class_name)
    if library == "diffusers" and named != class_name:
        raise SourceError(f"{where} is of {shown(named, 60)}, model_index.json says {class_name}", hint=HINT)
    kept = {key: value for key, value in document.items() if key not in PLACES}
    for key, value in _numbers(kept):
        most = _most(key)
        unbounded = key == "lambda_min_clipped" and value == float("-inf")  # as diffusers writes it
        if not (unbounded or -most <= value <= most):
            raise SourceError(f"{where}: {shown(key, 60)} is {shown(value, 40)}, beyond {most}", hint=HINT)
    return kept


def keep_tokenizer(name: str, document: Mapping[str, Any], where: str) -> dict[str, Any]:
    """What of a tokenizer's small file the view holds."""
    _vet(document, where)
    kind = document.get("tokenizer_class")
    if kind is not None and kind not in TOKENIZERS:
        raise UnsafeError(
            f"{where} asks for the tokenizer {shown(kind, 60)}, which sdhub does not know", hint=HINT
        )
    return {key: value for key, value in document.items() if key not in PLACES}


def _vet(document: Mapping[str, Any], where: str) -> None:
    vet_config(document, where)
    for key in document:
        if key in REFUSED or key.endswith("_file") or key.startswith("__"):
            raise UnsafeError(
                f"{where} sets {shown(key, 60)}, which could run or read what is not its own", hint=HINT
            )
    for key, value in _texts(document):
        if len(value) > MOST_TEXT and key not in PLACES:
            raise SourceError(f"{where}: {shown(key, 60)} has {len(value)} characters", hint=HINT)


def _most(key: str) -> int:
    if key.endswith("timesteps"):
        return MOST_TRAINED
    return MOST_DEEP if key.endswith(COUNTS) else MOST


def _numbers(document: Any, key: str = "") -> Iterator[tuple[str, float]]:
    for name, value in _leaves(document, key):
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            yield name, value


def _texts(document: Any) -> Iterator[tuple[str, str]]:
    for name, value in _leaves(document, ""):
        if isinstance(value, str):
            yield name, value


def _leaves(document: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Values with the key that they stand under; the document's depth is bounded."""
    if isinstance(document, Mapping):
        for name, value in document.items():
            yield from _leaves(value, str(name))
    elif isinstance(document, list):
        for value in document:
            yield from _leaves(value, key)
    else:
        yield key, document

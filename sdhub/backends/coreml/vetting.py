"""Core ML variants of strangers: names, manifests and sizes. `open_package` vets what is inside a package."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sdhub.backends.coreml.mil.files import MOST_MANIFEST_BYTES, MOST_SPECIFICATION_BYTES
from sdhub.backends.variant.configs import config, written
from sdhub.backends.variant.files import BESIDE
from sdhub.backends.variant.keys import HINT
from sdhub.backends.variant.layout import File, Layout, Variant
from sdhub.checkpoint.families import PIPELINES
from sdhub.core.documents import shown
from sdhub.core.errors import SourceError, UnsafeError

ATTENTIONS = ("split_einsum", "split_einsum_v2", "original")
ANY = rf"({'|'.join(ATTENTIONS)})"
PACKAGE = rf"{ANY}/packages/[^/]+\.mlpackage"
DATA = "com.apple.CoreML"
ITEMS = (f"{DATA}/model.mlmodel", f"{DATA}/weights")
SAID = ("author", "description", "name", "path")


def manifest(variant: Variant, path: str) -> bytes:
    """`Manifest.json` of a package: the specification and its weights, and nothing else. Raises UnsafeError."""
    document, where = variant.tree.document(path, MOST_MANIFEST_BYTES), variant.where(path)
    items, root = document.get("itemInfoEntries"), document.get("rootModelIdentifier")
    if not isinstance(items, Mapping) or not isinstance(root, str) or root not in items:
        raise SourceError(f"{where} names no root model", hint="get the package again")
    kept = {key: _item(value, where) for key, value in items.items()}
    if kept[root]["path"] != ITEMS[0]:
        raise SourceError(f"{where}: its root model is {shown(kept[root]['path'], 60)}", hint="get it again")
    return written({"fileFormatVersion": "1.0.0", "itemInfoEntries": kept, "rootModelIdentifier": root})


def _item(value: Any, where: str) -> dict[str, str]:
    if not isinstance(value, Mapping) or not all(isinstance(value.get(key), str) for key in SAID):
        raise SourceError(f"{where} has an item without {', '.join(SAID)}", hint="get the package again")
    if value["path"] not in ITEMS:
        raise UnsafeError(f"{where} names {shown(value['path'], 60)}, which is no part of a package", hint=HINT)
    return {key: value[key] for key in SAID}


def specification(variant: Variant, path: str) -> None:
    """A `model.mlmodel` of bounded size."""
    variant.tree.require(path, MOST_SPECIFICATION_BYTES)


def blobs(variant: Variant, path: str) -> None:
    """A `weight.bin` beside its specification. Raises UnsafeError without one."""
    model = f"{path.removesuffix('weights/weight.bin')}model.mlmodel"
    if model not in variant.tree.sizes:
        raise UnsafeError(f"{variant.where(path)} belongs to no package, and could be a pickle", hint=HINT)


LAYOUT = Layout(
    pipelines=frozenset(PIPELINES),
    files=(
        *BESIDE,
        File(r"(text_encoder(_2)?|unet|vae)/config\.json", config),
        File(rf"{PACKAGE}/Manifest\.json", manifest),
        File(rf"{PACKAGE}/Data/{DATA}/model\.mlmodel", specification),
        File(rf"{PACKAGE}/Data/{DATA}/weights/weight\.bin", blobs),
        File(rf"{ANY}/packages/(vocab\.json|merges\.txt)"),  # what Apple's apps read
        File(rf"{ANY}/compiled/(vocab\.json|merges\.txt)"),
        File(rf"{ANY}/compiled/([^/]+/)?[^/]+\.mlmodelc/([^/]+/)*[^/]+\.(bin|mil|json)"),
    ),
    folders=dict.fromkeys(ATTENTIONS, ""),
)

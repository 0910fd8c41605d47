"""What a repository or folder is that is no diffusers checkpoint, and what to name in its place."""

from __future__ import annotations

import re
from typing import Any

from sdhub.checkpoint.known import STEMS
from sdhub.checkpoint.licenses import read_card
from sdhub.checkpoint.remote import Repository
from sdhub.checkpoint.tree import Tree
from sdhub.core.documents import shown
from sdhub.core.errors import SourceError, UnsupportedError

MANIFEST, RECIPE = "sdhub.json", "recipe.json"
ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,95}(/[A-Za-z0-9_][A-Za-z0-9_.-]{0,95})?")
VARIANT = re.compile(r"[a-z0-9][a-z0-9.-]{0,63}")
FEW = 4
OTHER_FORMATS = {
    ".xml": "an OpenVINO variant",
    ".mlpackage": "a Core ML variant",
    ".mlmodelc": "a Core ML variant",
    ".onnx": "an ONNX variant",
    ".gguf": "a GGUF variant",
}


def refuse_variant(tree: Tree) -> None:
    """Raises UnsupportedError for what sdhub made itself, naming the source that its `sdhub.json` tells."""
    document = _document(tree, MANIFEST)
    recipe = _document(tree, RECIPE)
    if MANIFEST not in tree.sizes and not {"backend", "components"} <= set(recipe):
        return
    variant, source = document.get("variant", recipe.get("name")), document.get("source")
    source = source if isinstance(source, dict) else {}
    name = source.get("id") if _fits(ID, source.get("id")) else None
    made = f" ({variant})" if _fits(VARIANT, variant) else ""
    of = f" of {name}" if name else ""
    hint = "name the checkpoint that it was made from"
    if name and source.get("kind") == "hub" and "/" in name:
        hint = f"name its source: {name}"
    raise UnsupportedError(f"{tree.where} is a variant that sdhub made{made}{of}, no checkpoint", hint=hint)


def files_of(tree: Tree) -> list[str]:
    """The files of a tree that may be single-file checkpoints, by path: those at the top and in folders of no
    component of diffusers."""
    return sorted(path for path in tree.sizes if path.endswith(".safetensors") and not _is_part(path))


def only_file(tree: Tree) -> str | None:
    """The one single file of a tree without `model_index.json`, whatever its header will tell; None where there is
    none, or all are LoRAs by name. Raises SourceError where there are several."""
    found = files_of(tree)
    if len(found) == 1:
        return found[0]
    if not found or all("lora" in path.lower() for path in found):
        return None
    few = ", ".join(shown(path, 60) for path in found[:FEW]) + (", …" if len(found) > FEW else "")
    raise SourceError(
        f"{tree.where} holds {len(found)} single files: {few}",
        hint=f"name one of them, as {tree.where}/{shown(found[0], 100)}",
    )


def instead(tree: Tree) -> str:
    """A hint for a tree that holds no checkpoint."""
    card = tree.card if isinstance(tree, Repository) else read_card(tree)
    base = card.get("base_model")
    base = base[0] if isinstance(base, list) and len(base) == 1 else base
    of = f", {base}" if _fits(ID, base) else ""
    for path in tree.sizes:
        for part in path.split("/"):
            kind = next((kind for ending, kind in OTHER_FORMATS.items() if part.endswith(ending)), None)
            if kind is not None:
                return f"it looks like {kind} already: name the checkpoint that it was made from{of}"
    if any("lora" in path.lower() or path.endswith("adapter_model.safetensors") for path in tree.sizes):
        return f"it looks like a LoRA: name the checkpoint it was made for{of}, and this with --lora"
    files = files_of(tree)
    if files:
        return f"name the file in it: {tree.where}/{shown(files[0], 100)}"
    return "sdhub reads diffusers checkpoints and single .safetensors files"


def _is_part(path: str) -> bool:
    """Whether the name is that of a component's weights in its folder, or of a shard of them."""
    folder, _, name = path.rpartition("/")
    shard = re.search(r"-\d{5}-of-\d{5}\.safetensors$", name)
    weights = [f"{stem}{variant}.safetensors" for stem in STEMS.values() for variant in ("", ".fp16")]
    return bool(shard) or bool(folder and name in weights)


def _document(tree: Tree, path: str) -> dict[str, Any]:
    """A JSON object of the tree; empty where it is missing or broken."""
    try:
        return tree.document(path) if path in tree.sizes else {}
    except SourceError:
        return {}


def _fits(pattern: re.Pattern[str], value: Any) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None

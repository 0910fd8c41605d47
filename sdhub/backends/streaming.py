"""A checkpoint's weights read one tensor at a time from its safetensors shards, whatever the size of the whole."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdhub.backends.components import Read, write_component
from sdhub.backends.folder import INDEX, blank, document, shards
from sdhub.checkpoint import accounting
from sdhub.checkpoint.checkpoint import Checkpoint
from sdhub.checkpoint.known import CLASSES, SCHEDULERS, TOKENIZERS
from sdhub.checkpoint.weights import require_finite
from sdhub.core.errors import SourceError
from sdhub.core.progress import Progress
from sdhub.core.quiet import quiet
from sdhub.recipes.recipe import Recipe

if TYPE_CHECKING:
    import torch


def stream(folder: Path, component: str) -> tuple[Any, Read]:
    """A component of a diffusers folder on the meta device, and what reads its tensors, by name, from the files.

    A tensor's bytes are mapped, copied once, and forgotten; plain 8-bit floats become float32. Raises SourceError
    where the files lack a weight of the component, or it is of a class that sdhub does not know; UnsupportedError
    that names the first tensor which the component has no place for.
    """
    import torch
    from safetensors import safe_open

    entry = document(folder / INDEX).get(component)
    if not (isinstance(entry, list) and len(entry) == 2 and entry[1] in CLASSES.get(str(entry[0]), ())):
        raise SourceError(f"{folder.name} has no component {component} that sdhub knows")
    library, class_name = entry
    part = folder / component
    with quiet(), torch.device("meta"):
        module = blank(library, class_name, document(part / "config.json"))
    places: dict[str, Path] = {}
    for path in shards(part, library):
        with safe_open(str(path), framework="pt") as file:
            places |= dict.fromkeys(file.keys(), path)
    missing = sorted({name for name, _ in module.named_parameters()} - set(places))
    if missing:
        raise SourceError(f"the weights of {component} are incomplete: {missing[0]} is missing")
    left = accounting.left_over(places, module)
    if left is not None:
        raise accounting.unknown(left, component)
    return module, _reader(component, places)


def streamable(checkpoint: Checkpoint, recipe: Recipe) -> bool:
    """Whether the files alone suffice: nothing is run to calibrate, and nothing fused first.

    UNets are loaded, as old ones have weights by names that diffusers translates.
    """
    whole = not checkpoint.source.single and checkpoint.family.denoiser == "transformer"
    return whole and recipe.calibration is None and not checkpoint.loras


def copy_rest(folder: Path, out: Path, dtype: torch.dtype, progress: Progress, *, done: Collection[str]) -> None:
    """What a pipeline has beside the components that are `done`: weights as `dtype`, other files as they are.

    Raises SourceError.
    """
    index = document(folder / INDEX)
    index.pop("safety_checker", None)
    for name, entry in index.items():
        if not isinstance(entry, list) or entry[0] is None or name in done or not (folder / name).is_dir():
            continue
        if entry[1] in SCHEDULERS | TOKENIZERS:
            shutil.copytree(folder / name, out / name)
            continue
        module, read = stream(folder, name)
        write_component(
            module,
            [],
            _nothing,
            out / name,
            quantization=None,
            replaced=(),
            dtype=dtype,
            statistics={},
            progress=progress,
            read=read,
        )
    (out / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _nothing(name: str, _: Any) -> tuple[dict[str, torch.Tensor], float]:
    raise AssertionError(name)


def _reader(component: str, places: dict[str, Path]) -> Callable[[str], torch.Tensor]:
    def read(name: str) -> torch.Tensor:
        from safetensors import safe_open

        with safe_open(str(places[name]), framework="pt") as file:
            tensor: torch.Tensor = file.get_tensor(name).clone()
        require_finite(component, [(name, tensor)])
        narrow = tensor.is_floating_point() and tensor.element_size() == 1
        return tensor.float() if narrow else tensor

    return read

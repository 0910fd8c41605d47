"""A component's weights read one tensor at a time from its safetensors shards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdhub.backends.components import Read
from sdhub.backends.folder import INDEX, blank, document, shards
from sdhub.checkpoint.known import CLASSES
from sdhub.errors import SourceError
from sdhub.quiet import quiet

if TYPE_CHECKING:
    import torch


def stream(folder: Path, component: str) -> tuple[Any, Read]:
    """A component of a diffusers folder on the meta device, and what reads its tensors, by name, from the files.

    A tensor's bytes are mapped, copied once, and forgotten. Raises SourceError where the files lack a weight of
    the component, or it is of a class that sdhub does not know.
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
    return module, _reader(places)


def _reader(places: dict[str, Path]) -> Callable[[str], torch.Tensor]:
    def read(name: str) -> torch.Tensor:
        from safetensors import safe_open

        with safe_open(str(places[name]), framework="pt") as file:
            tensor: torch.Tensor = file.get_tensor(name).clone()
        return tensor

    return read

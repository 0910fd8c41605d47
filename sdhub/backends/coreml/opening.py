"""A built variant as a pipeline: its packages run by Core ML on macOS, by the interpreter elsewhere."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdhub.backends.coreml.vetting import ATTENTIONS
from sdhub.core.errors import BuildError

if TYPE_CHECKING:
    import torch

    from sdhub.backends.coreml.pipeline import Model

SUFFIXES = {  # components, and how the names of their packages end
    "text_encoder": "text_encoder",
    "text_encoder_2": "text_encoder_2",
    "unet": "unet",
    "vae": "vae_decoder",
}


def packages(folder: Path) -> Path:
    """The folder of packages of a variant: of its attentions the first that there is. Raises BuildError."""
    for attention in ATTENTIONS:
        if any((folder / attention / "packages").glob("*_unet*.mlpackage")):
            return folder / attention / "packages"
    raise BuildError(
        f"{folder} has no packages of a UNet", hint=f"in {', '.join(f'{each}/packages' for each in ATTENTIONS)}"
    )


def open_folder(folder: Path) -> Any:
    """The variant as a diffusers pipeline, from a view of it: what its links lead to is vetted.

    Raises BuildError, UnsafeError, MissingExtraError.
    """
    from sdhub.backends.coreml import pipeline

    place = packages(folder)
    index = pipeline.document(folder / "model_index.json")
    models: dict[str, Model] = {}
    for part, suffix in SUFFIXES.items():
        path = _package(place, suffix)
        if path is not None:
            kind = _kind(part, index)
            shapes, run = _runner(path)
            models[part] = kind(path.name, pipeline.document(folder / part / "config.json"), shapes, run)
    vae, encoder = models.get("vae"), _package(place, "vae_encoder")
    if isinstance(vae, pipeline.Autoencoder) and encoder is not None:
        vae.encoder = pipeline.Model(encoder.name, vae.config, *_runner(encoder))
    return pipeline.assemble(folder, models)


def _kind(part: str, index: Mapping[str, Any]) -> type[Model]:
    """What stands for a component."""
    from sdhub.backends.coreml import pipeline

    fixed: dict[str, type[Model]] = {"unet": pipeline.Denoiser, "vae": pipeline.Autoencoder}
    return fixed[part] if part in fixed else pipeline.text_encoder_class(index, part)


def _package(place: Path, suffix: str) -> Path | None:
    """The package whose name ends so; where it is there in several sizes, the checkpoint's own comes first."""
    found = sorted(place.glob(f"*_{suffix}.mlpackage")) or sorted(
        place.glob(f"*_{suffix}_[0-9]*x[0-9]*.mlpackage")
    )
    return found[0] if found else None


def _runner(path: Path) -> tuple[Mapping[str, tuple[int, ...]], Any]:
    from sdhub.backends.coreml.interpreter import open_package

    package = open_package(path, homes=[each.resolve() for each in path.rglob("*") if each.is_symlink()])
    shapes = {name: tuple(feature.shape or ()) for name, feature in package.inputs.items()}
    if platform.system() == "Darwin":
        return shapes, _native(path)

    def run(inputs: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        import torch

        typed = {name: value.to(getattr(torch, package.inputs[name].dtype)) for name, value in inputs.items()}
        return package.run(typed)

    return shapes, run


def _native(path: Path) -> Any:
    import coremltools

    model = coremltools.models.MLModel(str(path))

    def run(inputs: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        import torch

        found = model.predict({name: value.float().numpy() for name, value in inputs.items()})
        return {name: torch.as_tensor(value) for name, value in found.items()}

    return run

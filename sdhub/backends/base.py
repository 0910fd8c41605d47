"""What a backend is: it says what it can do, forecasts, builds a variant, and opens one to run it.

Backends are found by the entry point group `sdhub.backends`, sdhub's own included; each entry is one instance.
Their modules import nothing heavy at the top: `why_not` and `forecast` answer from headers alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sdhub.backends.variant.layout import Layout
from sdhub.backends.variant.view import opened
from sdhub.checkpoint.checkpoint import Checkpoint, Component
from sdhub.checkpoint.companions import LoadedCompanion
from sdhub.core import device as devices
from sdhub.core import nextsteps
from sdhub.core.documents import shown
from sdhub.core.errors import MissingExtraError, RecipeError, UnsupportedError, UsageError
from sdhub.core.nearly import meant
from sdhub.core.placement import place
from sdhub.core.progress import Progress
from sdhub.recipes.recipe import Recipe, Rounding, Treatment

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Forecast:
    """What building a variant will take: size on disk, peak memory, and seconds on two ordinary cores."""

    bytes: int
    peak_bytes: int
    seconds: float


class Backend(ABC):
    """Builds variants `<name>-<treatment>`.

    `extra` is the extra of sdhub that brings the libraries, `packages` the distributions whose versions decide
    the bytes of a variant, `variants` the treatments with one sentence each, `usual` the one that is made where
    none is asked for (empty: none is), `tags` what cards carry,
    `repository` the template of repository names, `install` the line that a downstream user needs.
    `checks` says how what was published is checked, and whether it can be timed: "usage" runs the card's lines
    without sdhub; "sdhub" is for variants whose own runtime is not on every machine (Core ML, CUDA): sdhub opens
    them by other means to compare pictures, and says that the lines were not run and speed was not measured.
    `shows_uncalibrated`: a calibrated variant is also built without calibration, so that the evidence has both.
    `analyzed_as`: the preset whose other components a recipe of mixed bits has (empty: none is analyzed);
    `analyzed_first`: an analysis chooses among its treatments where no backend is named.
    `demo`: the variant that `sdhub demo` makes (empty: none).
    `spaces`: the hardware of a Space that draws with its variants (empty: none does), `space_packages` what that
    Space needs besides sdhub[openvino].
    `fixed_sizes`: its graphs have one size, so that pictures of another cannot be drawn. `relative_seconds`: what
    a call of its denoisers takes on a CPU, over the base's in float32, for forecasts.
    `companions`: ControlNets and the safety checker go along into its variants. `half_precision`: it also builds
    from a denoiser whose layers have 16-bit weights (see `sdhub.checkpoint.half_precision`).
    `runtime_devices`: what its variants' own runtime calls the devices that it may be opened on; empty where that
    is torch, or has no choice. `on_torch`: opened variants compute where torch is told to, and not by a runtime of
    the CPU.
    """

    name: str
    extra: str
    packages: tuple[str, ...]
    variants: Mapping[str, str]
    usual: str
    tags: tuple[str, ...]
    library: str
    repository: str
    install: str
    revision: int = 1
    checks: Literal["usage", "sdhub"] = "usage"
    shows_uncalibrated: bool = False
    companions: bool = False
    half_precision: bool = False
    analyzed_as: str = ""
    analyzed_first: bool = False
    demo: str = ""
    spaces: Literal["", "any", "gpu"] = ""
    space_packages: tuple[str, ...] = ()
    fixed_sizes: bool = False
    relative_seconds: float = 1.1
    runtime_devices: tuple[str, ...] = ()
    on_torch: bool = True

    def knows(self, variant: str) -> bool:
        """Whether the backend makes a variant of this name; more than are listed, where names have parameters."""
        return variant in self.variants

    def describe(self, variant: str) -> str | None:
        """A variant in one sentence, None where it is none of the backend's, calibrated or not."""
        calibrated = variant.removesuffix("-fast")  # the name that Recipe.uncalibrated gives
        if variant != calibrated and self.describe_preset(calibrated) is not None:
            return f"the formats of {calibrated} without calibration, everything rounded to the nearest value"
        return self.describe_preset(variant)

    def describe_preset(self, variant: str) -> str | None:
        """`describe` of a variant as its preset makes it."""
        return self.variants.get(variant)

    def choices(self, rounding: Rounding) -> tuple[Treatment, ...]:
        """What an analysis chooses among for a layer, the narrowest first; nothing where none is made."""
        return ()

    @abstractmethod
    def why_not(self, checkpoint: Checkpoint, variant: str) -> str | None:
        """Why the checkpoint cannot have this variant, in one clause; None where it can."""

    @abstractmethod
    def recipe(self, checkpoint: Checkpoint, variant: str) -> Recipe:
        """The preset that makes the variant."""

    def parts_of(self, checkpoint: Checkpoint) -> list[Component]:
        """What a recipe says how to treat: the components with weights that are drawn with."""
        return [part for part in checkpoint.components if part.parameters and part.name != "safety_checker"]

    def accept(self, checkpoint: Checkpoint, recipe: Recipe) -> None:
        """Raises RecipeError or UnsupportedError for a recipe this backend cannot follow to the letter.

        A backend adds its own reasons; here it is one that does not name the checkpoint's parts.
        """
        parts = {part.name for part in self.parts_of(checkpoint)}
        for name in sorted(parts ^ set(recipe.components)):
            fault = "is not said what to do with" if name in parts else "is not in the checkpoint"
            raise RecipeError(f"{recipe.name}: component {name} {fault}")

    @abstractmethod
    def forecast(self, checkpoint: Checkpoint, recipe: Recipe) -> Forecast:
        """What building will take, from headers alone."""

    @abstractmethod
    def build(self, checkpoint: Checkpoint, pipeline: Any, recipe: Recipe, out: Path, progress: Progress) -> None:
        """Fill the empty folder `out` from a loaded float32 diffusers pipeline, whose modules may be consumed.

        The pipeline is placed on a device, perhaps by offloading; `sdhub.core.placement.take_home` puts its
        weights on the CPU and tells where it computed. The same inputs and versions give the same bytes on the
        CPU. Raises BuildError.
        """

    def build_with_companions(
        self,
        checkpoint: Checkpoint,
        pipeline: Any,
        companions: Sequence[LoadedCompanion],
        recipe: Recipe,
        out: Path,
        progress: Progress,
    ) -> None:
        """As `build`, of a checkpoint with companions; only backends with `companions` are asked to."""
        raise NotImplementedError

    def meet_target(
        self,
        checkpoint: Checkpoint,
        pipeline: Any,
        recipe: Recipe,
        target: float,
        judge: Callable[[Path], float],
        progress: Progress,
    ) -> Recipe:
        """`recipe` with the least share of layers in higher precision whose variant has `target` dB.

        `pipeline` as in `build`; `judge(folder)` is the PSNR of a built variant's pictures in dB. Raises
        UnsupportedError where that is out of reach, or where the backend has no such recipes.
        """
        raise UnsupportedError(f"{self.name} has no quality target")

    def streams(self, checkpoint: Checkpoint, recipe: Recipe) -> bool:
        """Whether the variant is made by `build_streamed`, from the checkpoint's files and no pipeline."""
        return False

    def build_streamed(
        self,
        checkpoint: Checkpoint,
        folder: Path,
        recipe: Recipe,
        out: Path,
        progress: Progress,
        device: torch.device | None = None,
    ) -> None:
        """As `build`, from a diffusers folder of vetted files, in memory that does not grow with the model; layers
        are solved on `device`, None: the CPU."""
        raise NotImplementedError

    @abstractmethod
    def recognizes(self, folder: Path) -> bool:
        """Whether the folder is a variant that this backend opens."""

    @abstractmethod
    def layout(self) -> Layout:
        """What the folder of a variant holds: the gate that `open` holds strangers' folders against."""

    @abstractmethod
    def load(self, folder: Path) -> Any:
        """The variant as a pipeline of diffusers' calling convention, from the view that `open` lays out.

        Raises BuildError, MissingExtraError.
        """

    def load_native(self, folder: Path) -> Any:
        """As `load`, but by the runtime that the variant's users have, where that is another one: for Spaces."""
        return self.load(folder)

    def kernels(self, folder: Path, device: torch.device) -> str | None:
        """What runs the variant in `folder` on `device` as its users' machines do, with its version, where
        `checks` is "sdhub" and it is installed here; None: sdhub stands in for it."""
        return None

    def vet_runtime_device(self, name: str) -> None:
        """Raises UsageError for a device that is none of the variants' own runtime, or not here."""
        if name not in self.runtime_devices:
            raise UsageError(
                f"{self.name} variants have no device {shown(name, 40)}",
                hint=f"there are: {', '.join(self.runtime_devices)}" if self.runtime_devices else "leave it out",
            )

    def load_on(self, folder: Path, device: torch.device, runtime_device: str | None = None) -> Any:
        """As `load`, placed on a device of torch, and there by the variant's own `kernels` where there are some.

        `runtime_device`: one of `runtime_devices`, None for the usual.
        """
        import torch

        if self.kernels(folder, device) is not None:
            pipeline = self.load_native(folder)
            return pipeline if devices.of_pipeline(pipeline) == device else place(pipeline, device)
        pipeline = self.load(folder)
        if device.type == devices.CPU or not self.on_torch:
            return pipeline
        denoiser = "transformer" if "transformer" in pipeline.components else "unet"
        return place(pipeline.to(getattr(torch, devices.precision(device, denoiser))), device)

    def open(self, folder: Path, device: str = devices.CPU, runtime_device: str | None = None) -> Any:
        """The variant as a pipeline of diffusers' calling convention, whoever made the folder.

        It is held against the backend's layout, and loaded from a view of what was vetted. `device`: a word of
        `sdhub.core.device`; `runtime_device`: as in `load_on`. Raises UnsafeError, SourceError, UnsupportedError,
        BuildError, MissingExtraError, and UsageError for a device that is not there.
        """
        if runtime_device is not None:
            self.vet_runtime_device(runtime_device)
        where = devices.resolve(device)
        return opened(folder, self.layout(), lambda view: self.load_on(view, where, runtime_device))

    def described(self, pipeline: Any) -> Mapping[str, str]:
        """What an opened variant computes on and in, for its evidence: `device`, `precision`."""
        return devices.described(pipeline)

    @abstractmethod
    def usage(self, pipeline: str, repo_id: str, revision: str | None = None) -> Sequence[str]:
        """Python lines that import what is needed and load the variant as `pipe`, without sdhub."""

    def settings(self, pipeline: Any) -> Mapping[str, str]:
        """What an opened variant's runtime computes with, for its evidence: precision, threads."""
        return {}

    def plain(self, checkpoint: Checkpoint, pipeline: Any, folder: Path, out: Path) -> str | None:
        """Fill the empty folder `out` with the variant in `folder`, but for a denoiser that is not compressed.

        `pipeline` is the float32 base, which is left as it is. The name of what that is, to be timed beside the
        variant; None where the backend has nothing of the kind, or the variant is just that.
        """
        return None

    def notes(self, checkpoint: Checkpoint, recipe: Recipe) -> Sequence[str]:
        """Limits of the variant for its card, a plain sentence each: least system version, what is missing."""
        return ()

    def bundles(self, folder: Path, repo_name: str) -> Mapping[str, Path]:
        """Zips that apps expect at the top of the repository: file name to the folder in the built variant.

        The one top folder of a zip is named as the zip's stem.
        """
        return {}

    def versions(self) -> dict[str, str]:
        """Versions of the packages that decide the bytes of a variant. Raises MissingExtraError."""
        return {"sdhub": metadata.version("sdhub"), **_versions(self.packages, self.extra)}


def backends() -> dict[str, Backend]:
    """All installed backends by name."""
    found = metadata.entry_points(group="sdhub.backends")
    return {entry.name: entry.load() for entry in sorted(found, key=lambda entry: entry.name)}


def backend_of(variant: str) -> Backend:
    """The backend that makes `variant`. Raises UnsupportedError."""
    known = backends()
    backend = known.get(variant.partition("-")[0])
    if backend is None or not backend.knows(variant):
        names = [name for each in known.values() for name in each.variants]
        raise UnsupportedError(
            f"no variant is called {shown(variant)}",
            hint=meant(variant, names, f"{nextsteps.inspect()} lists those that a checkpoint can have"),
        )
    return backend


def _versions(packages: Iterable[str], extra: str) -> dict[str, str]:
    found = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            raise MissingExtraError(extra, package) from None
    return found

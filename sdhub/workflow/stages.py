"""The stages of `publish` that leave results in the work folder, each under the key of its inputs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sdhub.backends.base import Backend, backends
from sdhub.checkpoint.checkpoint import Checkpoint
from sdhub.checkpoint.companions import load_all
from sdhub.checkpoint.fetch import fetch, require_unchanged
from sdhub.checkpoint.load import vetted
from sdhub.checkpoint.remote import download
from sdhub.checkpoint.shapes import check_shapes
from sdhub.core.device import CPU, on_device, resolve, solver
from sdhub.core.hub import Hub
from sdhub.core.isolated import run_isolated
from sdhub.core.progress import Progress
from sdhub.core.work import Work
from sdhub.evidence import compare, figures, samples
from sdhub.evidence.budget import NOISE_PROMPTS, POINTS, Scope
from sdhub.evidence.latency import Latency
from sdhub.evidence.sampling import Sampling
from sdhub.evidence.subject import encoder, subject_kept
from sdhub.recipes.recipe import Recipe
from sdhub.workflow import measure

DRAWING = ("torch", "diffusers", "transformers")


def source_files(checkpoint: Checkpoint, names: Sequence[str], hub: Hub) -> tuple[Path, ...]:
    """Small files of the source, such as its licence, on this machine."""
    if checkpoint.source.kind == "folder":
        return tuple(Path(checkpoint.source.ref) / name for name in names)
    return tuple(download(hub, checkpoint.id, str(checkpoint.sha), name) for name in names)


def build_variant(
    checkpoint: Checkpoint, hub: Hub, backend: str, recipe: Recipe, device: str, out: Path, progress: Progress
) -> None:
    """Build a variant into the empty folder `out`, calibrated and solved on `device`."""
    maker = backends()[backend]
    if maker.streams(checkpoint, recipe):
        path = fetch(checkpoint, hub, progress=progress)
        with vetted(checkpoint, path) as folder:
            for line in check_shapes(checkpoint, folder):
                progress.note(line)
            maker.build_streamed(checkpoint, folder, recipe, out, progress, solver(resolve(device)))
        require_unchanged(checkpoint)
        return
    pipeline = measure.load_base(checkpoint, hub, progress, half_precision=maker.half_precision, device=device)
    if checkpoint.companions:
        companions = load_all(checkpoint, pipeline, hub, progress)
        maker.build_with_companions(checkpoint, pipeline, companions, recipe, out, progress)
    else:
        maker.build(checkpoint, pipeline, recipe, out, progress)


class Base:
    """The uncompressed checkpoint: fetched and drawn with when first needed, and no earlier.

    `identity` is its fingerprint; `hub` where it comes from; `scope` what is measured; `usual` how users draw;
    `judge` the encoder that tells whether subjects are kept (`sdhub.evidence.subject`). `device` is torch's, by
    its name, `runtime_device` that of runtimes which have a choice (`Backend.runtime_devices`).
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        identity: str,
        scope: Scope,
        usual: Sampling,
        hub: Hub,
        work: Work,
        progress: Progress,
        judge: str | None = None,
        device: str = CPU,
        runtime_device: str | None = None,
    ) -> None:
        self.checkpoint = checkpoint
        self.device = device
        self.runtime_device = runtime_device
        self.identity = identity
        self.scope = scope
        self.usual = usual
        self.work = work
        self.progress = progress
        self.hub = hub
        self.judge = judge

    @property
    def sampling(self) -> Sampling:
        """How evidence is drawn."""
        return self.scope.sampling

    def samples(self, versions: Mapping[str, str]) -> Path:
        """What the base draws, and the points of its trajectories."""
        key = {
            "source": self.identity,
            "device": on_device(self.device),
            "sampling": self.sampling.document(),
            "trajectories": NOISE_PROMPTS,
            "versions": {name: version for name, version in versions.items() if name in DRAWING},
        }

        def make(out: Path) -> None:
            named = (self.checkpoint, self.hub, self.device, self.sampling, out)
            run_isolated(measure.draw_base, *named, progress=self.progress)

        label = f"draw with {self.checkpoint.name}"
        return self.work.stage("base", key, make, progress=self.progress, label=label)


class VariantStages:
    """One variant: built, drawn, timed, compared; each result found again by its key."""

    def __init__(self, base: Base, backend: Backend, recipe: Recipe) -> None:
        self.base = base
        self.backend = backend
        self.recipe = recipe
        self.versions = backend.versions()
        self.key = {
            "source": base.identity,
            "recipe": recipe.sha256,
            "backend": [backend.name, backend.revision],
            "versions": self.versions,
            **({} if base.device == CPU else {"device": on_device(base.device)}),
        }
        self._where = (base.device, base.runtime_device if backend.runtime_devices else None)
        self._drawn = {
            "variant": self.key,
            "sampling": base.sampling.document(),
            "points": POINTS,
            "device": [on_device(base.device), self._where[1]],
        }

    def build(self) -> Path:
        """The variant's folder."""
        base = self.base

        def make(out: Path) -> None:
            run_isolated(
                build_variant,
                base.checkpoint,
                base.hub,
                self.backend.name,
                self.recipe,
                base.device,
                out,
                progress=base.progress,
            )

        return base.work.stage(
            "variant", self.key, make, progress=base.progress, label=f"build {self.recipe.name}"
        )

    def samples(self) -> Path:
        """What the variant draws, and its noise SNR."""
        base = self.base
        folder, reference = self.build(), base.samples(self.versions)

        def make(out: Path) -> None:
            run_isolated(
                measure.draw_variant,
                self.backend.name,
                folder,
                self._where,
                base.sampling,
                reference,
                out,
                progress=base.progress,
            )

        label = f"draw with {self.recipe.name}"
        return base.work.stage("samples", self._drawn, make, progress=base.progress, label=label)

    @property
    def _stood_in(self) -> bool:
        """Whether sdhub draws in the stead of the variant's own runtime, whose speed and memory that says not."""
        return self.backend.checks == "sdhub" and not self.backend.kernels(self.build(), resolve(self.base.device))

    def latency(self) -> dict[str, Any] | None:
        """The document of the variant's speed; None where its own runtime is not here, and another stood in."""
        if self._stood_in:
            return None
        base, folder = self.base, self.build()

        def make(out: Path) -> None:
            run_isolated(
                measure.time_variant,
                base.checkpoint,
                base.hub,
                self.backend.name,
                folder,
                self._where,
                base.sampling,
                base.scope.whole,
                out,
                progress=base.progress,
            )

        key = {**self._drawn, "machine": compare.machine(), "beside": base.scope.whole}
        timed = base.work.stage("latency", key, make, progress=base.progress, label="measure speed")
        return _read(timed / measure.LATENCY)

    def evidence(self) -> Path:
        """`evidence.json`, `contact_sheet.png`, and `base/` and `variant/` with a picture per prompt."""
        base = self.base
        folder, reference, drawn = self.build(), base.samples(self.versions), self.samples()
        latency, twin = self.latency(), self._twin()
        nearest = twin.samples() if twin else None

        def make(out: Path) -> None:
            self._write_evidence(out, folder, drawn, reference, latency, nearest)

        key = {
            **self._drawn,
            "latency": latency,
            "budget": base.scope.budget.document(),
            "usual": base.usual.document(),
            "nearest": twin.key if twin else None,
            "judge": base.judge,
        }
        return base.work.stage("evidence", key, make)

    def _twin(self) -> VariantStages | None:
        """The same formats without calibration, where the backend's cards show both."""
        nearest = self.recipe.uncalibrated()
        if not (self.backend.shows_uncalibrated and self.base.scope.whole) or nearest == self.recipe:
            return None
        return VariantStages(self.base, self.backend, nearest)

    def _write_evidence(
        self,
        out: Path,
        folder: Path,
        drawn: Path,
        reference: Path,
        latency: Mapping[str, Any] | None,
        nearest: Path | None,
    ) -> None:
        base, variant = samples.load(reference), samples.load(drawn)
        fidelity = compare.compare(base, variant, self.base.sampling)
        judge = self.base.judge
        kept = None
        if judge and len(base) > 1:
            drawings = [each.image for each in base], [each.image for each in variant]
            kept = subject_kept(*drawings, encoder(judge), name=judge)
        took = {
            "base": _took(reference),
            "variant": {} if self._stood_in else _took(drawn),
        }
        ran = {"base": _read(reference / measure.DRAWING)["ran"], "variant": _read(drawn / measure.DRAWING)["ran"]}
        alike = self.backend.on_torch or self.base.device == CPU  # the base was timed where it was drawn
        evidence = compare.Evidence(
            fidelity=fidelity,
            latency=Latency(**latency) if latency else None,
            bytes=compare.folder_bytes(folder),
            base_bytes=self.base.checkpoint.bytes,
            peak_mib=took["variant"].get("peak_mib"),
            base_peak_mib=took["base"].get("peak_mib"),
            picture_seconds=_picture_seconds(latency, took, self.base.sampling) if alike else None,
            sampling=self.base.sampling,
            machine=compare.machine(),
            versions=self.versions,
            nearest=compare.compare(base, samples.load(nearest), self.base.sampling) if nearest else None,
            subject=kept,
            noise_snr=_read(drawn / measure.NOISE),
            budget=self.base.scope.budget.document(),
            usual=self.base.usual,
            ran=ran,
        )
        document = json.dumps(evidence.document(), indent=2, ensure_ascii=False, allow_nan=False)
        (out / "evidence.json").write_text(document + "\n", encoding="utf-8")
        name = self.base.checkpoint.name
        figures.contact_sheet(
            out / "contact_sheet.png",
            base,
            variant,
            fidelity.prompts,
            title=f"{name} in {ran['base']['precision']}, and {self.recipe.name}",
            labels=(f"{name} {ran['base']['precision']}", self.recipe.name),
        )
        for side, pictures in (("base", reference), ("variant", drawn)):
            (out / side).mkdir()
            for path in sorted(pictures.glob("*.png")):
                (out / side / path.name).write_bytes(path.read_bytes())


def _read(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def _took(drawn: Path) -> dict[str, Any]:
    """What drawing took, where it was on this machine."""
    found = _read(drawn / measure.DRAWING)
    return found if found["machine"] == compare.machine() else {}


def _picture_seconds(
    latency: Mapping[str, Any] | None, took: Mapping[str, Mapping[str, Any]], sampling: Sampling
) -> dict[str, Any] | None:
    """Seconds of a whole picture of the evidence, by part; the steps' are those that were timed in alternation."""
    if latency is None or not all(took.values()):
        return None
    found = {}
    for side, each in took.items():
        steps = sampling.steps * float(latency[f"{side}_seconds_per_step"])
        parts = {"encode": each["encode_seconds"], "steps": steps, "decode": each["decode_seconds"]}
        parts["all"] = sum(parts.values())
        found[side] = {name: float(f"{value:.4g}") for name, value in parts.items()}
    return found

"""The stages of `publish` that leave results in the work folder, each under the key of its inputs."""

from __future__ import annotations

import json
import shutil
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
from sdhub.core.device import CPU, described, empty_cache, on_device, resolve, solver
from sdhub.core.hub import Hub
from sdhub.core.isolated import run_isolated
from sdhub.core.progress import Progress
from sdhub.core.quiet import quiet
from sdhub.core.work import Work
from sdhub.evidence import compare, figures, latency, noise, samples
from sdhub.evidence.sampling import Sampling
from sdhub.evidence.subject import encoder, subject_kept
from sdhub.recipes.recipe import Recipe
from sdhub.workflow import measure

NOISE_PROMPTS = 4  # whose trajectories are kept: four points of four are 16 predictions
DRAWING = ("torch", "diffusers", "transformers")
RAN = "ran.json"


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
    """The uncompressed checkpoint at work: fetched and loaded when first needed, and no earlier.

    `identity` is its fingerprint; `hub` where it comes from; `judge` the encoder that tells whether subjects are
    kept (`sdhub.evidence.subject`). `device` is torch's, by its name, `runtime_device` that of runtimes which have
    a choice (`Backend.runtime_devices`).
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        identity: str,
        sampling: Sampling,
        hub: Hub,
        work: Work,
        progress: Progress,
        judge: str | None = None,
        device: str = CPU,
        runtime_device: str | None = None,
    ) -> None:
        self.device = device
        self.runtime_device = runtime_device
        self.checkpoint = checkpoint
        self.identity = identity
        self.sampling = sampling
        self.work = work
        self.progress = progress
        self.hub = hub
        self.judge = judge
        self._pipeline: Any = None

    def load(self, device: str | None = None) -> Any:
        """A fresh pipeline to draw with, on this device or another."""
        where = device or self.device
        return measure.load_base(self.checkpoint, self.hub, self.progress, device=where, drawing=True)

    @property
    def pipeline(self) -> Any:
        """The pipeline that is drawn with and timed; kept until `release`."""
        if self._pipeline is None:
            self._pipeline = self.load()
        return self._pipeline

    def release(self) -> None:
        """Give the memory back."""
        if self._pipeline is not None:
            self._pipeline = None
            empty_cache(resolve(self.device))

    def samples(self, versions: Mapping[str, str]) -> Path:
        """What the base draws, and the points of its trajectories; what it ran on in `ran.json`."""
        key = {
            "source": self.identity,
            "device": on_device(self.device),
            "sampling": self.sampling.document(),
            "trajectories": NOISE_PROMPTS,
            "versions": {name: version for name, version in versions.items() if name in DRAWING},
        }
        label = f"draw with {self.checkpoint.name}"

        def make(out: Path) -> None:
            with noise.recorded(self.pipeline) as points:
                drawn = measure.draw_all(self.pipeline, self.sampling, self.progress)
            samples.save(out, drawn)
            (out / RAN).write_text(json.dumps(described(self.pipeline)))
            length = len(points) // len(drawn)
            noise.save(out, [points[n * length : (n + 1) * length] for n in range(min(len(drawn), NOISE_PROMPTS))])

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
        self._drawn = {
            "variant": self.key,
            "sampling": base.sampling.document(),
            "device": [on_device(base.device), base.runtime_device if backend.runtime_devices else None],
        }
        self._pipeline: Any = None

    def build(self) -> Path:
        """The variant's folder."""
        base = self.base

        def make(out: Path) -> None:
            base.release()  # memory is short
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

    @property
    def pipeline(self) -> Any:
        """The variant, opened to draw with; kept until `release`."""
        if self._pipeline is None:
            with quiet():
                self._pipeline = self._open(self.build())
        return self._pipeline

    def _open(self, folder: Path) -> Any:
        own = self.base.runtime_device if self.backend.runtime_devices else None
        return self.backend.open(folder, self.base.device, own)

    def release(self) -> None:
        """Give the memory back."""
        if self._pipeline is not None:
            self._pipeline = None
            empty_cache(resolve(self.base.device))

    @property
    def kernels(self) -> str | None:
        """What runs the variant here as its users' machines do, where that is not so everywhere."""
        return self.backend.kernels(self.build(), resolve(self.base.device))

    def samples(self) -> Path:
        """What the variant draws; what it ran on in `ran.json`."""
        base = self.base

        def make(out: Path) -> None:
            samples.save(out, measure.draw_all(self.pipeline, base.sampling, base.progress))
            ran = {**self.backend.described(self.pipeline), "kernels": self.kernels}
            (out / RAN).write_text(json.dumps(ran))

        label = f"draw with {self.recipe.name}"
        return base.work.stage("samples", self._drawn, make, progress=base.progress, label=label)

    def noise(self) -> Path:
        """`noise.json`: the noise SNR of the first prompts."""
        base = self.base
        reference = base.samples(self.versions)

        def make(out: Path) -> None:
            found = measure.noise_snr(self.pipeline, noise.load(reference), base.sampling, base.progress)
            (out / "noise.json").write_text(json.dumps(found.document()))

        label = f"compare the predictions of {self.recipe.name}"
        return base.work.stage("noise", self._drawn, make, progress=base.progress, label=label)

    def measured(self) -> Path:
        """`measured.json`: what differs from run to run and from machine to machine, speed and memory."""
        base, stand_in = self.base, self.backend.checks == "sdhub" and self.kernels is None

        def make(out: Path) -> None:
            if stand_in:  # its speed and memory say nothing of the variant's
                nothing = {"latency": None, "base_peak_mib": None, "peak_mib": None}
                (out / "measured.json").write_text(json.dumps(nothing))
                return
            timed = self._timed(out / "plain")
            base.release()
            self.release()
            figures = {"latency": timed.document(), **self._peaks(out)}
            (out / "measured.json").write_text(json.dumps(figures))

        key = {**self._drawn, "machine": compare.machine()}
        return base.work.stage("measured", key, make, progress=base.progress, label="measure speed and memory")

    def _timed(self, place: Path) -> latency.Latency:
        """Beside the base, and beside the same runtime without compression; `place` may hold that for a while."""
        base, backend, variant = self.base, self.backend, self.build()
        place.mkdir()
        pipeline = base.pipeline if self._where == base.device else base.load(self._where)
        try:
            name = backend.plain(base.checkpoint, pipeline, variant, place)
            with quiet():
                reference = (name, self._open(place)) if name else None
            return latency.alternate(
                pipeline,
                self.pipeline,
                base.sampling,
                reference=reference,
                settings={
                    **backend.settings(self.pipeline),
                    **({} if base.device == CPU else {"base": ", ".join(described(pipeline).values())}),
                },
                progress=base.progress,
            )
        finally:
            shutil.rmtree(place, ignore_errors=True)

    @property
    def _where(self) -> str:
        """The device that the base is timed on: the variant's, or the CPU beside a runtime that is not torch."""
        return self.base.device if self.backend.on_torch else CPU

    def _peaks(self, out: Path) -> dict[str, float | None]:
        """Peak memory of both, in MiB, each in a process of its own."""
        base, file = self.base, out / "peak"
        peaks = {}
        named = (base.checkpoint, base.hub, self._where, base.sampling, file)
        run_isolated(measure.peak_of_base, *named, progress=base.progress)
        peaks["base_peak_mib"] = json.loads(file.read_text())
        own = base.runtime_device if self.backend.runtime_devices else None
        opened = (self.backend.name, self.build(), base.device, own, base.sampling, file)
        run_isolated(measure.peak_of_variant, *opened, progress=base.progress)
        peaks["peak_mib"] = json.loads(file.read_text())
        file.unlink()
        return peaks

    def evidence(self) -> Path:
        """`evidence.json`, `contact_sheet.png`, and `base/` and `variant/` with a picture per prompt."""
        folder = self.build()
        reference = self.base.samples(self.versions)
        drawn = self.samples()
        snr = json.loads((self.noise() / "noise.json").read_text())
        measured = json.loads((self.measured() / "measured.json").read_text())
        twin = self._twin()
        nearest = twin.samples() if twin else None

        def make(out: Path) -> None:
            self._write_evidence(out, folder, drawn, reference, measured, snr, nearest)

        key = {
            **self._drawn,
            "measured": measured,
            "noise_snr": snr,
            "nearest": twin.key if twin else None,
            "judge": self.base.judge,
        }
        return self.base.work.stage("evidence", key, make)

    def _twin(self) -> VariantStages | None:
        """The same formats without calibration, where the backend's cards show both."""
        nearest = self.recipe.uncalibrated()
        if not self.backend.shows_uncalibrated or nearest == self.recipe:
            return None
        self.release()
        return VariantStages(self.base, self.backend, nearest)

    def _write_evidence(
        self,
        out: Path,
        folder: Path,
        drawn: Path,
        reference: Path,
        measured: Mapping[str, Any],
        snr: Mapping[str, Any],
        nearest: Path | None,
    ) -> None:
        base, variant = samples.load(reference), samples.load(drawn)
        fidelity = compare.compare(base, variant, self.base.sampling)
        judge = self.base.judge
        kept = None
        if judge and len(base) > 1:
            drawings = [each.image for each in base], [each.image for each in variant]
            kept = subject_kept(*drawings, encoder(judge), name=judge)
        evidence = compare.Evidence(
            fidelity=fidelity,
            latency=latency.Latency(**measured["latency"]) if measured["latency"] else None,
            bytes=compare.folder_bytes(folder),
            base_bytes=self.base.checkpoint.bytes,
            peak_mib=measured["peak_mib"],
            base_peak_mib=measured["base_peak_mib"],
            sampling=self.base.sampling,
            machine=compare.machine(),
            versions=self.versions,
            nearest=compare.compare(base, samples.load(nearest), self.base.sampling) if nearest else None,
            subject=kept,
            noise_snr=snr,
            ran={
                side: json.loads((place / RAN).read_text())
                for side, place in (("base", reference), ("variant", drawn))
            },
        )
        document = json.dumps(evidence.document(), indent=2, ensure_ascii=False, allow_nan=False)
        (out / "evidence.json").write_text(document + "\n", encoding="utf-8")
        name = self.base.checkpoint.name
        figures.contact_sheet(
            out / "contact_sheet.png",
            base,
            variant,
            fidelity.prompts,
            title=f"{name} in {evidence.ran['base']['precision']}, and {self.recipe.name}",
            labels=(f"{name} {evidence.ran['base']['precision']}", self.recipe.name),
        )
        for side, pictures in (("base", reference), ("variant", drawn)):
            (out / side).mkdir()
            for path in sorted(pictures.glob("*.png")):
                (out / side / path.name).write_bytes(path.read_bytes())

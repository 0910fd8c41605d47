"""A denoiser under analysis: trajectories traced, choices sampled; every result kept in the work folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdhub.analysis import sensitivity
from sdhub.analysis.allocation import Choice
from sdhub.analysis.analysis import MOST_DB, Analysis, Subject, analysis_of
from sdhub.analysis.sensitivity import Trace
from sdhub.checkpoint.checkpoint import Checkpoint
from sdhub.core.device import CPU, of_pipeline, resolve, solver
from sdhub.core.errors import EvidenceError
from sdhub.core.placement import holds
from sdhub.core.progress import SILENT, Progress
from sdhub.core.work import Work
from sdhub.evidence.metrics import psnr
from sdhub.recipes.calibration import calibration_for, is_large
from sdhub.recipes.recipe import Calibration, Treatment
from sdhub.recipes.treatments import dequantized
from sdhub.recipes.weights import LEAST, MEMORY

if TYPE_CHECKING:
    import torch

    from sdhub.compression.calibration import LayerStatistics

REVISION = 3
PACKAGES = ("sdhub", "torch", "diffusers", "transformers", "numpy")
PROMPTS, STEPS, ROWS, BLOCK = 3, 4, 64, 768
FIRST = 50_000  # before the seeds of calibration, and far from those of evidence


def trajectories_for(checkpoint: Checkpoint) -> Calibration:
    """What an analysis samples: few short trajectories of the prompts that the checkpoint is calibrated on."""
    full = calibration_for(checkpoint)
    count = min(2 if is_large(checkpoint) else PROMPTS, len(full.prompts))
    spread = tuple(full.prompts[index * len(full.prompts) // count] for index in range(count))
    steps = min(STEPS, full.steps)
    return full.model_copy(
        update={
            "prompts": spread,
            "seed": FIRST,
            "steps": steps,
            "recorded": steps,
            "rows": ROWS,
            "block": BLOCK,
        }
    )


@dataclass
class SensitivityAnalyzer:
    """Measures one component. `load` gives the pipeline when it is first needed; `fingerprint` identifies its
    bytes.

    `device`: where it is run, a name of torch's; where that cannot hold the pipeline, on the CPU. `calls` counts
    those of the denoiser that were made or, from an earlier run, kept: one per trajectory and step, and one more
    for going back.
    """

    load: Callable[[], Any]
    source: str
    fingerprint: str
    setting: Calibration
    work: Work
    component: str = "unet"
    device: str = CPU
    progress: Progress = SILENT
    calls: int = field(default=0, init=False)

    @cached_property
    def pipeline(self) -> Any:
        """The pipeline, on the device: passes backwards need all of it there."""
        loaded, device = self.load(), resolve(self.device)
        modules = [each for each in loaded.components.values() if hasattr(each, "parameters")]
        if device.type == CPU or holds(device, modules, times=2):
            return loaded if device.type == CPU else loaded.to(device)
        self.progress.note(f"  {self.device} cannot hold the pipeline twice: analyzing on the CPU")
        return loaded

    @property
    def denoiser(self) -> torch.nn.Module:
        """The component itself."""
        module: torch.nn.Module = getattr(self.pipeline, self.component)
        return module

    @cached_property
    def layers(self) -> list[str]:
        """The layers that are chosen among."""
        return sensitivity.candidates(self.denoiser, LEAST)

    @cached_property
    def statistics(self) -> dict[str, LayerStatistics]:
        """Gram matrices of the layers' inputs."""
        return sensitivity.calibrated(self.pipeline, self.setting, self.component, self.layers, self.progress)

    @cached_property
    def factors(self) -> sensitivity.Factors:
        """Their Cholesky factors."""
        return sensitivity.factors(self.statistics)

    @cached_property
    def traces(self) -> list[Trace]:
        """All trajectories of the setting, traced."""
        count = len(self.setting.prompts)
        found = []
        with self.progress.task("tracing", total=count * self.setting.steps, unit="steps") as task:
            for number in range(count):
                found.append(self._trace(number, task.advance))
                self.calls += 2 * len(found[-1].timesteps)
        return found

    def analysis(self, treatments: Sequence[Treatment]) -> Analysis:
        """The analysis for these treatments, without checks so far."""
        weights = {name: self.denoiser.get_submodule(name).weight.detach().cpu() for name in self.layers}
        calibration = len(self.setting.prompts) * (max(_recorded(self.setting)) + 1)
        return analysis_of(
            self.subject,
            weights,
            self._errors(treatments, weights),
            treatments,
            parameters=sum(each.numel() for each in self.denoiser.parameters()),
            peak=max(float(each.latents.abs().max()) for each in self.traces),
            calls=self.calls + (calibration if _calibrated(treatments) else 0),
        )

    @property
    def subject(self) -> Subject:
        """What recipes say of this analysis."""
        versions = {name: metadata.version(name) for name in PACKAGES}
        moments = self.traces[0].timesteps
        return Subject(self.component, self.source, self.fingerprint, self.setting, moments, versions)

    def check(self, analysis: Analysis, choice: Choice) -> Analysis:
        """The analysis with this choice sampled as a whole, on the same trajectories."""
        treatments = analysis.treatments_of(choice)
        key = {
            **self._key,
            "treatments": {name: each.model_dump(mode="json") for name, each in treatments.items()},
        }

        def make(out: Path) -> None:
            (out / "check.json").write_text(json.dumps(self._measured(treatments)))

        folder = self.work.stage("check", key, make, progress=self.progress)
        measured = float(json.loads((folder / "check.json").read_text()))
        return analysis.checked(choice, measured, len(self.setting.prompts) * self.setting.steps)

    @property
    def _key(self) -> dict[str, Any]:
        return {
            "source": self.fingerprint,
            "component": self.component,
            "setting": self.setting.model_dump(mode="json"),
            "device": self.device,
            "revision": REVISION,
            "versions": {name: metadata.version(name) for name in PACKAGES},
        }

    def _trace(self, number: int, on_step: Callable[[], None]) -> Trace:
        from safetensors.torch import load_file, save_file

        def make(out: Path) -> None:
            traced = sensitivity.trace(self.pipeline, self.setting, number, self.component, self.layers, on_step)
            save_file(
                {f"gradient/{name}": each for name, each in traced.gradients.items()},
                out / "gradients.safetensors",
            )
            save_file({"latents": traced.latents}, out / "latents.safetensors")
            (out / "timesteps.json").write_text(json.dumps(traced.timesteps))

        folder = self.work.stage("trace", {**self._key, "number": number}, make)
        gradients = load_file(
            folder / "gradients.safetensors"
        )  # mapped into memory, so that those of large models fit
        return Trace(
            load_file(folder / "latents.safetensors")["latents"],
            tuple(json.loads((folder / "timesteps.json").read_text())),
            {name: gradients[f"gradient/{name}"] for name in self.layers if f"gradient/{name}" in gradients},
        )

    def _errors(
        self, treatments: Sequence[Treatment], weights: Mapping[str, torch.Tensor]
    ) -> dict[str, dict[int, float]]:
        """What each treatment of each layer changes, by its number."""

        from sdhub.compression.layers import each_layer

        def make(out: Path) -> None:
            traces, known = self.traces, self.factors if _calibrated(treatments) else {}
            shares = sensitivity.scales(traces)
            reached = [name for name in weights if all(name in each.gradients for each in traces)]

            def work(name: str) -> dict[int, float]:
                parts = zip(traces, shares, strict=True)
                gradients = [each.gradients[name].float() * share for each, share in parts]
                return sensitivity.errors(weights[name], treatments, gradients, known.get(name))

            def cost(name: str) -> int:
                return 4 * (3 * len(traces) + 4) * int(weights[name].numel())

            found = {}
            with self.progress.task("reckoning", total=len(reached), unit="layers") as task:
                for name, errors in each_layer(reached, work, cost=cost, memory=MEMORY):
                    found[name] = errors
                    task.advance()
            (out / "errors.json").write_text(json.dumps(found))

        key = {**self._key, "treatments": [each.model_dump(mode="json") for each in treatments]}
        folder = self.work.stage("sensitivity", key, make)
        document = json.loads((folder / "errors.json").read_text())
        return {
            name: {int(number): error for number, error in document[name].items()}
            for name in self.layers
            if name in document
        }

    def _measured(self, treatments: Mapping[str, Treatment]) -> float:
        """Latent PSNR with these treatments, pooled over all trajectories, in dB."""
        import torch

        reference = torch.stack([each.latents for each in self.traces])
        drawn = []
        with (
            self._treated(treatments),
            self.progress.task("checking", total=len(reference) * self.setting.steps, unit="steps") as task,
            torch.no_grad(),
        ):
            for number in range(len(reference)):
                latents, _ = sensitivity.sample(self.pipeline, self.setting, number, task.advance)
                drawn.append(latents[0].float().cpu())
        found = torch.stack(drawn)
        if not bool(torch.isfinite(found).all()):
            raise EvidenceError("the treated denoiser draws infinite or undefined numbers")
        return min(psnr(reference.numpy(), found.numpy(), float(reference.abs().max())), MOST_DB)

    @contextmanager
    def _treated(self, treatments: Mapping[str, Treatment]) -> Iterator[None]:
        """Within it the layers have the weights that the treatments leave."""
        import torch

        weights = {name: self.denoiser.get_submodule(name).weight.detach() for name in treatments}
        kept = {name: weight.clone() for name, weight in weights.items()}
        try:
            with torch.no_grad():
                for name, found in dequantized(
                    kept,
                    treatments,
                    self.statistics if _calibrated(treatments.values()) else None,
                    device=solver(of_pipeline(self.pipeline)),
                    progress=self.progress,
                ):
                    weights[name].copy_(found)
            yield
        finally:
            for name, weight in kept.items():
                weights[name].copy_(weight)


def _calibrated(treatments: Iterable[Treatment]) -> bool:
    return any(getattr(each, "rounding", "round_to_nearest") == "gptq" for each in treatments)


def _recorded(setting: Calibration) -> tuple[int, ...]:
    from sdhub.compression.calibration import spread

    return spread(setting.steps, setting.recorded)

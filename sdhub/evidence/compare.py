"""Evidence: what a variant's pictures, size, speed and memory are beside its base's."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sdhub.core.errors import EvidenceError
from sdhub.core.machine import cpu
from sdhub.evidence.latency import Latency
from sdhub.evidence.metrics import latent_psnr, psnr, ssim
from sdhub.evidence.sampling import Sample, Sampling
from sdhub.evidence.subject import Subject


@dataclass(frozen=True)
class PromptFidelity:
    """Fidelity of one picture; PSNR in dB, infinite where nothing differs."""

    text: str
    seed: int
    psnr_db: float
    ssim: float
    latent_psnr_db: float


@dataclass(frozen=True)
class Fidelity:
    """Fidelity over all prompts: PSNR of the pooled squared error, mean SSIM."""

    psnr_db: float
    ssim: float
    latent_psnr_db: float
    prompts: tuple[PromptFidelity, ...]


@dataclass(frozen=True)
class Evidence:
    """All that was measured of one variant; `bytes` are of its files, `base_bytes` of the base's weights.

    `latency` None: the variant's own runtime is not on this machine. `nearest`: of the same formats without
    calibration, every weight rounded to the nearest value, where that was made for comparison. `subject`: whether
    pictures still show what the base's show, where an encoder was named. `noise_snr`: the document of
    `sdhub.evidence.noise.NoiseSnr`. `picture_seconds`: of a whole picture, for base and variant, by part.
    `budget`: the document of `sdhub.evidence.budget.Budget`. `usual`: how users draw. `ran`: of base and variant
    `device` and `precision`, and the variant's `kernels` where its pictures were drawn with those of its users'
    machines.
    """

    fidelity: Fidelity
    latency: Latency | None
    bytes: int
    base_bytes: int
    peak_mib: float | None
    base_peak_mib: float | None
    sampling: Sampling
    machine: Mapping[str, Any]
    versions: Mapping[str, str]
    nearest: Fidelity | None = None
    subject: Subject | None = None
    noise_snr: Mapping[str, Any] | None = None
    picture_seconds: Mapping[str, Any] | None = None
    budget: Mapping[str, Any] | None = None
    usual: Sampling | None = None
    ran: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """The JSON form; an infinite PSNR is null."""
        fidelity = self.fidelity
        return {
            **_figures(fidelity),
            "noise_snr": dict(self.noise_snr) if self.noise_snr else None,
            "nearest": _figures(self.nearest) if self.nearest else None,
            "subject": self.subject.document() if self.subject else None,
            "latency": {
                name: float(f"{value:.4g}") if isinstance(value, float) else value
                for name, value in self.latency.document().items()
            }
            if self.latency
            else None,
            "bytes": self.bytes,
            "base_bytes": self.base_bytes,
            "peak_mib": self.peak_mib,
            "base_peak_mib": self.base_peak_mib,
            "prompts": [{"text": each.text, "seed": each.seed, **_figures(each)} for each in fidelity.prompts],
            "picture_seconds": dict(self.picture_seconds) if self.picture_seconds else None,
            "budget": dict(self.budget) if self.budget else None,
            "sampling": self.sampling.document(),
            "usual": _usual(self.usual) if self.usual else None,
            "device": {side: each["device"] for side, each in self.ran.items()},
            "precision": {side: each["precision"] for side, each in self.ran.items()},
            "kernels": self.ran.get("variant", {}).get("kernels"),
            "machine": dict(self.machine),
            "versions": dict(self.versions),
        }


def compare(base: Sequence[Sample], variant: Sequence[Sample], sampling: Sampling) -> Fidelity:
    """Fidelity of `variant` to `base`, sample by sample of the same prompts.

    Raises EvidenceError where their counts or shapes differ.
    """
    _comparable(base, variant, sampling)
    rows = tuple(
        PromptFidelity(
            text=prompt.text,
            seed=prompt.seed,
            psnr_db=psnr(a.image, b.image, peak=1.0),
            ssim=ssim(a.image, b.image),
            latent_psnr_db=latent_psnr(a.latents, b.latents),
        )
        for prompt, a, b in zip(sampling.prompts, base, variant, strict=True)
    )
    images = (np.stack([each.image for each in base]), np.stack([each.image for each in variant]))
    latents = (np.stack([each.latents for each in base]), np.stack([each.latents for each in variant]))
    return Fidelity(
        psnr_db=psnr(*images, peak=1.0),
        ssim=float(np.mean([row.ssim for row in rows])),
        latent_psnr_db=latent_psnr(*latents),
        prompts=rows,
    )


def _comparable(base: Sequence[Sample], variant: Sequence[Sample], sampling: Sampling) -> None:
    if not len(base) == len(variant) == len(sampling.prompts):
        raise EvidenceError(f"{len(base)} and {len(variant)} pictures of {len(sampling.prompts)} prompts")
    shapes = {(each.image.shape, each.latents.shape) for each in (*base, *variant)}
    if len(shapes) > 1:
        found = ", ".join(f"{image} of latents {latents}" for image, latents in sorted(shapes))
        raise EvidenceError(
            f"pictures of different shapes cannot be compared: {found}",
            hint="was the variant built for another size?",
        )


def machine() -> dict[str, Any]:
    """The machine that measured, without names of hosts or people."""
    return {
        "cpu": cpu(),
        "cores": os.cpu_count(),
        "memory_gib": _memory_gib(),
        "system": platform.system(),
        "architecture": platform.machine(),
    }


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below the folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _usual(sampling: Sampling) -> dict[str, Any]:
    """All but the prompts."""
    return {name: value for name, value in sampling.document().items() if name != "prompts"}


def _figures(fidelity: Fidelity | PromptFidelity) -> dict[str, Any]:
    return {
        "identical": math.isinf(fidelity.psnr_db),
        "psnr_db": _finite(fidelity.psnr_db),
        "ssim": round(fidelity.ssim, 5),
        "latent_psnr_db": _finite(fidelity.latent_psnr_db),
    }


def _finite(value: float) -> float | None:
    return None if math.isinf(value) else round(value, 2)


def _memory_gib() -> int | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)
    except (AttributeError, ValueError, OSError):  # no sysconf here, or it does not know
        return None

"""What a single file says of how it is drawn with: marker tensors and metadata. It goes before any config.

Markers: `v_pred` and `ztsnr` (empty; zero terminal SNR: Lin et al. 2023, arXiv 2305.08891), `edm_mean` and
`edm_std` (Playground v2.5, arXiv 2402.17245), `edm_vpred.sigma_max` and `edm_vpred.sigma_min` (CosXL). Metadata:
Stability's `modelspec.prediction_type`, and the settings of kohya's trainer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sdhub.checkpoint.headers import Header
from sdhub.core.documents import shown
from sdhub.core.errors import SourceError, UnsupportedError

V, ZERO_SNR = "v_pred", "ztsnr"
MEAN, STD = "edm_mean", "edm_std"
SIGMA_MAX, SIGMA_MIN = "edm_vpred.sigma_max", "edm_vpred.sigma_min"
MARKERS: Mapping[str, int] = {V: 1, ZERO_SNR: 1, MEAN: 16, STD: 16, SIGMA_MAX: 1, SIGMA_MIN: 1}  # numbers at most
PREDICTION = "modelspec.prediction_type"
TRAINED = {"true": "v_prediction", "false": "epsilon"}
SPELLINGS = {"epsilon": "epsilon", "eps": "epsilon", "v": "v_prediction", "vprediction": "v_prediction"}
RESCALING = frozenset(
    {
        "DDIMScheduler",
        "DDPMScheduler",
        "DPMSolverMultistepScheduler",
        "EulerAncestralDiscreteScheduler",
        "EulerDiscreteScheduler",
        "LCMScheduler",
        "TCDScheduler",
        "UniPCMultistepScheduler",
    }
)
EDM = frozenset({"EDMDPMSolverMultistepScheduler", "EDMEulerScheduler"})
WITHOUT_PREDICTION = frozenset(
    {"FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", "IPNDMScheduler", "SCMScheduler"}
)
PLAYGROUND_DATA = 0.5  # the standard deviation of its latents, and what its autoencoder scales by
AGAIN = "get the file again, or ask its maker which of the two holds"


@dataclass(frozen=True)
class Said:
    """`prediction` None: nothing is said. `edm`: whose continuous noise levels it was trained on, if any."""

    prediction: str | None = None
    zero_snr: bool = False
    edm: Literal["playground", "cosxl"] | None = None

    @property
    def words(self) -> tuple[str, ...]:
        """What goes beside the prediction type, for people."""
        made = {"playground": "noise levels and latents of Playground v2.5", "cosxl": "noise levels of CosXL"}
        return (*(["zero terminal SNR"] if self.zero_snr else []), *([made[self.edm]] if self.edm else []))

    def scheduler(self, class_name: str) -> tuple[str, dict[str, Any]]:
        """The scheduler's class, and the settings that go over its config, where a config names `class_name`.

        A class that cannot do what the file says gives way to diffusers' Euler of the same kind. The numbers of
        CosXL stand in its tensors and are left to the loader.
        """
        if self.edm:
            settings: dict[str, Any] = {"sigma_min": 0.002, "prediction_type": self.prediction}
            if self.edm == "playground":
                settings |= {"sigma_max": 80.0, "sigma_data": PLAYGROUND_DATA}
                return (class_name if class_name in EDM else "EDMEulerScheduler"), settings
            return "EDMEulerScheduler", {**settings, "sigma_data": 1.0, "sigma_schedule": "exponential"}
        settings = {"prediction_type": self.prediction} if self.prediction else {}
        if self.zero_snr:
            settings |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        unfit = EDM | WITHOUT_PREDICTION
        fit = class_name in RESCALING if self.zero_snr else not settings or class_name not in unfit
        return (class_name if fit else "EulerDiscreteScheduler"), settings


NOTHING = Said()


def said_by(header: Header, name: str) -> Said:
    """What the file `name` says. Raises SourceError where it contradicts itself, UnsupportedError for what is
    unknown."""
    by_metadata = _by_metadata(header.metadata, name)
    found = Said(by_metadata, _is_zero_snr(header), _edm(header, name))
    if V in header.tensors:
        if by_metadata == "epsilon":
            raise _contradiction(name, f"tensor {V}", f"epsilon in its metadata ({_where(header.metadata)})")
        found = Said("v_prediction", found.zero_snr, found.edm)
    if found.edm is None:
        if found.zero_snr and found.prediction == "epsilon":
            raise _contradiction(name, ZERO_SNR, f"epsilon in its metadata ({_where(header.metadata)})")
        return found
    own = "epsilon" if found.edm == "playground" else "v_prediction"
    marker = MEAN if found.edm == "playground" else SIGMA_MAX
    if found.zero_snr:
        raise _contradiction(name, f"tensor {marker}", ZERO_SNR)
    if found.prediction not in (None, own):
        raise _contradiction(name, f"tensor {marker}", f"prediction type {found.prediction}")
    return Said(own, edm=found.edm)


def require_prediction(said: Said, prediction: str, name: str) -> None:
    """Raises SourceError where zero terminal SNR stands beside the prediction of noise.

    At the first step there is nothing but noise: what predicts noise tells nothing of the picture there, and the
    step divides by zero.
    """
    if said.zero_snr and prediction == "epsilon":
        raise SourceError(
            f"{shown(name)} has the marker {ZERO_SNR}, and nothing says that it predicts v",
            hint="give --config with a scheduler whose prediction_type is v_prediction",
        )


def _by_metadata(metadata: Mapping[str, str], name: str) -> str | None:
    given = metadata.get(PREDICTION, "").strip()
    said = SPELLINGS.get(given.lower().replace("_", "").replace("-", ""))
    if given and said is None:
        raise UnsupportedError(
            f"{shown(name)} says {PREDICTION} {shown(given, 30)}, which sdhub does not know",
            hint="known are epsilon and v",
        )
    trained = TRAINED.get(metadata.get("ss_v_parameterization", "").lower())
    if said and trained and said != trained:
        raise _contradiction(name, f"{trained} by ss_v_parameterization", f"{said} by {PREDICTION}")
    return said or trained


def _where(metadata: Mapping[str, str]) -> str:
    return PREDICTION if metadata.get(PREDICTION) else "ss_v_parameterization"


def _is_zero_snr(header: Header) -> bool:
    return ZERO_SNR in header.tensors or header.metadata.get("ss_zero_terminal_snr", "").lower() == "true"


def _edm(header: Header, name: str) -> Literal["playground", "cosxl"] | None:
    playground, cosxl = {MEAN, STD} & set(header.tensors), {SIGMA_MAX, SIGMA_MIN} & set(header.tensors)
    for found, needed in ((playground, {MEAN, STD}), (cosxl, {SIGMA_MAX})):
        if found and not needed <= found:
            raise SourceError(
                f"{shown(name)} has the marker {min(found)} without {min(needed - found)}",
                hint="get the file again",
            )
    if playground and cosxl:
        raise _contradiction(name, f"tensor {MEAN}", SIGMA_MAX)
    if playground:
        return "playground"
    return "cosxl" if cosxl else None


def _contradiction(name: str, one: str, other: str) -> SourceError:
    return SourceError(f"{shown(name)} contradicts itself: {one}, and {other}", hint=AGAIN)

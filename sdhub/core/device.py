"""Where torch computes: a user's word as a device of this machine, and what suits that device.

"auto" is the first CUDA GPU, and the CPU where there is none; mps and xpu are taken where they are named.
"""

from __future__ import annotations

import gc
import re
from typing import TYPE_CHECKING, Any

from sdhub.core.documents import shown
from sdhub.core.errors import MissingExtraError, UsageError

if TYPE_CHECKING:
    import torch

AUTO, CPU = "auto", "cpu"
WORD = re.compile(r"auto|cpu|cuda(:[0-9]{1,3})?|mps|xpu")
WORDS = "auto, cpu, cuda, cuda:N, mps or xpu"


def vet_word(word: str) -> None:
    """Raises UsageError for a word that names no device anywhere; torch is not imported."""
    if not WORD.fullmatch(word):
        raise UsageError(f"{shown(word, 40)} names no device", hint=WORDS)


def there() -> list[str]:
    """The devices of this machine, as they are named. Raises MissingExtraError without torch."""
    torch = _torch()
    found = [CPU]
    if torch.cuda.is_available():
        found += ["cuda", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
    found += [kind for kind in ("mps", "xpu") if _available(kind)]
    return found


def resolve(word: str = AUTO) -> torch.device:
    """The device that a word means here; a GPU with its number.

    Raises UsageError for a word that is none and for a device that this machine lacks, MissingExtraError without
    torch.
    """
    vet_word(word)
    torch, known = _torch(), there()
    name = word if word != AUTO else "cuda" if "cuda" in known else CPU
    if name not in known:
        raise UsageError(f"this machine has no device {name!r}", hint=f"there are: {', '.join(known)}")
    return torch.device("cuda:0" if name == "cuda" else name)


def precision(device: torch.device, denoiser: str = "unet") -> str:
    """The number type that pictures are drawn in there: float32, bfloat16 or float16, as torch calls them.

    Transformers leave float16's range: where there is no bfloat16 they stay in float32.
    """
    torch = _torch()
    if device.type == CPU:
        return "float32"
    wide = device.type == "xpu" or (
        device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    )
    if wide:
        return "bfloat16"
    return "float16" if denoiser == "unet" else "float32"


def solver(device: torch.device) -> torch.device:
    """Where layers are solved for a pipeline on `device`: there, or on the CPU where it lacks float64."""
    return device if device.type == "cuda" else _torch().device(CPU)


def of_pipeline(pipe: Any) -> torch.device:
    """Where a pipeline computes, wherever its weights lie meanwhile; the CPU for runtimes that are not torch's."""
    torch = _torch()
    device = getattr(pipe, "_execution_device", None)
    return device if isinstance(device, torch.device) else torch.device(CPU)


def described(pipe: Any) -> dict[str, str]:
    """What a pipeline computes on and in, for evidence: `device`, a GPU's with its model and whether weights are
    brought there call by call, and `precision`."""
    torch, name = _torch(), on_device(str(of_pipeline(pipe)))
    if any(hasattr(part, "_hf_hook") for part in getattr(pipe, "components", {}).values()):
        name += ", offloaded"
    denoiser = getattr(pipe, "unet", None) or getattr(pipe, "transformer", None)
    dtype = getattr(denoiser, "dtype", None)
    kind = str(dtype if isinstance(dtype, torch.dtype) else torch.float32).removeprefix("torch.")
    # diffusers decodes so where the autoencoder of SDXL leaves float16's range.
    upcast = kind == "float16" and "XL" in type(pipe).__name__ and pipe.vae.config.get("force_upcast")
    return {"device": name, "precision": f"{kind}, autoencoder float32" if upcast else kind}


def on_device(name: str) -> str:
    """A device with its model, for keys: what is computed on another GPU has other bytes."""
    device = resolve(name)
    return f"{name}, {_torch().cuda.get_device_name(device)}" if device.type == "cuda" else name


def synchronize(device: torch.device) -> None:
    """Wait until a device has done what was queued on it, so that a clock may be read."""
    if device.type in ("cuda", "mps", "xpu"):
        getattr(_torch(), device.type).synchronize()


def free_bytes(device: torch.device) -> int | None:
    """Bytes of a device's memory that are free; None where that is the machine's own, or not told."""
    if device.type not in ("cuda", "xpu"):
        return None
    free: int = getattr(_torch(), device.type).mem_get_info(device)[0]
    return free


def empty_cache(device: torch.device) -> None:
    """Give memory of tensors that are gone back to the device, for other pipelines and processes."""
    if device.type in ("cuda", "mps", "xpu"):
        gc.collect()  # pipelines hold themselves
        getattr(_torch(), device.type).empty_cache()


def _available(kind: str) -> bool:
    torch = _torch()
    module = torch.backends.mps if kind == "mps" else getattr(torch, kind, None)
    return module is not None and bool(module.is_available())


def _torch() -> Any:
    try:
        import torch
    except ImportError:
        raise MissingExtraError("torch", "torch") from None
    return torch

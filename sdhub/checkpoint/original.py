"""The models of a single file in the original layout, by diffusers' own renaming.

diffusers' `from_single_file` fills what it does not find with random numbers, and passes over what it does not
know. Here the renaming is traced first: each tensor of the file must arrive in the model, each of the model's come
from the file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdhub.checkpoint import scales
from sdhub.checkpoint.accounting import is_weight, plain_names, unknown
from sdhub.checkpoint.checkpoint import Checkpoint
from sdhub.checkpoint.headers import Header, read_header
from sdhub.checkpoint.said import MEAN, PLAYGROUND_DATA, SIGMA_MAX, SIGMA_MIN, STD
from sdhub.checkpoint.single_file import CLIP_L, CLIP_L_XL, LAYOUTS
from sdhub.core.documents import shown
from sdhub.core.errors import SourceError, UnsupportedError

Rename = Callable[[dict[str, Any]], dict[str, Any]]


def components(checkpoint: Checkpoint, path: Path, configs: Path, dtype: str) -> dict[str, Any]:
    """The models that the file at `path` holds, on the CPU in `dtype`, in evaluation mode.

    `configs` is a vetted folder of diffusers configs. Raises SourceError where tensors are missing or of other
    shapes, UnsupportedError that names the first tensor which no model takes.
    """
    import torch
    from safetensors import safe_open

    header, where = read_header(path), shown(path.name)
    names = plain_names({name: name for name in header.tensors}, where)
    made = {}
    with safe_open(str(path), framework="pt") as file:
        for part, prefix in LAYOUTS[checkpoint.family.name].prefixes.items():
            component = checkpoint.component(part)
            if component is None:
                raise unknown(next(name for name in names if name.startswith(prefix)), where)
            model = _empty(component.library, component.class_name, configs / part)
            own = [name for name in names if name.startswith(prefix) and is_weight(name)]
            rename = _renaming(model, prefix)
            _trace(model, rename, own, header, names, f"{part} of {where}")
            tensors = rename({name: scales.scaled(file, name, names) for name in own})
            kind = getattr(torch, dtype)
            own_memory = {"copy": True, "memory_format": torch.contiguous_format}
            model.load_state_dict({key: each.to(kind, **own_memory) for key, each in tensors.items()}, assign=True)
            made[part] = model.to(kind).eval()
        if checkpoint.said.edm == "playground":
            _set_statistics(made["vae"], file, where)
    return made


def noise_levels(checkpoint: Checkpoint, path: Path) -> dict[str, float]:
    """The scheduler's settings that stand as numbers in tensors of the file. Raises SourceError."""
    from safetensors import safe_open

    if checkpoint.said.edm != "cosxl":
        return {}
    with safe_open(str(path), framework="pt") as file:
        known = {"sigma_max": SIGMA_MAX, "sigma_min": SIGMA_MIN}
        there = {key: name for key, name in known.items() if name in set(file.keys())}
        found = {key: _numbers(file, name, 1, path.name)[0] for key, name in there.items()}
    if not 0 < found.get("sigma_min", 0.002) < found["sigma_max"] <= 1e6:
        raise SourceError(
            f"{shown(path.name)} has the noise levels {found}, which cannot be", hint="get the file again"
        )
    return found


@dataclass(frozen=True)
class _Name:
    """Stands for a tensor while the renaming is traced: what is cut from it is still that tensor."""

    name: str
    shape: tuple[int, ...]

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def T(self) -> _Name:
        return self

    def __getitem__(self, _: Any) -> _Name:
        return self

    def itself(self) -> _Name:
        return self

    contiguous = clone = detach = itself


def _trace(
    model: Any, rename: Rename, own: list[str], header: Header, names: Mapping[str, str], where: str
) -> None:
    """Hold the names in the file against those of the model, before anything is read."""
    from diffusers.loaders.single_file_utils import SD_2_TEXT_ENCODER_KEYS_TO_IGNORE

    arriving = rename({name: _Name(name, header.tensors[names[name]].shape) for name in own})
    wanted = model.state_dict()
    missing = next((key for key in wanted if key not in arriving), None)
    if missing is not None:
        raise SourceError(
            f"the weights of {where} are incomplete: {shown(missing, 120)} is missing",
            hint="get the file again, or look whether its config fits",
        )
    taken = {each.name for key, each in arriving.items() if key in wanted}
    left = next((name for name in own if name not in taken | set(SD_2_TEXT_ENCODER_KEYS_TO_IGNORE)), None)
    if left is not None:
        raise unknown(left, where)


def _empty(library: str, class_name: str, folder: Path) -> Any:
    """A model of its config alone, its parameters without memory."""
    import diffusers
    import transformers
    from accelerate import init_empty_weights

    kind = getattr(diffusers if library == "diffusers" else transformers, class_name)
    with init_empty_weights():
        if library == "diffusers":
            return kind.from_config(kind.load_config(str(folder), local_files_only=True))
        return kind(kind.config_class.from_pretrained(str(folder), local_files_only=True))


def _renaming(model: Any, prefix: str) -> Rename:
    from diffusers.loaders import single_file_utils as utils

    kind = type(model).__name__
    if kind == "UNet2DConditionModel":
        return lambda tensors: utils.convert_ldm_unet_checkpoint(tensors, dict(model.config))
    if kind == "AutoencoderKL":
        return lambda tensors: utils.convert_ldm_vae_checkpoint(tensors, dict(model.config))
    if not kind.startswith("CLIPText"):
        raise UnsupportedError(
            f"the config names a {kind}, which is not what single files hold", hint="give another config"
        )
    wrapped = any(key.startswith("text_model.") for key in model.state_dict())

    def clip(tensors: dict[str, Any]) -> dict[str, Any]:
        if prefix in (CLIP_L, CLIP_L_XL):
            found = {key.removeprefix(prefix): value for key, value in tensors.items()}
        else:
            found = utils.convert_open_clip_checkpoint(model, tensors, prefix=prefix)
        return found if wrapped else {key.removeprefix("text_model."): value for key, value in found.items()}

    return clip


def _set_statistics(vae: Any, file: Any, where: str) -> None:
    """The mean and deviation of latents, by channel, which diffusers' SDXL pipelines apply."""
    channels = vae.config.latent_channels
    vae.register_to_config(
        latents_mean=_numbers(file, MEAN, channels, where),
        latents_std=_numbers(file, STD, channels, where),
        scaling_factor=PLAYGROUND_DATA,
    )


def _numbers(file: Any, name: str, count: int, where: str) -> list[float]:
    values = [float(each) for each in file.get_tensor(name).float().flatten().tolist()]
    if len(values) != count or not all(abs(each) < 1e6 for each in values):
        raise SourceError(
            f"{shown(where)} has the marker {name} with other than {count} finite numbers",
            hint="get the file again",
        )
    return values

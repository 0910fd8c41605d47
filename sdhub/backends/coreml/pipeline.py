"""A diffusers pipeline whose models are Core ML packages: diffusers' scheduler, tokenizer and loop around them.

The models look to the pipeline like the modules they were made from: the same calls, the same outputs. Shapes are
those of the packages; a batch that is smaller than a package's is padded, a larger one goes through in parts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeAlias

import torch
from diffusers.configuration_utils import FrozenDict
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from torch import Tensor, nn

from sdhub.checkpoint.families import PIPELINES
from sdhub.checkpoint.known import SCHEDULERS, TOKENIZERS
from sdhub.core.errors import BuildError

CARRIED = ("scheduler", "tokenizer", "tokenizer_2")
SETTINGS = ("requires_aesthetics_score", "force_zeros_for_empty_prompt")
NETWORKS = {
    "unet",
    "vae",
    "text_encoder",
    "text_encoder_2",
    "safety_checker",
    "feature_extractor",
    "image_encoder",
}

Run: TypeAlias = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]


class Model(nn.Module):
    """One package: its inputs' shapes, and `run` from tensors by name to tensors by name."""

    def __init__(
        self, name: str, config: Mapping[str, Any], shapes: Mapping[str, Sequence[int]], run: Run
    ) -> None:
        super().__init__()
        self.name = name
        self.config = FrozenDict(config)
        self.shapes = {each: tuple(shape) for each, shape in shapes.items()}
        self._run = run

    @property
    def dtype(self) -> torch.dtype:
        """What the pipeline computes in between models."""
        return torch.float32

    @property
    def device(self) -> torch.device:
        """Tensors come and go on the CPU."""
        return torch.device("cpu")

    def predict(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Outputs in float32 for `inputs` of any batch. Raises BuildError for another shape."""
        known = {name: value for name, value in inputs.items() if name in self.shapes}
        first = next(iter(known))
        count, size = known[first].shape[0], self.shapes[first][0]
        parts = [self._part(known, start, size) for start in range(0, count, size)]
        return {name: torch.cat([part[name] for part in parts])[:count] for name in parts[0]}

    def _part(self, inputs: Mapping[str, Tensor], start: int, size: int) -> dict[str, Tensor]:
        given = {name: self._fitted(name, value[start : start + size], size) for name, value in inputs.items()}
        return {name: value.float() for name, value in self._run(given).items()}

    def _fitted(self, name: str, value: Tensor, size: int) -> Tensor:
        if value.shape[0] < size:
            value = torch.cat([value, value[-1:].expand(size - value.shape[0], *value.shape[1:])])
        if tuple(value.shape) != self.shapes[name]:
            raise BuildError(
                f"{self.name} takes {name} of shape {self.shapes[name]}, not {tuple(value.shape)}",
                hint="a package has one size: draw in that, or build another with --size",
            )
        return value


class TextEncoder(Model):
    """A CLIPTextModel: its first output are the states (B, 77, C).

    `hidden_states` is as long as the pipelines look: the last but one is what Stable Diffusion XL takes.
    """

    projects = False

    def forward(self, input_ids: Tensor, *_: Any, **__: Any) -> Any:
        """Token ids (B, 77), padded by the tokenizer."""
        found = self.predict({"input_ids": input_ids.float()})
        hidden = found["hidden_embeds"] if "hidden_embeds" in found else found["last_hidden_state"]
        return _Output(hidden=hidden, pooled=found["pooled_outputs"], projected=self.projects)


class ProjectedTextEncoder(TextEncoder):
    """A CLIPTextModelWithProjection: its first output is the end token's projected state (B, P).

    By its two dimensions Stable Diffusion XL's pipelines know the encoder whose pooled state they take.
    """

    projects = True


TEXT_ENCODERS = {"CLIPTextModel": TextEncoder, "CLIPTextModelWithProjection": ProjectedTextEncoder}


class _Output:
    """What transformers' CLIP text models return, as far as diffusers reads it."""

    def __init__(self, *, hidden: Tensor, pooled: Tensor, projected: bool) -> None:
        self.hidden_states = (hidden, hidden)
        self.pooler_output = pooled
        self._first = pooled if projected else hidden

    def __getitem__(self, index: int) -> Tensor:
        return (self._first, self.pooler_output)[index]


class Denoiser(Model):
    """A UNet2DConditionModel."""

    def __init__(
        self, name: str, config: Mapping[str, Any], shapes: Mapping[str, Sequence[int]], run: Run
    ) -> None:
        super().__init__(name, config, shapes, run)
        # Pipelines of Stable Diffusion XL look here for the width of the added embedding.
        width = config.get("projection_class_embeddings_input_dim")
        self.add_embedding = SimpleNamespace(linear_1=SimpleNamespace(in_features=width))

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        encoder_hidden_states: Tensor,
        timestep_cond: Tensor | None = None,
        added_cond_kwargs: Mapping[str, Tensor] | None = None,
        return_dict: bool = True,
        **_: Any,
    ) -> Any:
        """Latents (B, C, h, w), states (B, 77, D)."""
        count = sample.shape[0]
        inputs = {
            "sample": sample,
            "timestep": torch.as_tensor(timestep, dtype=torch.float32).reshape(-1).expand(count),
            "encoder_hidden_states": encoder_hidden_states.transpose(1, 2)[:, :, None],
            **(added_cond_kwargs or {}),
        }
        if timestep_cond is not None:
            inputs["timestep_cond"] = timestep_cond
        noise = self.predict(inputs)["noise_pred"]
        return UNet2DConditionOutput(sample=noise) if return_dict else (noise,)


class Autoencoder(Model):
    """The decoder of an AutoencoderKL, and its encoder where there is one."""

    def __init__(
        self,
        name: str,
        config: Mapping[str, Any],
        shapes: Mapping[str, Sequence[int]],
        run: Run,
        encoder: Model | None = None,
    ) -> None:
        super().__init__(name, config, shapes, run)
        self.encoder = encoder

    def encode(self, x: Tensor, return_dict: bool = True) -> Any:
        """Pictures (B, 3, H, W) in [-1, 1] to a distribution of latents (B, C, h, w). Raises BuildError."""
        if self.encoder is None:
            raise BuildError("the variant has no package of the VAE's encoder", hint="build it again")
        found = DiagonalGaussianDistribution(self.encoder.predict({"x": x})["latent"])
        return AutoencoderKLOutput(latent_dist=found) if return_dict else (found,)

    def decode(self, z: Tensor, return_dict: bool = True, **_: Any) -> Any:
        """Latents (B, C, h, w) to pictures (B, 3, H, W) in [-1, 1]."""
        image = self.predict({"z": z})["image"]
        return DecoderOutput(sample=image) if return_dict else (image,)


def assemble(folder: Path, models: Mapping[str, Model]) -> Any:
    """The pipeline that `folder`'s model_index.json names, with `models` in the places of its networks.

    Raises BuildError for a class that is not known.
    """
    import diffusers

    index = document(folder / "model_index.json")
    kind = getattr(diffusers, _known(index.get("_class_name"), PIPELINES))
    expected, optional = kind._get_signature_keys(kind)
    parts: dict[str, Any] = dict.fromkeys(NETWORKS & set(expected))
    parts |= {name: _loaded(folder, name, index) for name in CARRIED if name in expected and name in index}
    parts |= {name: index[name] for name in SETTINGS if name in optional and isinstance(index.get(name), bool)}
    parts |= {"requires_safety_checker": False} if "requires_safety_checker" in optional else {}
    return kind(**{**parts, **models})


def text_encoder_class(index: Mapping[str, Any], name: str) -> type[TextEncoder]:
    """What stands for the text encoder that `index`, a model_index.json, calls `name`. Raises BuildError."""
    return TEXT_ENCODERS[_known(_entry(index, name)[1], TEXT_ENCODERS)]


def document(path: Path) -> dict[str, Any]:
    """A JSON object. Raises BuildError."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BuildError(f"{path} cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise BuildError(f"{path} is no JSON object")
    return found


def _loaded(folder: Path, name: str, index: Mapping[str, Any]) -> Any:
    import diffusers
    import transformers

    entry = _entry(index, name)
    if entry == [None, None]:  # a refiner has no first tokenizer
        return None
    classes = SCHEDULERS if name == "scheduler" else TOKENIZERS
    kind = getattr(diffusers if name == "scheduler" else transformers, _known(entry[1], classes))
    return kind.from_pretrained(folder / name, local_files_only=True)


def _entry(index: Mapping[str, Any], name: str) -> list[Any]:
    """Library and class."""
    entry = index.get(name)
    if not isinstance(entry, list) or len(entry) != 2:
        raise BuildError(f"model_index.json has no class for {name}")
    return entry


def _known(name: Any, classes: Collection[str]) -> str:
    if not isinstance(name, str) or name not in classes:
        raise BuildError(f"model_index.json names {str(name)[:60]!r}, which sdhub does not know")
    return name

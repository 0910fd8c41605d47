"""What Apple's apps expect of each model: names, shapes and types, as small records.

The contract is that of apple/ml-stable-diffusion, whose Swift package and the apps built on it find models and
arrays by these names. A record says how a component of a checkpoint becomes a model; `specs_of` says which ones a
checkpoint has. Nothing heavy is imported before `wrap` is called.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from sdhub.checkpoint.sampling import EMBEDDED_GUIDANCE
from sdhub.core.errors import BuildError, UnsupportedError, UsageError
from sdhub.core.nearly import meant

Scalar = Literal["float16", "float32"]
TEXT = 77  # tokens
STEP = 64  # pixels that sides are multiples of
ATTENTION = ("original", "split_einsum", "split_einsum_v2")
SCALING, SCALING_XL = 0.18215, 0.13025  # of latents, as Apple's apps have them; not asked of any model
TINY = "AutoencoderTiny"


@dataclass(frozen=True)
class Shape:
    """The size of the pictures in pixels, how many go through the denoiser at once (2 with guidance), and how many
    pixels a side of a latent stands for: the VAE's 2^(blocks - 1).
    """

    width: int = 512
    height: int = 512
    batch: int = 2
    scale: int = 8

    def __post_init__(self) -> None:
        """Raises UsageError."""
        if self.width % STEP or self.height % STEP or min(self.width, self.height) < STEP:
            raise UsageError(f"{self.width} x {self.height} pixels", hint=f"multiples of {STEP}")
        if self.batch < 1 or self.scale < 1 or STEP % self.scale:
            raise UsageError(f"a batch of {self.batch}, {self.scale} pixels a latent")

    @property
    def latent(self) -> tuple[int, int]:
        """Height and width of latents."""
        return self.height // self.scale, self.width // self.scale


@dataclass(frozen=True)
class WrapOptions:
    """How a module is wrapped: the attention implementation, and the guidance scale that is embedded in a latent
    consistency model.
    """

    attention: str = "split_einsum"
    guidance: float = EMBEDDED_GUIDANCE

    def __post_init__(self) -> None:
        """Raises UsageError."""
        if self.attention not in ATTENTION:
            raise UsageError(
                f"no attention is called {self.attention[:40]!r}", hint=meant(self.attention, ATTENTION)
            )


@dataclass(frozen=True)
class Feature:
    """An input or output: its shape, type, and what it is. An output's shape follows from the program."""

    shape: tuple[int, ...]
    scalar: Scalar
    text: str


Features = Mapping[str, Feature]


@dataclass(frozen=True)
class ComponentSpec:
    """How a component becomes a model.

    `name`: of the package. `part`: the component of the checkpoint with its weights, whose parameters keep their
    names. `bundle`: what apps call the compiled model. `inputs` and `outputs`: of a loaded module, in order.
    `wrap`: a module of the contract's inputs and outputs around it. `scalar`: what is computed in. `compressible`:
    whether recipes apply to its weights. `attention`: whether there are implementations to choose from. `sized`:
    whether the size of the pictures matters.
    """

    name: str
    part: str
    bundle: str
    wrap: Callable[[Any, WrapOptions], Any]
    inputs: Callable[[Any, Shape], Features]
    outputs: Callable[[Any], Mapping[str, str]]
    scalar: Scalar = "float16"
    compressible: bool = True
    attention: bool = False
    sized: bool = True
    description: str = field(default="", compare=False)


def specs_of(
    family: str, parts: Collection[str], *, controlled: bool = False, half_vae: bool | None = None
) -> tuple[ComponentSpec, ...]:
    """The models of a checkpoint of `family` (sd1, sd2, sdxl, sdxl-refiner) that has the components `parts`.

    `controlled`: with a UNet that takes a ControlNet's residuals besides the usual one. `half_vae`: whether the
    VAE can compute in 16 bits; None: as the family usually can (all but Stable Diffusion XL's; see `halves`).
    Raises UnsupportedError for another family.
    """
    if family not in ("sd1", "sd2", "sdxl", "sdxl-refiner"):
        raise UnsupportedError(f"{family} has no Core ML models yet", hint="Stable Diffusion 1.x, 2.x and XL")
    wide = family.startswith("sdxl")
    half = not wide if half_vae is None else half_vae
    ids = time_ids(family)
    found = [
        text_encoder("text_encoder", "TextEncoder", wide=wide),
        text_encoder("text_encoder_2", "TextEncoder2", wide=wide),
        unet(ids),
        *([unet(ids, controlled=True)] if controlled else []),
        vae_decoder(half, scaling(family)),
        vae_encoder(half, scaling(family)),
        safety_checker(),
    ]
    return tuple(spec for spec in found if spec.part in parts)


def time_ids(family: str) -> int:
    """How many numbers `time_ids` has; 0 where a denoiser takes none."""
    return {"sdxl": 6, "sdxl-refiner": 5}.get(family, 0)


def scaling(family: str) -> float:
    """What Apple's apps multiply a VAE's latents by before the denoiser has them."""
    return SCALING_XL if family.startswith("sdxl") else SCALING


def halves(vae: Any) -> bool:
    """Whether a loaded autoencoder can compute in 16 bits: its config asks for nothing wider."""
    return not vae.config.get("force_upcast", True)


def is_tiny(vae: Any) -> bool:
    """Whether a loaded autoencoder is the tiny one."""
    return type(vae).__name__ == TINY


def text_encoder(name: str, bundle: str, *, wide: bool) -> ComponentSpec:
    """A CLIP text encoder; `wide`: of Stable Diffusion XL."""
    states = {
        "hidden_embeds": "Hidden states of the last layer but one",
        "pooled_outputs": "The end token's state, projected where the encoder has a projection",
    }
    usual = {
        "last_hidden_state": "The token embeddings as encoded by the Transformer model",
        "pooled_outputs": "The version of the `last_hidden_state` output after pooling",
    }
    return ComponentSpec(
        name,
        name,
        bundle,
        wrap=_wrap_text_xl if wide else _wrap_text,
        inputs=_text_inputs,
        outputs=lambda _: states if wide else usual,
        sized=False,
        description="Text encoder of a Stable Diffusion model",
    )


def unet(ids: int = 0, *, refiner: bool = False, controlled: bool = False) -> ComponentSpec:
    """The denoiser; `ids`: numbers in `time_ids` (Stable Diffusion XL), else 0.

    `refiner`: named to stand beside a base model's; a refiner by itself is named as any other denoiser.
    """
    name, bundle = ("refiner", "UnetRefiner") if refiner else ("unet", "Unet")
    name, bundle = ("control-unet", "ControlledUnet") if controlled else (name, bundle)

    def wrap(module: Any, options: WrapOptions) -> Any:
        from sdhub.backends.coreml.unet import UNet

        return UNet(module, attention=options.attention, guidance=options.guidance, controlled=controlled)

    def inputs(module: Any, shape: Shape) -> Features:
        found = _denoiser_inputs(module, shape, ids)
        if controlled:
            found |= {
                f"additional_residual_{index}": Feature(size, "float16", "One of the outputs of a ControlNet")
                for index, size in enumerate(residuals(module, shape))
            }
        return found

    return ComponentSpec(
        name,
        "unet",
        bundle,
        wrap=wrap,
        inputs=inputs,
        outputs=lambda _: {"noise_pred": "What the model predicts of the noise in `sample`"},
        attention=True,
        description="Denoiser of a Stable Diffusion model",
    )


def controlnet(ids: int = 0) -> ComponentSpec:
    """A ControlNet; its package is named by itself."""

    def wrap(module: Any, options: WrapOptions) -> Any:
        from sdhub.backends.coreml.unet import ControlNet

        return ControlNet(module, attention=options.attention)

    def inputs(module: Any, shape: Shape) -> Features:
        picture = (shape.batch, 3, shape.height, shape.width)
        text = "The picture to follow, in [0, 1]"
        return {
            **_denoiser_inputs(module, shape, ids),
            "controlnet_cond": Feature(picture, "float16", text),
        }

    def outputs(module: Any) -> Mapping[str, str]:
        count = len(residuals(module, Shape()))
        return {f"additional_residual_{index}": "To be added inside the UNet" for index in range(count)}

    return ComponentSpec(
        "controlnet",
        "controlnet",
        "controlnet",
        wrap=wrap,
        inputs=inputs,
        outputs=outputs,
        attention=True,
        description="ControlNet of a Stable Diffusion model",
    )


def vae_decoder(half: bool = True, scaled: float = SCALING) -> ComponentSpec:
    """The half of the VAE that makes pictures; `half`: computes in 16 bits, else input and weights have 32.

    `scaled`: the apps' scaling factor, for an AutoencoderTiny, which has none of its own.
    """

    def wrap(module: Any, _: WrapOptions) -> Any:
        from sdhub.backends.coreml.vae import Decoder, TinyDecoder

        return TinyDecoder(module, scaled) if is_tiny(module) else Decoder(module)

    def inputs(module: Any, shape: Shape) -> Features:
        size = (1, int(module.config.latent_channels), *shape.latent)
        return {"z": Feature(size, scalar, "The denoised latents, divided by the scaling factor")}

    scalar: Scalar = "float16" if half else "float32"
    return ComponentSpec(
        "vae_decoder",
        "vae",
        "VAEDecoder",
        wrap=wrap,
        inputs=inputs,
        outputs=lambda _: {"image": "Generated image normalized to range [-1, 1]"},
        scalar=scalar,
        description="Decoder of a Stable Diffusion model",
    )


def vae_encoder(half: bool = True, scaled: float = SCALING) -> ComponentSpec:
    """The half of the VAE that reads pictures; `half` and `scaled` as in `vae_decoder`."""

    def wrap(module: Any, _: WrapOptions) -> Any:
        from sdhub.backends.coreml.vae import Encoder, TinyEncoder

        return TinyEncoder(module, scaled) if is_tiny(module) else Encoder(module)

    def inputs(_: Any, shape: Shape) -> Features:
        return {"x": Feature((1, 3, shape.height, shape.width), scalar, "A picture in [-1, 1]")}

    scalar: Scalar = "float16" if half else "float32"
    return ComponentSpec(
        "vae_encoder",
        "vae",
        "VAEEncoder",
        wrap=wrap,
        inputs=inputs,
        outputs=lambda _: {"latent": "Mean and logarithm of the variance of the picture's latents"},
        scalar=scalar,
        description="Encoder of a Stable Diffusion model",
    )


def safety_checker() -> ComponentSpec:
    """The safety checker of Stable Diffusion 1.x."""

    def wrap(module: Any, _: WrapOptions) -> Any:
        from sdhub.backends.coreml.clip import SafetyChecker

        return SafetyChecker(module)

    def inputs(module: Any, shape: Shape) -> Features:
        side = int(module.config.vision_config.image_size)
        return {
            "clip_input": Feature((1, 3, side, side), "float16", "The normalized picture, resized"),
            "images": Feature((1, shape.height, shape.width, 3), "float16", "The picture as it was decoded"),
            "adjustment": Feature((1,), "float16", "Added to the scores: more finds more"),
        }

    outputs = {
        "filtered_images": "`images`, black where something was found",
        "has_nsfw_concepts": "Whether something was found",
        "concept_scores": "Scores before they are compared with zero",
    }
    return ComponentSpec(
        "safety_checker",
        "safety_checker",
        "SafetyChecker",
        wrap=wrap,
        inputs=inputs,
        outputs=lambda _: outputs,
        compressible=False,
        description="Safety checker of a Stable Diffusion model",
    )


def package_name(identity: str, spec: ComponentSpec, shape: Shape | None = None) -> str:
    """The folder name of a package, which apple/ml-stable-diffusion's Python pipeline looks for.

    `identity`: the checkpoint's, for a ControlNet its own. `shape` stands in the name of a size that is built
    besides the usual one, `…_unet_512x768.mlpackage`; such models belong in a bundle of their own.
    """
    size = f"_{shape.width}x{shape.height}" if shape is not None and spec.sized else ""
    name = identity.replace("/", "_")
    if spec.name == "controlnet":
        return f"ControlNet_{name}{size}.mlpackage"
    return f"Stable_Diffusion_version_{name}_{spec.name}{size}.mlpackage"


def bundle_of(stem: str) -> tuple[str, str]:
    """Where apps look for the compiled model of a package's name, without its ending, and the size in that name.

    `Stable_Diffusion_version_x_unet_512x768_chunk1` is `UnetChunk1` of 512x768; a package of the usual size has
    "". A ControlNet lies in `controlnet/`, in the spelling of apple/ml-stable-diffusion. Raises BuildError.
    """
    found = _PACKAGE.fullmatch(stem)
    if not found:
        raise BuildError(f"{stem[:100]} is not named as one of the models of Apple's layout")
    chunk, size = (found["chunk"] or "").title(), found["size"] or ""
    if found["net"]:
        return "controlnet/" + "".join(word.title() for word in re.split("[_-]", found["net"])), size
    return f"{_BUNDLES[found['name']]}{chunk}", size


_BUNDLES = {
    "text_encoder": "TextEncoder",
    "text_encoder_2": "TextEncoder2",
    "unet": "Unet",
    "refiner": "UnetRefiner",
    "control-unet": "ControlledUnet",
    "vae_decoder": "VAEDecoder",
    "vae_encoder": "VAEEncoder",
    "safety_checker": "SafetyChecker",
}
_PACKAGE = re.compile(
    rf"(?:Stable_Diffusion_version_.+_(?P<name>{'|'.join(_BUNDLES)})|ControlNet_(?P<net>.+?))"
    r"(?:_(?P<size>\d+x\d+))?(?:_(?P<chunk>chunk[12]))?"
)


def residuals(module: Any, shape: Shape) -> list[tuple[int, ...]]:
    """Shapes of what a ControlNet gives and a UNet of the same architecture takes, the middle's last."""
    channels = module.config.block_out_channels
    height, width = shape.latent
    found = [(shape.batch, int(channels[0]), height, width)]
    for block, count in zip(module.down_blocks, channels, strict=True):
        found += [(shape.batch, int(count), height, width)] * len(block.resnets)
        for _ in block.downsamplers or ():
            height, width = height // 2, width // 2
            found.append((shape.batch, int(count), height, width))
    return [*found, (shape.batch, int(channels[-1]), height, width)]


def _denoiser_inputs(module: Any, shape: Shape, ids: int) -> dict[str, Feature]:
    config, batch = module.config, shape.batch
    width = config.cross_attention_dim
    if not isinstance(width, int):
        if len(set(width)) > 1:
            raise UnsupportedError("a denoiser whose blocks attend to states of different widths")
        width = width[0]
    found = {
        "sample": Feature((batch, config.in_channels, *shape.latent), "float16", "The latents being denoised"),
        "timestep": Feature((batch,), "float16", "The scheduler's timestep"),
        "encoder_hidden_states": Feature((batch, width, 1, TEXT), "float16", "The text encoder's states"),
    }
    if ids:
        added = config.projection_class_embeddings_input_dim - ids * config.addition_time_embed_dim
        found["time_ids"] = Feature((batch, ids), "float16", "Sizes and crops, or an aesthetic score")
        found["text_embeds"] = Feature((batch, added), "float16", "The pooled state of the second text encoder")
    return found


def _text_inputs(module: Any, _: Shape) -> Features:
    count = int(module.config.max_position_embeddings)
    return {"input_ids": Feature((1, count), "float32", "The token ids that represent the input text")}


def _wrap_text(module: Any, _: WrapOptions) -> Any:
    from sdhub.backends.coreml.clip import TextEncoder

    return TextEncoder(module)


def _wrap_text_xl(module: Any, _: WrapOptions) -> Any:
    from sdhub.backends.coreml.clip import TextEncoderXL

    return TextEncoderXL(module)

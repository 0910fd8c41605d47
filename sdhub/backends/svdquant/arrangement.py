"""Where the layers of a denoiser stand in Nunchaku's own single files: fused, cut and under other names.

Two denoisers: SDXL's UNet and FLUX's transformer. Source: Nunchaku (`models/unets/unet_sdxl.py`,
`models/transformers/transformer_flux_v2.py`) and DeepCompressor (`backend/nunchaku/convert.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sdhub.core.errors import BuildError

SDXL, FLUX = "NunchakuSDXLUNet2DConditionModel", "NunchakuFluxTransformer2dModel"
QKV = ("to_q", "to_k", "to_v")
ADDED = ("add_q_proj", "add_k_proj", "add_v_proj")


@dataclass(frozen=True)
class Target:
    """A 4-bit layer of the file, `name`: linear layers `sources` one above the other, the inputs `columns` of them
    (start, stop) where it is not all.

    `modulations`: how many vectors a W4A16 layer gives, which the file has interleaved; 0 for W4A4 layers.
    `shifted`: its inputs come from GELU. `bias`: whether it has the sources' bias; without one it is 0 in FLUX.
    """

    name: str
    sources: tuple[str, ...]
    columns: tuple[int, int] | None = None
    modulations: int = 0
    shifted: bool = False
    bias: bool = True


@dataclass(frozen=True)
class Arrangement:
    """A file's `model_class`, its 4-bit layers, and what else is called otherwise: a tensor's name to its own."""

    model_class: str
    targets: tuple[Target, ...]
    renamed: Mapping[str, str]


def arrangement_of(module: Any) -> Arrangement:
    """The arrangement of a denoiser. Raises BuildError for one of another kind."""
    kind = type(module).__name__
    if kind == "UNet2DConditionModel" and module.config.addition_embed_type == "text_time":
        return Arrangement(SDXL, tuple(_sdxl(module)), {})
    if kind == "FluxTransformer2DModel":
        return Arrangement(FLUX, tuple(_flux(module)), dict(_flux_norms(module)))
    raise BuildError(f"Nunchaku's files have no {kind} like this", hint="SDXL and FLUX.1 are what they know")


def _sdxl(module: Any) -> Iterator[Target]:
    for name, part in module.named_modules():
        if type(part).__name__ == "BasicTransformerBlock":
            yield Target(f"{name}.attn1.to_qkv", tuple(f"{name}.attn1.{each}" for each in QKV))
            for own in ("attn1.to_out.0", "attn2.to_q", "attn2.to_out.0", "ff.net.0.proj", "ff.net.2"):
                yield Target(f"{name}.{own}", (f"{name}.{own}",))


def _flux(module: Any) -> Iterator[Target]:
    for number, _ in enumerate(module.transformer_blocks):
        name = f"transformer_blocks.{number}"
        for norm in ("norm1", "norm1_context"):
            yield Target(f"{name}.{norm}.linear", (f"{name}.{norm}.linear",), modulations=6)
        yield Target(f"{name}.qkv_proj", tuple(f"{name}.attn.{each}" for each in QKV))
        yield Target(f"{name}.qkv_proj_context", tuple(f"{name}.attn.{each}" for each in ADDED))
        yield Target(f"{name}.out_proj", (f"{name}.attn.to_out.0",))
        yield Target(f"{name}.out_proj_context", (f"{name}.attn.to_add_out",))
        for own, feed in (("mlp", "ff"), ("mlp_context", "ff_context")):
            yield Target(f"{name}.{own}_fc1", (f"{name}.{feed}.net.0.proj",))
            yield Target(f"{name}.{own}_fc2", (f"{name}.{feed}.net.2",), shifted=True)
    for number, block in enumerate(module.single_transformer_blocks):
        name = f"single_transformer_blocks.{number}"
        width, whole = block.attn.to_q.out_features, block.proj_out.in_features
        yield Target(f"{name}.norm.linear", (f"{name}.norm.linear",), modulations=3)
        yield Target(f"{name}.qkv_proj", tuple(f"{name}.attn.{each}" for each in QKV))
        yield Target(f"{name}.out_proj", (f"{name}.proj_out",), columns=(0, width), bias=False)
        yield Target(f"{name}.mlp_fc1", (f"{name}.proj_mlp",))
        yield Target(f"{name}.mlp_fc2", (f"{name}.proj_out",), columns=(width, whole), shifted=True)


def _flux_norms(module: Any) -> Iterator[tuple[str, str]]:
    for name, _ in module.named_parameters():
        head, found, own = name.partition(".attn.norm_")
        if found:
            yield name, f"{head}.norm_{own}"

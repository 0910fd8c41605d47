"""A LoRA's file read from its header: which layers it names, with which tensors, at which scale.

Three spellings are in use: kohya's (`lora_unet_…_to_q.lora_down.weight`, `.lora_up.weight`, `.alpha`), PEFT's
(`unet.….to_q.lora_A.weight`, `.lora_B.weight`, alpha in a document) and the old one of diffusers
(`unet.….to_q_lora.down.weight`). LyCORIS adds `.w_norm`, `.b_norm`, `.diff` and `.diff_b`: what is added to a
weight or bias as it stands. Every tensor is one of these, or the file is refused by its name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields

from sdhub.checkpoint.adapter import HINT
from sdhub.checkpoint.headers import Header, Tensor
from sdhub.core.documents import shown
from sdhub.core.errors import SourceError, UnsupportedError

ROLES = tuple(
    (role, re.compile(rf"(?P<layer>.+?){ending}"))
    for role, ending in (
        ("down", r"(\.lora_down|\.lora_A(\.default)?|[._]lora\.down|\.lora_linear_layer\.down)\.weight"),
        ("up", r"(\.lora_up|\.lora_B(\.default)?|[._]lora\.up|\.lora_linear_layer\.up)\.weight"),
        ("up_bias", r"(\.lora_up|\.lora_B(\.default)?)\.bias"),
        ("alpha", r"([._]lora|\.lora_linear_layer)?\.alpha"),
        ("weight", r"\.(diff|w_norm)"),
        ("bias", r"\.(diff_b|b_norm)"),
    )
)
OTHERS = tuple(
    (re.compile(pattern), what)
    for pattern, what in (
        (r"(.+)\.hada_\w+$", "of a LoHa"),
        (r"(.+)\.lokr_\w+$", "of a LoKr"),
        (r"(.+)\.(oft|boft)_\w+", "of an OFT"),
        (r"(.+)\.(a1|a2|b1|b2)(\.weight)?$", "of a GLoRA"),
        (r"(.+)\.lora_mid(\.weight)?$", "a Tucker decomposition (lora_mid)"),
        (r"(.+)\.(dora_scale|lora_magnitude_vector.*)$", "of a DoRA"),
        (r"(.+)\.(on_input|lora_embedding_[AB].*|set_weight|reshape_weight)$", "no plain LoRA"),
    )
)


@dataclass(frozen=True)
class Layer:
    """What a file says of one layer, by the names of tensors.

    W + scale · alpha / rank · up · down, its bias + scale · alpha / rank · up_bias; `weight` and `bias` are added
    to those of the layer. `rank` is 0 where there is no pair. `name` is the file's own.
    """

    name: str
    down: str | None = None
    up: str | None = None
    up_bias: str | None = None
    alpha: str | None = None
    weight: str | None = None
    bias: str | None = None
    rank: int = 0

    @property
    def tensors(self) -> Iterator[str]:
        """All tensors that the layer is made of."""
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name not in ("name", "rank") and value is not None:
                yield value


def read_layers(header: Header, where: str) -> tuple[Layer, ...]:
    """Every layer that a LoRA names. Raises UnsupportedError, SourceError that name the layer or tensor."""
    found: dict[str, dict[str, str]] = {}
    unknown = []
    for name, tensor in header.tensors.items():
        role, layer = _role(name, where)
        if role is None:
            unknown.append(name)
            continue
        own = found.setdefault(layer, {})
        if role in own:
            raise SourceError(f"{where} says {role} of {shown(layer, 120)} twice", hint="use another file")
        if not tensor.dtype.startswith(("float", "bfloat")) and role != "alpha":
            raise UnsupportedError(f"{where}: {shown(name, 120)} is of {tensor.dtype}", hint=HINT)
        own[role] = name
    if not any({"down", "up", "weight"} & set(own) for own in found.values()):
        raise UnsupportedError(f"{where} is no LoRA", hint="a checkpoint is named without --lora")
    if unknown:
        raise UnsupportedError(f"{where}: {shown(unknown[0], 120)} is no tensor of a plain LoRA", hint=HINT)
    return tuple(_layer(name, own, header.tensors, where) for name, own in sorted(found.items()))


def _role(name: str, where: str) -> tuple[str | None, str]:
    for pattern, what in OTHERS:
        if found := pattern.match(name):
            raise UnsupportedError(f"{where}: layer {shown(found[1], 120)} is {what}", hint=HINT)
    for role, pattern in ROLES:
        if found := pattern.fullmatch(name):
            return role, found["layer"]
    return None, name


def _layer(name: str, own: Mapping[str, str], tensors: Mapping[str, Tensor], where: str) -> Layer:
    label = f"{where}: layer {shown(name, 120)}"
    if ("down" in own) != ("up" in own):
        missing = "up" if "down" in own else "down"
        raise SourceError(f"{label} lacks its {missing} matrix", hint="get the file again")
    if not {"down", "weight", "bias"} & set(own) or ("up_bias" in own and "down" not in own):
        raise SourceError(
            f"{label} has {', '.join(sorted(own))} and nothing to go with it", hint="use another file"
        )
    if "alpha" in own and tensors[own["alpha"]].elements != 1:
        raise SourceError(f"{label}: its alpha is no single number", hint="use another file")
    rank = 0
    if "down" in own:
        down, up = tensors[own["down"]].shape, tensors[own["up"]].shape
        if len(down) < 2 or len(up) < 2 or down[0] != up[1] or not down[0]:
            raise SourceError(f"{label}: {down} and {up} do not go together", hint="get the file again")
        if math.prod(up[2:]) != 1:
            raise UnsupportedError(f"{label}: its up matrix is a convolution of {up[2:]}", hint=HINT)
        rank = down[0]
    return Layer(name=name, rank=rank, **own)

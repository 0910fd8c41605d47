"""Weights in 8-bit floats with a scale beside them, as ComfyUI saves them: weight = 8-bit number * scale.

Older files: `LAYER.scale_weight`, `LAYER.scale_input` and a marker `scaled_fp8`. Newer ones: `LAYER.weight_scale`,
`LAYER.input_scale` and `LAYER.comfy_quant`, JSON in bytes that names the format. Input scales are for products in
8 bits and change no weight.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sdhub.checkpoint.headers import Tensor
from sdhub.core.documents import parse_object, shown
from sdhub.core.errors import SourceError, UnsupportedError

if TYPE_CHECKING:
    import torch

EIGHT_BITS = ("float8_e4m3fn", "float8_e5m2")
PLAIN = ("float16", "bfloat16", "float32", "float64")
COUNTS = ("int32", "int64", "bool")
SCALES = ("scale_weight", "weight_scale")
INPUT_SCALES = ("scale_input", "input_scale")
FORMAT = "comfy_quant"
MARKER = re.compile(r"(^|\.)scaled_fp8$")
HELPER = re.compile(rf"(?P<layer>.+)\.(?P<kind>{'|'.join((*SCALES, *INPUT_SCALES, FORMAT))})")
MAX_FORMAT = 1024  # bytes
WAY_OUT = "use the checkpoint in 16 bits that it was made from"


def is_helper(name: str) -> bool:
    """Whether a tensor of this name is no weight, but says how weights are to be read."""
    return bool(HELPER.fullmatch(name) or MARKER.search(name))


def vet(tensors: Mapping[str, Tensor], where: str) -> None:
    """Raises UnsupportedError, naming the tensor, for weights that cannot be read rightly.

    Those are numbers of other types than 16 and 32 bits and the two 8-bit floats, and scales that fit no weight.
    """
    for name, tensor in tensors.items():
        match = HELPER.fullmatch(name)
        if MARKER.search(name):
            fits = tensor.elements <= 2
        elif match is None:
            counts = tensor.dtype in COUNTS and not name.endswith(("weight", "bias"))
            fits = counts or tensor.dtype in (*PLAIN, *EIGHT_BITS)
        else:
            fits = _fits(match["kind"], tensor, tensors.get(f"{match['layer']}.weight"))
        if not fits:
            raise UnsupportedError(
                f"{where}: {shown(name)} ({tensor.dtype}, {_shape(tensor)}) is quantized in a way that sdhub does "
                "not know",
                hint=WAY_OUT,
            )


def refuse(tensors: Mapping[str, Tensor], where: str) -> None:
    """Raises UnsupportedError for weights with scales, which libraries would read without them."""
    vet(tensors, where)
    found = next((name for name in tensors if is_helper(name)), None)
    if found is not None:
        raise UnsupportedError(f"{where} has scaled 8-bit weights ({shown(found)})", hint=WAY_OUT)


def _fits(kind: str, tensor: Tensor, weight: Tensor | None) -> bool:
    if weight is None:
        return False
    if kind == FORMAT:
        return tensor.dtype == "uint8" and tensor.elements <= MAX_FORMAT
    if kind in INPUT_SCALES:
        return tensor.dtype in PLAIN and tensor.elements == 1
    a_row = len(weight.shape) > 0 and tensor.shape[:1] == weight.shape[:1] and tensor.elements == weight.shape[0]
    return tensor.dtype in PLAIN and weight.dtype in EIGHT_BITS and (tensor.elements == 1 or a_row)


def _shape(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "one number"


def scaled(file: Any, name: str, names: Mapping[str, str]) -> torch.Tensor:
    """The tensor `name` of an open safetensors file, its scale applied; 8-bit floats are widened to float32.

    `names`: by what name each tensor stands in the file. Raises SourceError, UnsupportedError.
    """
    tensor: torch.Tensor = file.get_tensor(names[name])
    if str(tensor.dtype).removeprefix("torch.") not in EIGHT_BITS:
        return tensor
    layer, _, kind = name.rpartition(".")
    wide = tensor.float()
    if kind != "weight":
        return wide
    if f"{layer}.{FORMAT}" in names:
        _vet_format(file.get_tensor(names[f"{layer}.{FORMAT}"]), f"{layer}.{FORMAT}")
    for each in SCALES:
        if f"{layer}.{each}" in names:
            scale = file.get_tensor(names[f"{layer}.{each}"]).float()
            if not bool(scale.isfinite().all()):
                raise SourceError(f"{shown(f'{layer}.{each}')} is not finite", hint="get the file again")
            wide = wide * scale.reshape(-1, *[1] * (wide.ndim - 1))
    return wide


def _vet_format(tensor: torch.Tensor, name: str) -> None:
    said = parse_object(bytes(tensor.tolist()), shown(name))
    if said.get("format") not in EIGHT_BITS or set(said) - {"format", "full_precision_matrix_mult"}:
        raise UnsupportedError(
            f"{shown(name)} asks for the format {shown(said.get('format'), 30)}, which sdhub does not know",
            hint=WAY_OUT,
        )

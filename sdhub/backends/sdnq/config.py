"""SDNQ's `quantization_config`: what it says of a component, layer by layer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

from sdhub.backends.sdnq.formats import DTYPES, Format
from sdhub.backends.variant.keys import HINT, vet_keys, vet_names
from sdhub.core.documents import shown
from sdhub.core.errors import BuildError, SourceError

METHOD = "sdnq"
VERSION = "0.2.8"
# What SDNQ can do and sdhub's variants do without.
PLAIN: Mapping[str, Any] = {
    "scale_dtype": None,
    "zero_point_dtype": None,
    "use_hadamard": False,
    "use_codebook": False,
    "use_codebook_scale": False,
    "quant_embedding": False,
    "use_quantized_matmul": False,
    "use_quantized_matmul_conv": False,
    "is_training": False,
}

MOST_RANK, MOST_GROUP = 4096, 2**16
_SETTINGS = frozenset({"weights_dtype", "group_size", "use_svd", "svd_rank"})
_KEYS = (
    _SETTINGS
    | set(PLAIN)
    | {"quant_method", "sdnq_version", "svd_steps", "quantized_matmul_dtype", "quant_conv", "dequantize_fp32"}
    | {"use_dynamic_quantization", "use_stochastic_rounding", "add_skip_keys", "modules_to_not_convert"}
    | {"modules_to_not_use_matmul", "modules_dtype_dict", "modules_quant_config"}
)


def quantization_config(
    layers: Mapping[str, Format], floats: Collection[str], *, convolutions: bool
) -> dict[str, Any]:
    """The document for quantized `layers` and the `floats` that SDNQ would else take for quantized.

    Both by module path. The format that most layers have is the component's, the others are said by name.
    """
    common = Counter(layers.values()).most_common(1)[0][0]
    return {
        "quant_method": METHOD,
        "sdnq_version": VERSION,
        **_settings(common),
        **PLAIN,
        "svd_steps": 8,
        "quantized_matmul_dtype": None,
        "quant_conv": convolutions,
        "dequantize_fp32": True,
        "use_dynamic_quantization": False,
        "use_stochastic_rounding": False,
        "add_skip_keys": False,
        "modules_to_not_convert": sorted(f"{name}.weight" for name in floats),
        "modules_to_not_use_matmul": [],
        "modules_dtype_dict": {},
        "modules_quant_config": {
            f"{name}.weight": _settings(each) for name, each in sorted(layers.items()) if each != common
        },
    }


def keep(config: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """A stranger's `quantization_config`, where it has nothing but what `quantization_config` writes.

    Raises UnsafeError for another key, SourceError for a value that cannot be, BuildError as `format_in`.
    """
    vet_keys(config, _KEYS, f"{where}: quantization_config")
    layers = config.get("modules_quant_config", {})
    if not isinstance(layers, Mapping):
        raise SourceError(f"{where}: modules_quant_config must be an object", hint=HINT)
    for key in ("modules_to_not_convert", "modules_to_not_use_matmul"):
        vet_names(config.get(key, []), f"{where}: {key}")
    vet_names(list(layers), f"{where}: modules_quant_config")
    for name, settings in layers.items():
        if not isinstance(settings, Mapping):
            raise SourceError(f"{where}: {shown(name, 80)} has no settings", hint=HINT)
        vet_keys(settings, _SETTINGS, f"{where}: {shown(name, 80)}")
    for name in (where, *layers):
        found = format_in(config, name.removesuffix(".weight"))
        if found.rank > MOST_RANK or found.group_size > MOST_GROUP:
            raise SourceError(f"{where}: rank {found.rank} and groups of {found.group_size} cannot be", hint=HINT)
    return config


def format_in(config: Mapping[str, Any], layer: str) -> Format:
    """The format of a layer. Raises BuildError for what sdhub does not read."""
    settings = {**config, **config.get("modules_quant_config", {}).get(f"{layer}.weight", {})}
    strange = [name for name, plain in PLAIN.items() if settings.get(name, plain) != plain]
    if settings.get("modules_dtype_dict"):
        strange.append("modules_dtype_dict")
    dtype, group, rank = settings.get("weights_dtype"), settings.get("group_size"), settings.get("svd_rank")
    if dtype not in DTYPES:
        strange.append("weights_dtype")
    if not isinstance(group, int) or group == 0 or group < -1:
        strange.append("group_size")
    if not isinstance(rank, int):
        strange.append("svd_rank")
    if strange:
        raise BuildError(f"{layer}: sdhub does not read SDNQ's {strange[0]} {settings.get(strange[0])!r}")
    assert isinstance(group, int) and isinstance(rank, int)
    return Format(str(dtype), max(group, 0), rank if settings.get("use_svd") else 0)


def _settings(layout: Format) -> dict[str, Any]:
    return {
        "weights_dtype": layout.dtype,
        "group_size": layout.group_size or -1,
        "use_svd": bool(layout.rank),
        "svd_rank": layout.rank or 32,
    }

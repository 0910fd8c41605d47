"""`nunchaku_lite`: how diffusers (from 0.40) stores linear layers for Nunchaku's kernels, written and read.

Two kinds: W4A4, 4-bit weights and inputs with a low-rank part, and W4A16, 4-bit weights alone. Source: diffusers,
`quantizers/nunchaku`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

from sdhub.backends.variant.keys import HINT, vet_keys, vet_names
from sdhub.core.errors import BuildError, SdhubError, SourceError, UnsupportedError
from sdhub.recipes.recipe import Affine, Float, LowRank, Treatment

if TYPE_CHECKING:
    import torch

    from sdhub.compression.calibration import LayerStatistics
    from sdhub.compression.svdquant import Split

METHOD = "nunchaku_lite"
TILE, RANK_STEP = 128, 16
GROUP = {"int4": 64, "nvfp4": 16}
AWQ_GROUP, AWQ_ROWS = 64, 128
MOST_RANK = 4096
W4A4: Literal["svdq_w4a4"] = "svdq_w4a4"
W4A16: Literal["awq_w4a16"] = "awq_w4a16"


@dataclass(frozen=True)
class Format:
    """One layer's settings; `precision` and what follows are of W4A4 layers."""

    kind: Literal["svdq_w4a4", "awq_w4a16"]
    precision: Literal["int4", "nvfp4"] = "int4"
    rank: int = 0
    smoothing: bool = False
    gptq: bool = False

    def takes(self, outputs: int, inputs: int) -> bool:
        """Whether the kernels take a layer of this size."""
        if self.kind == W4A16:
            return outputs % AWQ_ROWS == 0 and inputs % AWQ_GROUP == 0
        return outputs % TILE == 0 and inputs % TILE == 0 and self.rank <= min(outputs, inputs)

    def bits(self, outputs: int, inputs: int) -> int:
        """Bits that a layer's weight takes, scales, factors and smoothing included."""
        count = outputs * inputs
        if self.kind == W4A16:
            return 4 * count + 32 * count // AWQ_GROUP
        scale = 8 if self.precision == "nvfp4" else 16
        return (
            4 * count + scale * count // GROUP[self.precision] + 16 * self.rank * (outputs + inputs) + 16 * inputs
        )


def format_of(treatment: Treatment) -> Format | None:
    """The format of a treatment, None for float weights. Raises UnsupportedError for what no kernel does."""
    if isinstance(treatment, Float):
        if treatment.dtype == "float32":
            raise UnsupportedError("the kernels compute in 16 bits")
        return None
    if isinstance(treatment, Affine):
        plain = Affine(bits=4, group_size=AWQ_GROUP)
        if treatment != plain:
            raise UnsupportedError(
                "W4A16 layers have 4 bits, groups of 64 and a zero point, rounded to the nearest"
            )
        return Format(W4A16)
    if not isinstance(treatment, LowRank):
        raise UnsupportedError(f"there are no kernels for weights of scheme {treatment.scheme}")
    if treatment.residual not in GROUP or treatment.activations != treatment.residual:
        raise UnsupportedError("W4A4 layers have weights and inputs of type int4 or of type nvfp4")
    precision = cast(Literal["int4", "nvfp4"], treatment.residual)
    if treatment.group_size != GROUP[precision]:
        raise UnsupportedError(f"the kernels want groups of {GROUP[precision]} for {precision}")
    if not treatment.rank or treatment.rank % RANK_STEP:
        raise UnsupportedError(f"the kernels want a rank that is a multiple of {RANK_STEP}")
    return Format(W4A4, precision, treatment.rank, treatment.smoothing, treatment.rounding == "gptq")


def quantization_config(layers: Mapping[str, Format], dtype: torch.dtype) -> dict[str, Any]:
    """The document in a component's `config.json`. Raises UnsupportedError for W4A4 layers of two formats."""
    config: dict[str, Any] = {"quant_method": METHOD, "compute_dtype": str(dtype).removeprefix("torch.")}
    four = {name: each for name, each in layers.items() if each.kind == W4A4}
    kinds = {(each.precision, each.rank) for each in four.values()}
    if len(kinds) > 1:
        raise UnsupportedError("all W4A4 layers of a component have one type and one rank")
    for precision, rank in kinds:
        config[W4A4] = {
            "precision": precision,
            "group_size": GROUP[precision],
            "rank": rank,
            "targets": sorted(four),
        }
    rest = sorted(set(layers) - set(four))
    if rest:
        config[W4A16] = {"precision": "int4", "group_size": AWQ_GROUP, "targets": rest}
    return config


def keep(config: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """A stranger's `quantization_config`, where it has nothing but what `quantization_config` writes.

    Raises UnsafeError for another key, SourceError for a value that cannot be.
    """
    said = f"{where}: quantization_config"
    vet_keys(config, {"quant_method", "compute_dtype", W4A4, W4A16}, said)
    if config.get("compute_dtype") not in ("float16", "bfloat16"):
        raise SourceError(f"{said}: its compute_dtype is none of 16 bits", hint=HINT)
    for kind, groups in ((W4A4, set(GROUP.values())), (W4A16, {AWQ_GROUP})):
        section = config.get(kind)
        if section is None:
            continue
        if not isinstance(section, Mapping):
            raise SourceError(f"{said}: {kind} must be an object", hint=HINT)
        vet_keys(section, {"precision", "group_size", "rank", "targets"}, f"{said}: {kind}")
        vet_names(section.get("targets"), f"{said}: targets of {kind}")
        rank = section.get("rank", 0)
        sound = section.get("precision") in GROUP and section.get("group_size") in groups
        if not sound or type(rank) is not int or not 0 <= rank <= MOST_RANK:
            raise SourceError(f"{said}: precision, group_size or rank of {kind} cannot be", hint=HINT)
    return config


def encode(
    layer: Any, layout: Format, observed: LayerStatistics | None, dtype: torch.dtype
) -> tuple[dict[str, torch.Tensor], float]:
    """The tensors of a linear layer and its relative error (see `svdquant.split`)."""
    if layout.kind == W4A16:
        return _encode_w4a16(layer, dtype)
    made = split_layer(layer, layout, observed, dtype)
    return packed(made, layer.bias, dtype), made.error


def split_layer(
    layer: Any, layout: Format, observed: LayerStatistics | None, dtype: torch.dtype, *, shifted: bool = False
) -> Split:
    """A linear layer taken apart as its format says; `shifted` as in `svdquant.split`."""
    from sdhub.compression.svdquant import Inputs, split

    inputs = None
    if observed is not None and observed.gram is not None:
        inputs = Inputs(observed.gram, observed.gram_rows, observed.tokens, observed.absmax, observed.gram_sum)
    return split(
        layer.weight,
        layout.rank,
        layout.precision,
        inputs,
        dtype=dtype,
        smoothing=layout.smoothing,
        use_gptq=layout.gptq,
        shifted=shifted,
    )


def packed(made: Split, bias: torch.Tensor | None, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """A W4A4 layer's tensors by their names."""
    import torch

    from sdhub.compression.affine import Grid
    from sdhub.compression.packing import pack_lowrank, pack_qweight, pack_scale

    residual = made.residual
    scale = residual.scale.to(dtype) if isinstance(residual, Grid) else residual.block_scale
    tensors = {
        "qweight": pack_qweight(residual.codes),
        "wscales": pack_scale(scale),
        "smooth_factor": pack_scale(made.smooth.to(dtype)),
        "proj_down": pack_lowrank(made.down.to(dtype), down=True),
        "proj_up": pack_lowrank(made.up.to(dtype), down=False),
    }
    if bias is not None:
        tensors["bias"] = pack_scale(bias.detach().to(dtype))
    if not isinstance(residual, Grid):
        tensors["wcscales"] = torch.ones(len(residual.codes), dtype=dtype, device=residual.codes.device)
        tensors["wtscale"] = residual.tensor_scale.to(dtype).view(1)
    return tensors


def _encode_w4a16(layer: Any, dtype: torch.dtype) -> tuple[dict[str, torch.Tensor], float]:
    import torch

    from sdhub.compression.affine import quantize
    from sdhub.compression.packing import pack_awq, pack_awq_scales

    weight = layer.weight.detach().float()
    grid = quantize(weight, 4, group_size=AWQ_GROUP, search=8)
    assert grid.zero_point is not None
    scales, zeros = pack_awq_scales(grid.scale.to(dtype), grid.zero_point)
    tensors = {"qweight": pack_awq(grid.codes), "wscales": scales, "wzeros": zeros}
    if layer.bias is not None:
        tensors["bias"] = layer.bias.detach().to(dtype)
    norm = float(torch.linalg.vector_norm(weight))
    return tensors, float(torch.linalg.vector_norm(grid.dequantize() - weight)) / norm if norm else 0.0


def decode(module: Any, config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Put layers that compute what the kernels compute in the places of a component's targets.

    Returns the tensors that are left: its other weights. Raises BuildError for a document or tensors that are not
    of the format.
    """
    import torch

    from sdhub.backends.svdquant.reference import W4A4Linear, unpacked, w4a16_linear

    state = dict(tensors)
    dtype = getattr(torch, str(config.get("compute_dtype")), None)
    if dtype not in (torch.float16, torch.bfloat16):
        raise BuildError(f"{METHOD}: the compute_dtype {config.get('compute_dtype')!r} is none of 16 bits")
    for kind in (W4A4, W4A16):
        section = config.get(kind) or {}
        for name in section.get("targets", ()):
            try:
                layer = module.get_submodule(name)
                own = {key: state.pop(f"{name}.{key}") for key in tensors_in(state, name)}
                shape = (int(layer.out_features), int(layer.in_features))
                if kind == W4A4:
                    check_tensors(own, shape, str(section["precision"]), int(section["rank"]), dtype)
                    precision = str(section["precision"])
                    made: Any = W4A4Linear(unpacked(own, precision), precision, dtype)
                else:
                    made = w4a16_linear(own, shape)
            except (AttributeError, KeyError, ValueError, TypeError, RuntimeError, SdhubError) as error:
                raise BuildError(f"{METHOD}: {name} is broken: {error}") from None
            module.set_submodule(name, made)
    return state


def check_tensors(
    own: Mapping[str, torch.Tensor], shape: tuple[int, int], precision: str, rank: int, dtype: torch.dtype
) -> None:
    """Raises BuildError unless a W4A4 layer has exactly the format's tensors, of its shapes and types."""
    import torch

    outputs, inputs = shape
    scales = torch.float8_e4m3fn if precision == "nvfp4" else dtype
    wanted = {
        "qweight": ((outputs, inputs // 2), torch.int8),
        "wscales": ((inputs // GROUP[precision], outputs), scales),
        "smooth_factor": ((inputs,), dtype),
        "proj_down": ((inputs, rank), dtype),
        "proj_up": ((outputs, rank), dtype),
    }
    if precision == "nvfp4":
        wanted |= {"wcscales": ((outputs,), dtype), "wtscale": ((1,), dtype)}
    if "bias" in own:
        wanted["bias"] = ((outputs,), dtype)
    for name in sorted(set(wanted) | set(own)):
        given = (tuple(own[name].shape), own[name].dtype) if name in own else None
        if given != wanted.get(name):
            raise BuildError(f"{name} is {given}, not {wanted.get(name)}")


def tensors_in(state: Iterable[str], layer: str) -> list[str]:
    """Names of a layer's own tensors."""
    return [name.rpartition(".")[2] for name in state if name.rpartition(".")[0] == layer]

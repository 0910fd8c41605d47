"""How SDNQ stores one layer: integer codes in groups of input channels, with a low-rank part of 16 bits beside.

Format: https://github.com/Disty0/sdnq, version 0.2.8. A layer's weight (N, C) or (N, C, kh, kw) is
`zero_point + code · scale`, plus `svd_up @ svd_down` over its flattened inputs, in float32. C is cut into groups;
a scale and zero point belong to an output, a group, and for convolutions a place in the kernel.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from sdhub.core.errors import BuildError, UnsupportedError, UsageError
from sdhub.recipes.recipe import Affine, Float, LowRank, Treatment

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from sdhub.compression.gram import Gram

DTYPES = {"int4": (4, True), "uint4": (4, False), "int8": (8, True), "uint8": (8, False)}
SEARCH = 2  # narrower ranges that are tried for a group's scale
ROUNDS = 1  # of the decomposition; two leave 4 % less error and take a quarter more time
JUDGED = 128  # outputs that a layer's error is taken from, or a few more
BLOCK = 512  # the widest block of a Gram matrix in the search for the low-rank part
TINY, HUGE = 2.0**-14, 65504.0  # float16's normal numbers
LEAST, CHANNELS = 16384, 32  # weights and input channels of the smallest layer that gains: SDNQ's own bounds


@dataclass(frozen=True)
class Format:
    """One layer's settings. `group_size` 0: one group; `rank` 0: no low-rank part."""

    dtype: str
    group_size: int = 0
    rank: int = 0
    gptq: bool = False

    @property
    def bits(self) -> int:
        """Bits of a code."""
        return DTYPES[self.dtype][0]

    @property
    def symmetric(self) -> bool:
        """Codes are signed, and there is no zero point."""
        return DTYPES[self.dtype][1]

    def fitting(self, shape: tuple[int, ...]) -> Format:
        """The settings for a weight of `shape`: without the low-rank part where it has no such rank."""
        inputs = 1
        for side in shape[1:]:
            inputs *= side
        return self if self.rank < min(shape[0], inputs) else replace(self, rank=0)

    def width(self, channels: int) -> int:
        """Input channels that share a scale: `group_size`, or the next larger that divides, as SDNQ does it."""
        if not 0 < self.group_size < channels:
            return channels
        for count in range(channels // self.group_size, 1, -1):
            if channels % count == 0:
                return channels // count
        return channels


def format_of(treatment: Treatment) -> Format | None:
    """The format of a treatment, None for float weights. Raises UnsupportedError for what SDNQ does not store."""
    if isinstance(treatment, Float):
        if treatment.dtype == "float32":
            raise UnsupportedError("SDNQ variants keep float weights in 16 bits")
        return None
    if isinstance(treatment, Affine):
        if (
            treatment.activations != "float"
            or treatment.bits not in (4, 8)
            or treatment.smoothing
            or treatment.higher_precision
        ):
            raise UnsupportedError("SDNQ variants have weights of 4 or 8 bits and float activations")
        dtype = f"{'' if treatment.symmetric else 'u'}int{treatment.bits}"
        return Format(dtype, treatment.group_size, gptq=treatment.rounding == "gptq")
    if isinstance(treatment, LowRank):
        if treatment.activations != "float" or treatment.smoothing or treatment.residual not in DTYPES:
            raise UnsupportedError("SDNQ variants have integer weights, float activations and no smoothing")
        return Format(treatment.residual, treatment.group_size, treatment.rank, treatment.rounding == "gptq")
    raise UnsupportedError(f"SDNQ has no weights of scheme {treatment.scheme}")


def quantize_layer(
    weight: torch.Tensor, layout: Format, gram: Gram | None = None
) -> tuple[dict[str, torch.Tensor], float]:
    """The tensors of a layer, by SDNQ's names, and their relative error.

    `weight`: (N, C) or (N, C, kh, kw). `gram`: of its flattened inputs, one matrix or diagonal blocks; None: all
    inputs weigh alike. Scales and factors are float16 where that holds them, else float32; SDNQ computes with
    float32 in either case. The error is that of some of the layer's outputs, or without a Gram matrix of its
    weights.

    Raises UsageError for values that are not finite.
    """
    import torch

    from sdhub.compression.affine import check_finite
    from sdhub.compression.gptq import output_error
    from sdhub.compression.gram import divided
    from sdhub.compression.lowrank import decompose, nearest_branch

    weight = weight.detach().float()
    check_finite(weight)
    flat = weight.flatten(1)
    layout = layout.fitting(tuple(weight.shape))
    uses_gptq = layout.gptq and gram is not None
    blocks = None if gram is None else divided(gram, BLOCK)
    target, subspace = weight, None
    if layout.rank:
        found = decompose(
            flat,
            layout.rank,
            lambda values: _Groups.nearest(values.view(weight.shape), layout).weight().flatten(1),
            gram=blocks,
            iterations=ROUNDS,
        ).low_rank
        target, subspace = weight - _product(_factors(found)).view(weight.shape), found.subspace
    groups = _Groups.nearest(target, layout, search=SEARCH, importance=_importance(gram, weight))
    if uses_gptq:
        assert gram is not None
        groups = groups.gptq(target, gram)
    result = groups.weight().flatten(1)
    factors: dict[str, torch.Tensor] = {}
    if layout.rank:
        factors = _factors(nearest_branch(flat - result, layout.rank, gram=blocks, start=subspace))
        result += _product(factors)
    if gram is None:
        norm = float(torch.linalg.vector_norm(flat))
        error = float(torch.linalg.vector_norm(result - flat)) / norm if norm else 0.0
    else:
        some = slice(None, None, max(len(flat) // JUDGED, 1))
        error = output_error(flat[some], result[some], gram)
    return {**groups.tensors(), **factors}, error


def dequantize_layer(tensors: Mapping[str, torch.Tensor], layout: Format, shape: tuple[int, ...]) -> torch.Tensor:
    """The float32 weight of `shape` that stored tensors stand for. Raises BuildError where they do not fit."""
    from sdhub.compression.packing import unpack_sdnq

    layout = layout.fitting(shape)
    width = layout.width(shape[1])
    try:
        codes = unpack_sdnq(tensors["weight"], layout.bits, shape, signed=layout.symmetric)
        grouped = codes.float().view(shape[0], shape[1] // width, width, *shape[2:])
        scale = tensors["scale"].float().view(shape[0], shape[1] // width, 1, *shape[2:])
        result = grouped * scale
        if not layout.symmetric:
            result += tensors["zero_point"].float().view(scale.shape)
        result = result.view(shape)
        if layout.rank:
            result += (tensors["svd_up"].float() @ tensors["svd_down"].float()).view(shape)
    except (KeyError, RuntimeError, UsageError) as error:
        raise BuildError(f"an SDNQ weight of shape {shape} does not fit its tensors: {error}") from None
    return result


@dataclass(frozen=True)
class _Groups:
    """`codes` (N, G, width, ...), `scale` and `zero_point` (N, G, 1, ...), all float32; None where symmetric."""

    codes: torch.Tensor
    scale: torch.Tensor
    zero_point: torch.Tensor | None
    layout: Format

    @classmethod
    def nearest(
        cls,
        weight: torch.Tensor,
        layout: Format,
        *,
        search: int = 0,
        importance: torch.Tensor | None = None,
    ) -> _Groups:
        """A finite `weight` (N, C, ...) rounded to the nearest; `search` and `importance` (of the shape of a row)
        as in `affine.quantize`."""
        from sdhub.compression.affine import scales

        width = layout.width(weight.shape[1])

        def side_by_side(values: torch.Tensor) -> torch.Tensor:
            """The channels of a group."""
            return values.movedim(1, -1).reshape(len(values), -1, width)

        mass = None if importance is None or not search else importance.expand_as(weight)
        found, offset = scales(
            side_by_side(weight),
            layout.bits,
            symmetric=layout.symmetric,
            search=search,
            importance=None if mass is None else side_by_side(mass),
        )
        scale = _grouped(found, weight)
        zero = None if layout.symmetric else _grouped(-offset * found, weight)
        kind = _kind(scale, zero)
        scale, zero = scale.to(kind).float(), None if zero is None else zero.to(kind).float()
        parts = weight.unflatten(1, (-1, width))
        codes = parts / scale if zero is None else (parts - zero).div_(scale)
        return cls(codes.round_().clamp_(*_span(layout)), scale, zero, layout)

    def weight(self) -> Any:
        """The weight (N, C, ...) it stands for."""
        values = self.codes * self.scale
        return (values if self.zero_point is None else values.add_(self.zero_point)).flatten(1, 2)

    def gptq(self, weight: torch.Tensor, gram: Gram) -> _Groups:
        """The same scales with the codes that change the outputs of `weight` least."""
        import torch

        from sdhub.compression.affine import Grid
        from sdhub.compression.gptq import gptq

        def spread(values: torch.Tensor) -> torch.Tensor:
            return values.expand(self.codes.shape).reshape(weight.shape[0], -1)

        codes = self.codes.reshape(weight.shape[0], -1).to(torch.int8 if self.layout.symmetric else torch.uint8)
        zero = None if self.zero_point is None else spread(-self.zero_point / self.scale)
        grid = gptq(weight.flatten(1), Grid(codes, spread(self.scale), zero, self.layout.bits, 1), gram)
        return replace(self, codes=grid.codes.float().view(self.codes.shape))

    def tensors(self) -> dict[str, torch.Tensor]:
        """By SDNQ's names. Without groups there is no axis for them."""
        import torch

        from sdhub.compression.packing import pack_sdnq

        single = self.scale.shape[1] == 1
        codes = self.codes.to(torch.int8 if self.layout.symmetric else torch.uint8)
        codes = codes.flatten(1, 2) if single else codes
        kind = _kind(self.scale, self.zero_point)
        parts = {"scale": self.scale, "zero_point": self.zero_point}
        stored = {
            name: (part.squeeze(2) if single else part).to(kind).contiguous()
            for name, part in parts.items()
            if part is not None
        }
        return {"weight": pack_sdnq(codes, self.layout.bits, signed=self.layout.symmetric), **stored}


def _span(layout: Format) -> tuple[int, int]:
    from sdhub.compression.affine import code_range

    return code_range(layout.bits, layout.symmetric)


def _grouped(values: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """(N, G, 1, ...) of values (N, ... · G, 1)."""
    return values.reshape(weight.shape[0], *weight.shape[2:], -1).movedim(-1, 1).unsqueeze(2)


def _kind(scale: torch.Tensor, zero_point: torch.Tensor | None) -> torch.dtype:
    """The type that scales are stored in: float16 where it holds them with all its digits."""
    import torch

    peak = max(float(part.abs().max()) for part in (scale, zero_point) if part is not None)
    return torch.float16 if float(scale.min()) >= TINY and peak <= HUGE else torch.float32


def _factors(branch: Any) -> dict[str, torch.Tensor]:
    import torch

    def stored(factor: torch.Tensor) -> torch.Tensor:
        size = factor.abs()
        usual, peak = float(size.mean()), float(size.max())
        return factor.to(torch.float16 if usual >= TINY and peak <= HUGE else torch.float32).contiguous()

    return {"svd_up": stored(branch.up), "svd_down": stored(branch.down)}


def _product(factors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    return factors["svd_up"].float() @ factors["svd_down"].float()


def _importance(gram: Gram | None, weight: torch.Tensor) -> torch.Tensor | None:
    """The energy of every input, of the shape of a row of `weight`; mean 1."""
    import torch

    if gram is None:
        return None
    blocks = (gram,) if isinstance(gram, torch.Tensor) else tuple(gram)
    energy = torch.cat([block.diagonal() for block in blocks]).to(weight.device).float().clamp_min(0)
    return (energy / energy.mean().clamp_min(1e-30)).view(weight.shape[1:])

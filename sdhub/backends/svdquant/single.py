"""Nunchaku's own single file: a denoiser's tensors with the configs of diffusers and ComfyUI in the metadata.

Tensors of W4A4 layers are those of `nunchaku_lite` under older names; `arrangement` has which layers there are.
Inputs of FLUX's second feed-forward layers are shifted (see `w4a4.linear`), and what modulates its norms gives
vectors interleaved, with 1 added to the scales.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from sdhub.backends.components import Read, write_parts
from sdhub.backends.folder import blank
from sdhub.backends.parts import Parts
from sdhub.backends.svdquant.arrangement import FLUX, Arrangement, Target, arrangement_of
from sdhub.backends.svdquant.lite import (
    GROUP,
    W4A16,
    Format,
    check_tensors,
    encode,
    packed,
    split_layer,
    tensors_in,
)
from sdhub.core.errors import BuildError, SdhubError
from sdhub.core.progress import Progress
from sdhub.core.quiet import quiet

if TYPE_CHECKING:
    import torch

    from sdhub.compression.calibration import LayerStatistics

Origin: TypeAlias = "tuple[tuple[str, ...], tuple[int, int] | None]"  # tensors one above the other, columns

NAMES = {"smooth_factor": "smooth", "proj_down": "lora_down", "proj_up": "lora_up"}  # of nunchaku_lite, and here
UNUSED = "smooth_orig"  # that loaders want nevertheless


def file_name(layout: Format, model: str) -> str:
    """`svdq-int4_r32-<model>.safetensors`, as Nunchaku's own are called."""
    return f"svdq-{_precision(layout)}_r{layout.rank}-{model}.safetensors"


def metadata(module: Any, layout: Format) -> dict[str, str]:
    """What the file says of itself."""
    config = json.loads(module.to_json_string())
    config.pop("_name_or_path", None)
    kind = {"int4": "int4", "nvfp4": "fp4_e2m1_all"}[layout.precision]
    scale = None if layout.precision == "int4" else "fp8_e4m3_nan"
    number = {"dtype": kind, "scale_dtype": scale, "group_size": GROUP[layout.precision]}
    weight = number if scale is None else {**number, "scale_dtype": [None, scale]}
    said = {"method": "svdquant", "weight": weight, "activation": number, "rank": layout.rank}
    model_class = arrangement_of(module).model_class
    documents = {"config": config, "comfy_config": comfy_config(module), "quantization_config": said}
    return {"model_class": model_class, **{name: json.dumps(each) for name, each in documents.items()}}


def comfy_config(module: Any) -> dict[str, Any]:
    """ComfyUI's class for the model and its own config of it."""
    config = module.config
    if arrangement_of(module).model_class == FLUX:
        settings = {
            "image_model": "flux",
            "patch_size": 2,  # of latents, which diffusers packs 2 x 2 before the model
            "in_channels": config.in_channels // 4,
            "out_channels": (config.out_channels or config.in_channels) // 4,
            "vec_in_dim": config.pooled_projection_dim,
            "context_in_dim": config.joint_attention_dim,
            "hidden_size": config.num_attention_heads * config.attention_head_dim,
            "mlp_ratio": 4.0,
            "num_heads": config.num_attention_heads,
            "depth": config.num_layers,
            "depth_single_blocks": config.num_single_layers,
            "axes_dim": list(config.axes_dims_rope),
            "theta": 10000,
            "qkv_bias": True,
            "guidance_embed": bool(config.guidance_embeds),
            "disable_unet_model_creation": True,
        }
        return {"model_class": "Flux" if config.guidance_embeds else "FluxSchnell", "model_config": settings}
    widths = list(config.block_out_channels)
    count = config.layers_per_block
    depths = config.transformer_layers_per_block
    each = list(depths) if isinstance(depths, Sequence) else [depths] * len(widths)
    down = [depth if "CrossAttn" in kind else 0 for depth, kind in zip(each, config.down_block_types, strict=True)]
    settings = {
        "use_checkpoint": False,
        "image_size": 32,
        "use_spatial_transformer": True,
        "legacy": False,
        "num_classes": "sequential",
        "adm_in_channels": config.projection_class_embeddings_input_dim,
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "model_channels": widths[0],
        "num_res_blocks": [count] * len(widths),
        "channel_mult": [width // widths[0] for width in widths],
        "transformer_depth": [depth for depth in down for _ in range(count)],
        "transformer_depth_middle": each[-1],
        "transformer_depth_output": [depth for depth in down for _ in range(count + 1)],
        "use_linear_in_transformer": bool(config.use_linear_projection),
        "context_dim": config.cross_attention_dim,
        "num_head_channels": 64,
        "use_temporal_attention": False,
        "use_temporal_resblock": False,
        "disable_unet_model_creation": True,
    }
    return {"model_class": "SDXL", "model_config": settings}


def write(
    module: Any,
    layout: Format,
    statistics: Mapping[str, LayerStatistics],
    path: Path,
    dtype: torch.dtype,
    progress: Progress,
    read: Read | None = None,
    device: torch.device | None = None,
) -> dict[str, float]:
    """Write the file; returns the error of every 4-bit layer. `statistics` by the module's own names; `read` and
    `device`: see `write_component`. Raises BuildError for a layer that the kernels do not take."""
    arrangement = arrangement_of(module)
    targets = {target.name: target for target in arrangement.targets}
    tensors = module.state_dict()
    sketch, origins = _sketch(arrangement, tensors)
    for target in targets.values():
        rows, columns = sketch.get_submodule(target.name).weight.shape
        kind = replace(layout, kind=W4A16) if target.modulations else layout
        if not kind.takes(rows, columns):
            raise BuildError(f"Nunchaku's kernels take no layer of {rows} x {columns}: {target.name}")
    source = read or tensors.__getitem__
    observed = {
        name: _narrowed(statistics[target.sources[0]], target.columns)
        for name, target in targets.items()
        if target.sources[0] in statistics
    }
    flux = arrangement.model_class == FLUX

    def encoded(name: str, layer: Any) -> tuple[dict[str, torch.Tensor], float]:
        target = targets[name]
        if target.modulations:
            return _encode_modulation(layer, target.modulations, dtype)
        return _encode(layer, target, layout, observed.get(name), dtype, flux=flux)

    parts = Parts(path.parent / ".parts")
    errors = write_parts(
        parts,
        sketch,
        list(targets),
        encoded,
        label=f"quantizing {path.name}",
        replaced=("weight", "bias"),
        dtype=dtype,
        statistics=observed,
        progress=progress,
        read=lambda name: _composed(origins[name], source),
        device=device,
    )
    said = {"format": "pt", **metadata(module, layout)}
    parts.join(path.parent, path.name.removesuffix(".safetensors"), metadata=said, shard=sys.maxsize)
    prove(path, type(module), source, dtype)
    return errors


def prove(path: Path, kind: Any, source: Read, dtype: torch.dtype) -> None:
    """Hold a written file against its metadata and `source`, the tensors of the denoiser, whose class is `kind`.

    Each 4-bit layer of the class and config has all its tensors, in their sizes and types; every other tensor is
    the source's as `dtype`; there is no other. Raises BuildError naming the first that is not so.
    """
    import torch
    from safetensors import safe_open

    with safe_open(str(path), framework="pt") as file:
        said = file.metadata()
        precision, rank = _said(json.loads(said["quantization_config"]))
        with quiet(), torch.device("meta"):
            module = blank("diffusers", kind.__name__, json.loads(said["config"]))
        arrangement = arrangement_of(module)
        sketch, origins = _sketch(arrangement, module.state_dict())
        left = set(file.keys())
        quantized = set()
        for target in arrangement.targets:
            own = {key: file.get_tensor(f"{target.name}.{key}") for key in tensors_in(left, target.name)}
            wanted = {"bias"} if f"{target.name}.bias" in origins else set()
            try:
                if not wanted <= set(own):
                    raise BuildError("its bias is missing")
                if not (target.modulations or torch.equal(own[UNUSED], own["smooth"])):
                    raise BuildError(f"{UNUSED} is another than smooth")
                _layer(own, target, tuple(sketch.get_submodule(target.name).weight.shape), precision, rank)
            except (AttributeError, KeyError, ValueError, TypeError, RuntimeError, SdhubError) as error:
                raise BuildError(f"{path.name}: {target.name} was not written whole: {error}") from None
            left -= {f"{target.name}.{key}" for key in own}
            quantized |= {f"{target.name}.weight", f"{target.name}.bias"}
        for name in sorted(set(origins) - quantized):
            if name not in left:
                raise BuildError(f"{path.name}: {name} is missing")
            given = _composed(origins[name], source)
            given = given.to(dtype) if given.is_floating_point() else given
            found = file.get_tensor(name)
            if found.dtype != given.dtype or not torch.equal(found, given):
                raise BuildError(f"{path.name}: {name} was not written as it is")
            left.discard(name)
    if left:
        raise BuildError(f"{path.name}: {min(left)} is not of its config")


def decode(module: Any, said: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Put layers that compute what the kernels compute into `module`; returns its other tensors by its own names.

    `said`: the file's `quantization_config`. Raises BuildError for a document or tensors of another format.
    """
    from sdhub.backends.svdquant.reference import Summed, W4A4Linear

    state = dict(tensors)
    precision, rank = _said(said)
    arrangement = arrangement_of(module)
    summed: dict[str, dict[int, W4A4Linear]] = {}
    for target in arrangement.targets:
        try:
            sources = [module.get_submodule(name) for name in target.sources]
            start, stop = target.columns or (0, sources[0].in_features)
            shape = (sum(each.out_features for each in sources), stop - start)
            own = {key: state.pop(f"{target.name}.{key}") for key in tensors_in(state, target.name)}
            layer = _layer(own, target, shape, precision, rank)
            if target.modulations:
                module.set_submodule(target.sources[0], layer)
                continue
            dtype, shifted = own["lora_down"].dtype, target.shifted and precision == "int4"
        except (AttributeError, KeyError, ValueError, TypeError, RuntimeError, SdhubError) as error:
            raise BuildError(f"{target.name} is broken: {error}") from None
        if target.columns:
            whole = summed.setdefault(target.sources[0], {})
            whole[start] = W4A4Linear(layer, precision, dtype, shifted=shifted)
            continue
        row = 0
        for name, each in zip(target.sources, sources, strict=True):
            part = layer.outputs(row, row + each.out_features)
            module.set_submodule(name, W4A4Linear(part, precision, dtype, shifted=shifted))
            row += each.out_features
    for name, layers in summed.items():
        module.set_submodule(name, Summed([layers[start] for start in sorted(layers)]))
    own_names = {here: name for name, here in arrangement.renamed.items()}
    return {own_names.get(name, name): each for name, each in state.items()}


def _layer(
    own: Mapping[str, torch.Tensor], target: Target, shape: tuple[int, int], precision: str, rank: int
) -> Any:
    """What a target's tensors stand for. Raises BuildError, and others for tensors of another format."""
    import torch

    from sdhub.backends.svdquant.reference import unpacked

    if target.modulations:
        return _decode_modulation(own, shape, target.modulations)
    lite = {here: name for name, here in NAMES.items()}
    named = {lite.get(key, key): each for key, each in own.items() if key != UNUSED}
    dtype = named["proj_down"].dtype
    checked = {"wtscale": torch.ones(1, dtype=dtype), **named} if precision == "nvfp4" else named
    check_tensors(checked, shape, precision, rank, dtype)
    return unpacked(named, precision)


def _sketch(arrangement: Arrangement, tensors: Mapping[str, torch.Tensor]) -> tuple[Any, dict[str, Origin]]:
    """A module on the meta device with the file's tensors before they are quantized, and what each is made of."""
    import torch

    origins: dict[str, Origin] = {}
    for target in arrangement.targets:
        weights = tuple(f"{name}.weight" for name in target.sources)
        biases = tuple(f"{name}.bias" for name in target.sources)
        origins[f"{target.name}.weight"] = (weights, target.columns)
        if target.bias and biases[0] in tensors:
            origins[f"{target.name}.bias"] = (biases, None)
    used = {name for names, _ in origins.values() for name in names}
    for name in tensors:
        if name not in used:
            origins[arrangement.renamed.get(name, name)] = ((name,), None)
    sketch = torch.nn.Module()
    for name, (names, columns) in origins.items():
        shape = list(tensors[names[0]].shape)
        shape[:1] = [sum(tensors[each].shape[0] for each in names)] if shape else []
        if columns:
            shape[1] = columns[1] - columns[0]
        place, _, own = name.rpartition(".")
        holder = _place(sketch, place)
        holder.register_parameter("bias", holder._parameters.get("bias"))
        holder.register_parameter(own, torch.nn.Parameter(torch.empty(shape, device="meta"), requires_grad=False))
    return sketch, origins


def _place(module: Any, path: str) -> Any:
    """The submodule, made where it is not there."""
    import torch

    for step in path.split(".") if path else ():
        if step not in module._modules:
            module.add_module(step, torch.nn.Module())
        module = module._modules[step]
    return module


def _composed(origin: Origin, source: Read) -> torch.Tensor:
    import torch

    names, columns = origin
    whole = source(names[0]) if len(names) == 1 else torch.cat([source(name) for name in names])
    return whole[:, columns[0] : columns[1]] if columns else whole


def _narrowed(observed: LayerStatistics, columns: tuple[int, int] | None) -> LayerStatistics:
    """The statistics of some of the inputs."""
    if columns is None:
        return observed
    start, stop = columns
    blocks, first = [], 0
    for block in observed.gram or ():
        low, high = max(start - first, 0), min(stop - first, len(block))
        if low < high:
            blocks.append(block[low:high, low:high])
        first += len(block)
    return replace(
        observed,
        low=observed.low[start:stop],
        high=observed.high[start:stop],
        mean_square=observed.mean_square[start:stop],
        tokens=observed.tokens[:, start:stop],
        gram=None if observed.gram is None else tuple(blocks),
        gram_sum=None if observed.gram_sum is None else observed.gram_sum[start:stop],
    )


def _encode(
    layer: Any, target: Target, layout: Format, observed: LayerStatistics | None, dtype: torch.dtype, *, flux: bool
) -> tuple[dict[str, torch.Tensor], float]:

    weight = layer.weight.detach().float()
    shifted = target.shifted and layout.precision == "int4"
    made = split_layer(layer, layout, observed, dtype, shifted=shifted)
    bias = None if layer.bias is None else layer.bias.detach().float()
    if bias is None and flux:
        bias = weight.new_zeros(len(weight))
    if shifted:
        bias = made.shifted_bias(weight) + (0.0 if bias is None else bias)
    tensors = packed(made, bias, dtype)
    if "wtscale" in tensors:  # loaders read it in ways of their own; a power of two is the same in every channel
        tensors["wcscales"] = tensors["wcscales"] * tensors.pop("wtscale")
    tensors = {NAMES.get(name, name): each for name, each in tensors.items()}
    return {**tensors, UNUSED: tensors["smooth"].clone()}, made.error


def _encode_modulation(layer: Any, count: int, dtype: torch.dtype) -> tuple[dict[str, torch.Tensor], float]:
    import torch

    turned = torch.nn.Module()
    turned.weight = torch.nn.Parameter(_interleaved(layer.weight.detach(), count), requires_grad=False)
    turned.bias = torch.nn.Parameter(
        _interleaved(layer.bias.detach().float() + _ones(len(layer.bias), count).to(layer.bias.device), count),
        requires_grad=False,
    )
    return encode(turned, Format(W4A16), None, dtype)


def _decode_modulation(own: Mapping[str, torch.Tensor], shape: tuple[int, int], count: int) -> torch.nn.Linear:
    from sdhub.backends.svdquant.reference import plain_linear, w4a16_linear

    turned = w4a16_linear(own, shape)
    size = shape[0] // count
    weight, bias = (_interleaved(each.detach(), size) for each in (turned.weight, turned.bias))
    return plain_linear(weight, bias - _ones(shape[0], count), shape)


def _interleaved(tensor: torch.Tensor, count: int) -> torch.Tensor:
    """The first rows of `count` equal parts, then their second rows, …

    Undone by as many parts as these had rows.
    """
    return tensor.unflatten(0, (count, -1)).transpose(0, 1).flatten(0, 1).contiguous()


def _ones(size: int, count: int) -> torch.Tensor:
    """1 for what scales: of 6 vectors the second and the fifth, of 3 the second."""
    import torch

    ones = torch.zeros(count, size // count)
    ones[1] = ones[-2] = 1
    return ones.flatten()


def _precision(layout: Format) -> str:
    return {"int4": "int4", "nvfp4": "fp4"}[layout.precision]


def _said(said: Mapping[str, Any]) -> tuple[str, int]:
    """Precision and rank."""
    kinds = {"int4": "int4", "fp4_e2m1_all": "nvfp4"}
    weight, rank = said.get("weight"), said.get("rank")
    kind = weight.get("dtype") if isinstance(weight, Mapping) else None
    if said.get("method") != "svdquant" or kind not in kinds or not isinstance(rank, int):
        raise BuildError("the file's quantization_config is none of Nunchaku's")
    return kinds[str(kind)], rank

"""The layers of a pipeline by all names that LoRA files give them.

Files name layers by path (`unet.down_blocks.1.…`), flattened (`lora_unet_down_blocks_1_…`), by the paths of the
original code (`input_blocks.4.1.…`, `double_blocks.0.img_attn.qkv`), and text encoders by
numbers. All names are made from the modules that are there, so that a name is one of theirs, or it is none.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

ANY = ("", "base_model.model.")  # before the path, from tools that know one model only
ROOTS = ("unet", "transformer", "text_encoder", "text_encoder_2", "text_encoder_3")
ORIGINAL = ("diffusion_model.", "model.diffusion_model.")
DOTTED: Mapping[str, tuple[str, ...]] = {
    "text_encoder": ("text_encoders.clip_l.transformer.",),
    "text_encoder_2": ("text_encoders.clip_g.transformer.",),
    "text_encoder_3": ("text_encoders.t5xxl.transformer.",),
    "transformer": ORIGINAL,
}
FLAT: Mapping[str, tuple[str, ...]] = {
    "unet": ("lora_unet_", "lycoris_"),
    "transformer": ("lora_transformer_", "lora_unet_", "lycoris_"),
    "text_encoder": ("lora_te_", "lora_te1_"),
    "text_encoder_2": ("lora_te2_",),
    "text_encoder_3": ("lora_te3_",),
}
T5 = {"dotted": ("text_encoders.t5xxl.transformer.",), "flat": ("lora_te2_", "lora_te3_")}  # of FLUX

FLUX_DOUBLE = {
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "img_attn.proj": ("attn.to_out.0",),
    "img_mlp.0": ("ff.net.0.proj",),
    "img_mlp.2": ("ff.net.2",),
    "img_mod.lin": ("norm1.linear",),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "txt_attn.proj": ("attn.to_add_out",),
    "txt_mlp.0": ("ff_context.net.0.proj",),
    "txt_mlp.2": ("ff_context.net.2",),
    "txt_mod.lin": ("norm1_context.linear",),
}
FLUX_SINGLE = {
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "linear2": ("proj_out",),
    "modulation.lin": ("norm.linear",),
}
FLUX_OTHERS = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
    "final_layer.linear": "proj_out",
}
SD3_OTHERS = {
    "x_embedder.proj": "pos_embed.proj",
    "t_embedder.mlp.0": "time_text_embed.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "time_text_embed.timestep_embedder.linear_2",
    "y_embedder.mlp.0": "time_text_embed.text_embedder.linear_1",
    "y_embedder.mlp.2": "time_text_embed.text_embedder.linear_2",
    "final_layer.linear": "proj_out",
}
SD3_JOINT = {
    "x_block.adaLN_modulation.1": ("norm1.linear",),
    "x_block.attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "x_block.attn.proj": ("attn.to_out.0",),
    "x_block.attn2.qkv": ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
    "x_block.attn2.proj": ("attn2.to_out.0",),
    "x_block.mlp.fc1": ("ff.net.0.proj",),
    "x_block.mlp.fc2": ("ff.net.2",),
    "x_block.attn.ln_q": ("attn.norm_q",),
    "x_block.attn.ln_k": ("attn.norm_k",),
    "x_block.attn2.ln_q": ("attn2.norm_q",),
    "x_block.attn2.ln_k": ("attn2.norm_k",),
    "context_block.adaLN_modulation.1": ("norm1_context.linear",),
    "context_block.attn.ln_q": ("attn.norm_added_q",),
    "context_block.attn.ln_k": ("attn.norm_added_k",),
    "context_block.attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "context_block.attn.proj": ("attn.to_add_out",),
    "context_block.mlp.fc1": ("ff_context.net.0.proj",),
    "context_block.mlp.fc2": ("ff_context.net.2",),
}
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
UNET_OTHERS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


@dataclass(frozen=True)
class Piece:
    """Rows `start` to `stop` of what a file holds, which belong to the rows of a layer from `into` on."""

    component: str
    path: str
    start: int
    stop: int
    into: int = 0


Place = tuple[Piece, ...]


def places_of(pipeline: Any) -> dict[str, set[Place]]:
    """Where each name leads; names that two layers share lead to both."""
    found: dict[str, set[Place]] = {}
    for component in ROOTS:
        module = getattr(pipeline, component, None)
        if module is None or not hasattr(module, "named_modules"):
            continue
        for name, place in _names(component, module):
            found.setdefault(name, set()).add(place)
    return found


def inner(name: str) -> str:
    """A layer's path in its component, of a name that begins with either."""
    for root in ROOTS:
        name = name.removeprefix(f"{root}.")
    return name.removeprefix("base_model.model.")


def _names(component: str, module: Any) -> Iterator[tuple[str, Place]]:
    layers = {
        path: part.weight for path, part in module.named_modules() if getattr(part, "weight", None) is not None
    }
    t5 = component == "text_encoder_2" and hasattr(module, "shared")
    dotted: tuple[str, ...] = (*ANY, f"{component}.", f"{component}.base_model.model.")
    dotted = (*dotted, *(T5["dotted"] if t5 else DOTTED.get(component, ())))
    flat = T5["flat"] if t5 else FLAT[component]
    for path, weight in layers.items():
        place: Place = (Piece(component, path, 0, len(weight)),)
        for name in _spelled(component, path):
            yield from ((f"{prefix}{name}", place) for prefix in dotted)
            yield from ((f"{prefix}{name.replace('.', '_')}", place) for prefix in flat)
    for name, place in _original(component, module, layers):
        yield from ((f"{prefix}{name}", place) for prefix in ("", *ORIGINAL))
        yield f"lora_unet_{name.replace('.', '_')}", place


def _spelled(component: str, path: str) -> Iterable[str]:
    """A path as versions of diffusers and transformers have it."""
    if not component.startswith("text_encoder"):
        named = {path}
        for attention in ("attn1", "attn2"):
            old = path.replace(f"{attention}.to_", f"{attention}.processor.to_")
            named.add(old.replace(".processor.to_out.0", ".processor.to_out"))
        return named
    bare = path.removeprefix("text_model.")
    names = {path, bare}
    if bare.startswith(("encoder.layers.", "embeddings.", "final_layer_norm")):  # CLIP
        names.add(f"text_model.{bare}")
    for each in ("q", "k", "v", "out"):
        names |= {name.replace(f"self_attn.{each}_proj", f"self_attn.to_{each}") for name in names}
    return names


def _original(component: str, module: Any, layers: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, Place]]:
    """Names of the code that the weights were first published for."""
    if component == "unet":
        for name, path in _ldm(module, layers):
            yield name, (Piece(component, path, 0, len(layers[path])),)
    if component != "transformer":
        return
    for prefix, blocks, table in (
        ("double_blocks", "transformer_blocks", FLUX_DOUBLE),
        ("single_blocks", "single_transformer_blocks", FLUX_SINGLE),
        ("joint_blocks", "transformer_blocks", SD3_JOINT),
    ):
        for number in range(len(getattr(module, blocks, ()))):
            for name, paths in table.items():
                own = [f"{blocks}.{number}.{path}" for path in paths]
                if all(path in layers for path in own):
                    yield f"{prefix}.{number}.{name}", _stacked(component, module, own, layers)
    others = FLUX_OTHERS if hasattr(module, "single_transformer_blocks") else SD3_OTHERS
    for name, path in {**others, "final_layer.adaLN_modulation.1": "norm_out.linear"}.items():
        if path in layers:
            yield name, _stacked(component, module, [path], layers)


def _stacked(component: str, module: Any, paths: Iterable[str], layers: Mapping[str, torch.Tensor]) -> Place:
    """The rows of layers one above the other; the original code has a last norm's shift before its scale."""
    pieces: list[Piece] = []
    start = 0
    for path in paths:
        rows = len(layers[path])
        if type(module.get_submodule(path.rpartition(".")[0])).__name__ == "AdaLayerNormContinuous":
            pieces += (
                Piece(component, path, start, start + rows // 2, rows // 2),
                Piece(component, path, start + rows // 2, start + rows),
            )
        else:
            pieces.append(Piece(component, path, start, start + rows))
        start += rows
    return tuple(pieces)


def _ldm(unet: Any, layers: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, str]]:
    """Original name and path of each layer of a UNet."""
    parts = dict(_ldm_parts(unet))
    for path in layers:
        if path in UNET_OTHERS:
            yield UNET_OTHERS[path], path
            continue
        for root, name in parts.items():
            if path.startswith(f"{root}."):
                inside = path.removeprefix(f"{root}.")
                if ".resnets." in f".{root}":
                    inside = RESNET.get(inside, inside)
                elif ".downsamplers." in f".{root}":
                    inside = "op"
                yield f"{name}.{inside}", path
                break


def _ldm_parts(unet: Any) -> Iterator[tuple[str, str]]:
    """Path and original name of each residual block, transformer and resampling layer."""
    number = 1
    for index, block in enumerate(unet.down_blocks):
        root = f"down_blocks.{index}"
        for each in range(len(block.resnets)):
            yield f"{root}.resnets.{each}", f"input_blocks.{number}.0"
            yield f"{root}.attentions.{each}", f"input_blocks.{number}.1"
            number += 1
        if getattr(block, "downsamplers", None):
            yield f"{root}.downsamplers.0", f"input_blocks.{number}.0"
            number += 1
    yield "mid_block.resnets.0", "middle_block.0"
    yield "mid_block.attentions.0", "middle_block.1"
    yield "mid_block.resnets.1", "middle_block.2"
    number = 0
    for index, block in enumerate(unet.up_blocks):
        root = f"up_blocks.{index}"
        attended = bool(getattr(block, "attentions", None))
        for each in range(len(block.resnets)):
            yield f"{root}.resnets.{each}", f"output_blocks.{number}.0"
            yield f"{root}.attentions.{each}", f"output_blocks.{number}.1"
            number += 1
        if getattr(block, "upsamplers", None):
            yield f"{root}.upsamplers.0", f"output_blocks.{number - 1}.{2 if attended else 1}"

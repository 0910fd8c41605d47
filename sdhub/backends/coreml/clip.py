"""CLIP's encoders, of text and of pictures, as Apple's apps call them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sdhub.core.errors import UnsupportedError

MASKED = -1e4  # minus infinity is no number for the Neural Engine


class Layer(nn.Module):
    """transformers' CLIPEncoderLayer; attention as products of matrices, with a mask of numbers."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.self_attn, self.mlp = layer.self_attn, layer.mlp
        self.layer_norm1, self.layer_norm2 = layer.layer_norm1, layer.layer_norm2

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Tokens (B, S, C); `mask` (S, S) is added to the scores."""
        x = x + self._attend(self.layer_norm1(x), mask)
        return x + self.mlp(self.layer_norm2(x))

    def _attend(self, x: Tensor, mask: Tensor | None) -> Tensor:
        layer = self.self_attn
        batch, count, channels = (int(side) for side in x.shape)
        shape = (batch, count, layer.num_heads, channels // layer.num_heads)
        query, key, value = (
            projection(x).view(shape).transpose(1, 2) for projection in (layer.q_proj, layer.k_proj, layer.v_proj)
        )
        scores = torch.matmul(query * shape[3] ** -0.5, key.transpose(2, 3))
        weights = (scores if mask is None else scores + mask).softmax(dim=-1)
        joined = torch.matmul(weights, value).transpose(1, 2).reshape(batch, count, channels)
        return layer.out_proj(joined)


class Encoder(nn.Module):
    """transformers' CLIPEncoder."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(each) for each in encoder.layers)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> list[Tensor]:
        """`x` (B, S, C) and the results of all layers after it."""
        found = [x]
        for layer in self.layers:
            found.append(layer(found[-1], mask))
        return found


class _Text(nn.Module):
    """transformers' CLIPTextTransformer without its heads."""

    mask: Tensor

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.embeddings, self.final_layer_norm = model.embeddings, model.final_layer_norm
        self.encoder = Encoder(model.encoder)
        count = model.config.max_position_embeddings
        self.register_buffer("mask", torch.full((count, count), MASKED).triu(1), persistent=False)
        self.end = model.config.eos_token_id

    def forward(self, tokens: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
        """Of token ids (1, S): the results of all layers, the last one normalized, and that of the end token."""
        embedded = self.embeddings.token_embedding(tokens) + self.embeddings.position_embedding.weight
        states = self.encoder(embedded, self.mask)
        last = self.final_layer_norm(states[-1])
        # As transformers does: 2 stands in configs of old checkpoints, whose end token has the greatest id.
        places = tokens if self.end == 2 else (tokens == self.end).int()
        return states, last, last[torch.arange(1), places.argmax(dim=-1)]


class TextEncoder(nn.Module):
    """A CLIPTextModel: the last layer's states, normalized, and the end token's.

    Ids come as floats, as Core ML's arrays of Apple's apps are; they are exact in 32 bits.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.text_model = _Text(_vetted(model))

    def forward(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Ids (1, S) to (1, S, C) and (1, C)."""
        _, last, pooled = self.text_model(input_ids.to(torch.int32))
        return last, pooled


class TextEncoderXL(nn.Module):
    """A text encoder of Stable Diffusion XL: the states of the last layer but one, and the end token's,
    projected where the model has a projection.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.text_model = _Text(_vetted(model))
        self.text_projection = getattr(model, "text_projection", None)

    def forward(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Ids (1, S) to (1, S, C) and (1, P)."""
        states, _, pooled = self.text_model(input_ids.to(torch.int32))
        return states[-2], pooled if self.text_projection is None else self.text_projection(pooled)


class SafetyChecker(nn.Module):
    """A StableDiffusionSafetyChecker, all pictures and concepts at once."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.vision_model = nn.Module()
        self.vision_model.vision_model = _Vision(model.vision_model.vision_model)
        self.visual_projection = model.visual_projection
        for name in ("concept_embeds", "special_care_embeds", "concept_embeds_weights"):
            setattr(self, name, getattr(model, name))
        self.special_care_embeds_weights = model.special_care_embeds_weights

    def forward(self, clip_input: Tensor, images: Tensor, adjustment: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pictures (1, 3, s, s) as CLIP sees them, the same (1, H, W, 3), and what is added to the scores (1,).

        Gives the pictures, black where they are unsafe, whether they are (1, 1, 1, 1), and the scores (1, n).
        """
        embedded = _unit(self.visual_projection(self.vision_model.vision_model(clip_input)))
        special = embedded @ _unit(self.special_care_embeds).T - self.special_care_embeds_weights + adjustment
        care = special.gt(0).float().amax(dim=1, keepdim=True)
        scores = embedded @ _unit(self.concept_embeds).T - self.concept_embeds_weights + 0.01 * care
        unsafe = scores.gt(0).float().amax(dim=1)[:, None, None, None]
        return images * (1.0 - unsafe), unsafe, scores


class _Vision(nn.Module):
    """transformers' CLIPVisionTransformer."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.embeddings, self.pre_layrnorm = model.embeddings, model.pre_layrnorm
        self.encoder, self.post_layernorm = Encoder(model.encoder), model.post_layernorm

    def forward(self, pictures: Tensor) -> Tensor:
        """(1, 3, s, s) to (1, C)."""
        patches = self.embeddings.patch_embedding(pictures).flatten(2).transpose(1, 2)
        first = self.embeddings.class_embedding.view(1, 1, -1)
        x = torch.cat([first, patches], dim=1) + self.embeddings.position_embedding.weight
        return self.post_layernorm(self.encoder(self.pre_layrnorm(x))[-1][:, 0])


def _unit(rows: Tensor) -> Tensor:
    return rows / rows.norm(dim=1, keepdim=True)


def _vetted(model: Any) -> Any:
    """The transformer inside a text model."""
    text = getattr(model, "text_model", None)
    if type(text).__name__ != "CLIPTextTransformer":
        raise UnsupportedError(f"a text encoder of type {type(model).__name__}", hint="CLIPTextModel")
    return text

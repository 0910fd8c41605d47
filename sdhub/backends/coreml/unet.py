"""UNets and ControlNets of diffusers in the layout of the Neural Engine.

A module tree of our own around the given one's layers: parameters are shared and keep their names, the given
modules are left as they are.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sdhub.backends.coreml.attention import IMPLEMENTATIONS, Attend, Attention
from sdhub.backends.coreml.layers import ChannelNorm, FeedForward, Pointwise, Sinusoids, pixels, static, tokens
from sdhub.backends.coreml.usual import USUAL, USUAL_UNET
from sdhub.backends.reasons import unusual
from sdhub.checkpoint.sampling import EMBEDDED_GUIDANCE
from sdhub.core.errors import UnsupportedError


class Embedding(nn.Module):
    """diffusers' TimestepEmbedding; `condition` is added to what comes in."""

    condition: Tensor | None

    def __init__(self, layer: nn.Module, condition: Tensor | None = None) -> None:
        super().__init__()
        if layer.post_act is not None or layer.act is None:
            raise UnsupportedError("a time embedding with another order of activations")
        self.linear_1, self.linear_2 = Pointwise(layer.linear_1), Pointwise(layer.linear_2)
        self.act = layer.act
        self.register_buffer("condition", condition, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, 1, 1) to (B, D, 1, 1)."""
        x = x if self.condition is None else x + self.condition
        return self.linear_2(self.act(self.linear_1(x)))


class ResNet(nn.Module):
    """diffusers' ResnetBlock2D."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        if type(layer).__name__ != "ResnetBlock2D" or layer.time_embedding_norm != "default":
            raise UnsupportedError(f"a residual block of type {type(layer).__name__}", hint="ResnetBlock2D")
        if layer.upsample is not None or layer.downsample is not None or layer.skip_time_act:
            raise UnsupportedError("a residual block that changes the resolution")
        self.norm1, self.conv1, self.norm2, self.conv2 = layer.norm1, layer.conv1, layer.norm2, layer.conv2
        self.time_emb_proj = Pointwise(layer.time_emb_proj)
        self.conv_shortcut = layer.conv_shortcut
        self.nonlinearity = layer.nonlinearity
        self.divisor = layer.output_scale_factor

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Features (B, C, h, w) and the time embedding (B, D, 1, 1)."""
        y = self.conv1(self.nonlinearity(self.norm1(x)))
        y = y + self.time_emb_proj(self.nonlinearity(time))
        y = self.conv2(self.nonlinearity(self.norm2(y)))
        x = x if self.conv_shortcut is None else self.conv_shortcut(x)
        return x + y if self.divisor == 1 else (x + y) / self.divisor


class TransformerBlock(nn.Module):
    """diffusers' BasicTransformerBlock with layer norms."""

    def __init__(self, layer: nn.Module, attend: Attend) -> None:
        super().__init__()
        if layer.norm_type != "layer_norm" or layer.pos_embed is not None or hasattr(layer, "fuser"):
            raise UnsupportedError(f"a transformer block of type {layer.norm_type}", hint="layer_norm")
        self.crossed = layer.only_cross_attention
        self.norm1, self.attn1 = ChannelNorm(layer.norm1), Attention(layer.attn1, attend)
        crossing = layer.attn2 is not None
        self.norm2 = ChannelNorm(layer.norm2) if crossing else None
        self.attn2 = Attention(layer.attn2, attend) if crossing else None
        self.norm3, self.ff = ChannelNorm(layer.norm3), FeedForward(layer.ff)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Tokens (B, C, 1, S) and the text (B, D, 1, T)."""
        x = x + self.attn1(self.norm1(x), context if self.crossed else None)
        if self.norm2 is not None and self.attn2 is not None:
            x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class Transformer(nn.Module):
    """diffusers' Transformer2DModel over pictures."""

    def __init__(self, layer: nn.Module, attend: Attend) -> None:
        super().__init__()
        if type(layer).__name__ != "Transformer2DModel" or not layer.is_input_continuous:
            raise UnsupportedError(f"attention of type {type(layer).__name__}", hint="Transformer2DModel")
        self.norm = layer.norm
        self.proj_in, self.proj_out = Pointwise(layer.proj_in), Pointwise(layer.proj_out)
        self.transformer_blocks = nn.ModuleList(
            TransformerBlock(each, attend) for each in layer.transformer_blocks
        )

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Features (B, C, h, w) and the text (B, D, 1, T)."""
        _, _, height, width = static(x)
        y = tokens(self.proj_in(self.norm(x)))
        for block in self.transformer_blocks:
            y = block(y, context)
        return x + self.proj_out(pixels(y, height, width))


class Stage(nn.Module):
    """One resolution of either half: residual blocks, each with attention or none, then a sampler or none."""

    def __init__(self, block: nn.Module, attend: Attend) -> None:
        super().__init__()
        kind = type(block).__name__
        if kind.removeprefix("CrossAttn") not in ("DownBlock2D", "UpBlock2D"):
            raise UnsupportedError(f"blocks of type {kind}", hint="(CrossAttn)DownBlock2D and UpBlock2D")
        self.resnets = nn.ModuleList(ResNet(each) for each in block.resnets)
        attentions = getattr(block, "attentions", None)
        self.attentions = (
            None if attentions is None else nn.ModuleList(Transformer(each, attend) for each in attentions)
        )
        self.downsamplers = getattr(block, "downsamplers", None)
        self.upsamplers = getattr(block, "upsamplers", None)

    def layer(self, index: int, x: Tensor, time: Tensor, context: Tensor) -> Tensor:
        """Residual block `index` and its attention."""
        x = self.resnets[index](x, time)
        return x if self.attentions is None else self.attentions[index](x, context)

    def down(self, x: Tensor, time: Tensor, context: Tensor) -> list[Tensor]:
        """All results, one for each layer and sampler."""
        found = []
        for index in range(len(self.resnets)):
            x = self.layer(index, x, time, context)
            found.append(x)
        for sampler in self.downsamplers or ():
            x = sampler(x)
            found.append(x)
        return found

    def up(self, x: Tensor, skipped: list[Tensor], time: Tensor, context: Tensor) -> Tensor:
        """Takes as many of the last of `skipped` as it has layers."""
        for index in range(len(self.resnets)):
            x = self.layer(index, torch.cat([x, skipped.pop()], dim=1), time, context)
        for sampler in self.upsamplers or ():
            x = sampler(x)
        return x


class Middle(nn.Module):
    """diffusers' UNetMidBlock2DCrossAttn."""

    def __init__(self, block: nn.Module, attend: Attend) -> None:
        super().__init__()
        if type(block).__name__ != "UNetMidBlock2DCrossAttn":
            raise UnsupportedError(f"a middle of type {type(block).__name__}", hint="UNetMidBlock2DCrossAttn")
        self.resnets = nn.ModuleList(ResNet(each) for each in block.resnets)
        self.attentions = nn.ModuleList(Transformer(each, attend) for each in block.attentions)

    def forward(self, x: Tensor, time: Tensor, context: Tensor) -> Tensor:
        """Features (B, C, h, w)."""
        x = self.resnets[0](x, time)
        for attention, resnet in zip(self.attentions, self.resnets[1:], strict=True):
            x = resnet(attention(x, context), time)
        return x


class _Contracting(nn.Module):
    """What UNets and ControlNets have in common: embeddings, the way down, the middle."""

    def __init__(self, model: Any, attention: str, guidance: float) -> None:
        super().__init__()
        _check(model.config, USUAL)
        attend = IMPLEMENTATIONS[attention]
        self.conv_in = model.conv_in
        self.time_proj = Sinusoids(model.time_proj)
        self.time_embedding = Embedding(model.time_embedding, _guided(model, guidance))
        wide = model.config.addition_embed_type == "text_time"
        self.add_time_proj = Sinusoids(model.add_time_proj) if wide else None
        self.add_embedding = Embedding(model.add_embedding) if wide else None
        self.down_blocks = nn.ModuleList(Stage(block, attend) for block in model.down_blocks)
        self.mid_block = None if model.mid_block is None else Middle(model.mid_block, attend)

    def embed(self, timestep: Tensor, added: Sequence[Tensor]) -> Tensor:
        """(B, D, 1, 1) of timesteps (B,) and, of Stable Diffusion XL, `time_ids` (B, n), `text_embeds` (B, P)."""
        time = self.time_embedding(self.time_proj(timestep))
        if self.add_time_proj is None or self.add_embedding is None:
            return time
        time_ids, text_embeds = added
        batch, count = static(time_ids)
        waves = self.add_time_proj(time_ids.reshape(batch * count)).reshape(batch, -1, 1, 1)
        return time + self.add_embedding(torch.cat([text_embeds[:, :, None, None], waves], dim=1))

    def down(self, x: Tensor, time: Tensor, context: Tensor) -> list[Tensor]:
        """`x` and the results of all layers after it."""
        found = [x]
        for block in self.down_blocks:
            found += block.down(found[-1], time, context)
        return found


class UNet(_Contracting):
    """A UNet2DConditionModel.

    `attention`: one of `attention.IMPLEMENTATIONS`. `guidance`: the scale that is embedded in a latent consistency
    model with `time_cond_proj_dim`, once and for all: Apple's apps give no `timestep_cond`. `controlled`: takes a
    ControlNet's residuals after its other inputs. Raises UnsupportedError for another architecture.
    """

    def __init__(
        self, model: Any, *, attention: str, guidance: float = EMBEDDED_GUIDANCE, controlled: bool = False
    ) -> None:
        super().__init__(model, attention, guidance)
        _check(model.config, USUAL_UNET)
        attend = IMPLEMENTATIONS[attention]
        self.controlled, self.centred = controlled, model.config.center_input_sample
        self.up_blocks = nn.ModuleList(Stage(block, attend) for block in model.up_blocks)
        self.conv_norm_out, self.conv_act, self.conv_out = model.conv_norm_out, model.conv_act, model.conv_out

    def forward(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, *more: Tensor) -> Tensor:
        """Latents (B, C, h, w), timesteps (B,), states (B, D, 1, T); `more` is `time_ids` and `text_embeds`, and
        a ControlNet's residuals, the middle's last.
        """
        added, residuals = (more[:2], more[2:]) if self.add_embedding is not None else ((), more)
        time, context = self.embed(timestep, added), encoder_hidden_states
        skipped = self.down(self.conv_in(2 * sample - 1 if self.centred else sample), time, context)
        x = skipped[-1]
        if self.mid_block is not None:
            x = self.mid_block(x, time, context)
        if self.controlled:
            skipped = [each + residual for each, residual in zip(skipped, residuals[:-1], strict=True)]
            x = x + residuals[-1]
        for block in self.up_blocks:
            x = block.up(x, skipped, time, context)
        return self.conv_out(self.conv_act(self.conv_norm_out(x)) if self.conv_norm_out is not None else x)


class ControlNet(_Contracting):
    """A ControlNetModel, at a conditioning scale of 1. Raises UnsupportedError for another architecture."""

    def __init__(self, model: Any, *, attention: str) -> None:
        super().__init__(model, attention, EMBEDDED_GUIDANCE)
        if model.config.controlnet_conditioning_channel_order != "rgb" or model.config.global_pool_conditions:
            raise UnsupportedError("a ControlNet with pooled conditions or channels in another order than RGB")
        self.controlnet_cond_embedding = model.controlnet_cond_embedding
        self.controlnet_down_blocks = model.controlnet_down_blocks
        self.controlnet_mid_block = model.controlnet_mid_block

    def forward(
        self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, *more: Tensor
    ) -> tuple[Tensor, ...]:
        """As `UNet`, where the last of `more` is the picture to follow (B, 3, H, W); gives the residuals."""
        time, context = self.embed(timestep, more[:-1]), encoder_hidden_states
        skipped = self.down(self.conv_in(sample) + self.controlnet_cond_embedding(more[-1]), time, context)
        x = skipped[-1]
        if self.mid_block is not None:
            x = self.mid_block(x, time, context)
        residuals = [layer(each) for layer, each in zip(self.controlnet_down_blocks, skipped, strict=True)]
        return (*residuals, self.controlnet_mid_block(x))


def _guided(model: Any, guidance: float) -> Tensor | None:
    """What the guidance scale of a latent consistency model adds to the waves of the timestep: (1, C, 1, 1)."""
    projection = model.time_embedding.cond_proj
    if projection is None:
        return None
    from diffusers.models.embeddings import get_timestep_embedding

    channels = model.config.time_cond_proj_dim
    waves = get_timestep_embedding(
        torch.tensor([(guidance - 1.0) * 1000.0]), channels, downscale_freq_shift=1, flip_sin_to_cos=False
    )
    with torch.no_grad():
        return (waves @ projection.weight.detach().float().T).view(1, -1, 1, 1)


def _check(config: Any, usual: Mapping[str, Collection[Any]]) -> None:
    """Refuse what the module tree here does not compute."""
    found = unusual(config, usual)
    if found is not None:
        raise UnsupportedError(f"a denoiser whose {found}", hint="Stable Diffusion 1.x, 2.x or XL")

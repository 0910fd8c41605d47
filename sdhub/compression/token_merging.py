"""Token merging for self-attention (ToMe for Stable Diffusion, Bolya and Hoffman 2023, arXiv 2303.17604).

Attention costs the square of the number of tokens, and neighbours in an image are alike: the tokens most like
another one are averaged into it before attention, and get its result after. In each 2 × 2 cell of the image the
top-left token is a destination, the other three are sources; each source knows the destination of greatest cosine
similarity, and the sources of greatest similarity merge. The paper draws destinations at random; here they are
fixed, so that all shapes and the split are constants, and the same input gives the same output.

Everything is plain tensor operations that `torch.jit.trace` and `torch.export` follow and OpenVINO converts;
`index_put_` rather than `scatter_add`, because OpenVINO then adds whole rows, four times as fast.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sdhub.core.errors import UsageError

MOST = 0.75  # of the tokens are sources


class TokenMerging:
    """Merges `merged` of the tokens of a `height` × `width` image, in row-major order, into `remaining` tokens.

    `merged` is `ratio` (0 to 0.75) of all, rounded, and at most the sources: where a side is odd the cells at its
    end are smaller and have fewer. At 0 all is the identity.

    Raises UsageError for another ratio and for an image without tokens.
    """

    def __init__(self, height: int, width: int, ratio: float) -> None:
        if height < 1 or width < 1:
            raise UsageError(f"token merging in an image of {height} × {width} tokens")
        if not 0 <= ratio <= MOST:
            raise UsageError(f"a token merging ratio of {ratio}", hint=f"0 to {MOST}")
        self.height, self.width = height, width
        is_source = torch.ones(height, width, dtype=torch.bool)
        is_source[::2, ::2] = False
        self._sources = is_source.flatten().nonzero()[:, 0]
        self._destinations = (~is_source).flatten().nonzero()[:, 0]
        self.merged = min(round(ratio * self.tokens), len(self._sources))

    @property
    def tokens(self) -> int:
        """Tokens before merging."""
        return self.height * self.width

    @property
    def remaining(self) -> int:
        """Tokens after merging."""
        return self.tokens - self.merged

    def slots(self, metric: Tensor) -> Tensor:
        """For each token the remaining token that it becomes part of: int64 (B, T), from `metric` (B, T, C).

        The remaining tokens keep the order of the image. Similarities are computed in float32, those of a token of
        zeros are 0. Raises UsageError for another number of tokens.
        """
        if not torch.jit.is_tracing() and metric.shape[1:-1] != (self.tokens,):
            raise UsageError(
                f"tokens of shape {tuple(metric.shape)} for an image of {self.height} × {self.width}",
                hint=f"(batch, {self.tokens}, channels)",
            )
        itself = torch.arange(self.tokens, device=metric.device).expand(metric.shape[0], -1)
        if not self.merged:
            return itself
        joins = itself.scatter(1, *self._pairs(metric))
        places = (joins == itself).to(torch.int64).cumsum(1) - 1
        return places.gather(1, joins)

    def merge(self, x: Tensor, slots: Tensor) -> Tensor:
        """(B, remaining, C): the mean of the tokens of `x` (B, T, C) in each slot, summed in float32."""
        batch, channels = x.shape[0], x.shape[2]
        rows = self._rows(slots)
        total = torch.zeros(batch * self.remaining, channels, device=x.device)
        total.index_put_((rows,), x.flatten(0, 1).float(), accumulate=True)
        # Counted in integers: bfloat16, which runtimes may choose, cannot count beyond 256.
        count = torch.zeros(batch * self.remaining, dtype=torch.int32, device=x.device)
        count.index_put_((rows,), torch.ones_like(rows, dtype=torch.int32), accumulate=True)
        return (total / count[:, None]).to(x.dtype).view(batch, self.remaining, channels)

    def unmerge(self, y: Tensor, slots: Tensor) -> Tensor:
        """(B, T, C): each token gets that of its slot in `y` (B, remaining, C)."""
        batch, channels = y.shape[0], y.shape[2]
        return y.flatten(0, 1).index_select(0, self._rows(slots)).view(batch, self.tokens, channels)

    def _pairs(self, metric: Tensor) -> tuple[Tensor, Tensor]:
        """The sources that merge and the destinations they merge into, as token numbers (B, merged)."""
        all_sources, all_destinations = self._sources.to(metric.device), self._destinations.to(metric.device)
        unit = torch.nn.functional.normalize(metric.float(), dim=-1)
        sources, destinations = unit.index_select(1, all_sources), unit.index_select(1, all_destinations)
        similarity, nearest = (sources @ destinations.transpose(1, 2)).max(dim=2)
        most = similarity.topk(self.merged, dim=1, sorted=False).indices
        return all_sources[most], all_destinations[nearest.gather(1, most)]

    def _rows(self, slots: Tensor) -> Tensor:
        """Slots counted on from one element of the batch to the next: (B · T,)."""
        first = torch.arange(slots.shape[0], device=slots.device) * self.remaining
        return (slots + first[:, None]).flatten()


class MergingAttnProcessor:
    """An attention processor of diffusers' protocol for self-attention: merges, attends, unmerges.

    `inner` is the processor that attends; it sees the remaining tokens (B, remaining, C) and nothing else. The
    similarity is that of the attention's own inputs. Shapes are those of `merging`, the batch is free.
    """

    def __init__(self, merging: TokenMerging, inner: Any) -> None:
        self.merging = merging
        self.inner = inner

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """(B, T, C) of `hidden_states` (B, T, C). Raises UsageError for cross-attention and for a mask."""
        if encoder_hidden_states is not None or attention_mask is not None:
            raise UsageError("token merging in cross-attention or under a mask", hint="self-attention only")
        if not self.merging.merged:
            return self._attend(attn, hidden_states, temb)
        slots = self.merging.slots(hidden_states)
        attended = self._attend(attn, self.merging.merge(hidden_states, slots), temb)
        return self.merging.unmerge(attended, slots)

    def _attend(self, attn: Any, tokens: Tensor, temb: Tensor | None) -> Tensor:
        attended: Tensor = self.inner(attn, tokens, None, None, temb)
        return attended

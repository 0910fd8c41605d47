"""A fixed order of a tensor's elements, and back."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Permutation:
    """The elements, seen as an array of `shape`, with its axes transposed to `axes`."""

    shape: tuple[int, ...]
    axes: tuple[int, ...]

    def apply(self, tensor: Tensor) -> Tensor:
        """`tensor`'s elements in this order, contiguous."""
        return tensor.detach().reshape(self.shape).permute(self.axes).contiguous()

    def undo(self, tensor: Tensor) -> Tensor:
        """`tensor`'s elements as they were before `apply`, contiguous."""
        ordered = tensor.detach().reshape([self.shape[axis] for axis in self.axes])
        back = sorted(range(len(self.axes)), key=self.axes.__getitem__)
        return ordered.permute(back).contiguous()

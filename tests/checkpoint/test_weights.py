"""Numbers that are none are refused by the tensor's name, whatever its type; finite ones of any size pass."""

from __future__ import annotations

import math
from typing import Any

import pytest

from sdhub.checkpoint.weights import require_finite
from sdhub.core.errors import SourceError

torch = pytest.importorskip("torch")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "float8_e4m3fn", "float8_e5m2"])
def test_one_number_that_is_none_is_found_among_many(dtype: str) -> None:
    kind = getattr(torch, dtype)
    sound = torch.ones(50, 41).to(kind)
    require_finite("unet", [("first", sound), ("second", sound)])
    broken = torch.ones(50, 41)
    broken[49, 40] = math.nan
    with pytest.raises(SourceError, match=r"unet: second holds 1 numbers that are no numbers \(NaN\)"):
        require_finite("unet", [("first", sound), ("second", broken.to(kind))])


@pytest.mark.parametrize("infinite", [[math.inf], [-math.inf], [math.inf, -math.inf]])
def test_infinite_numbers_are_counted(infinite: list[float]) -> None:
    values = torch.tensor([1.0, *infinite, 2.0]).half()
    with pytest.raises(SourceError, match=f"vae: a holds {len(infinite)} numbers that are infinite"):
        require_finite("vae", [("a", values)])


@pytest.mark.parametrize(
    "values",
    [
        torch.full((4096,), 65_504.0).half(),  # whose sum is none in their own type
        torch.full((4096,), 3.4e38),  # whose sum is none in float32
        torch.tensor([2**62]),
        torch.empty(0),
        torch.empty(4, device="meta"),
    ],
    ids=["half", "float", "whole", "empty", "meta"],
)
def test_large_sums_and_what_has_no_numbers_pass(values: Any) -> None:
    require_finite("unet", [("a", values)])

"""Every method on tensors of another device: the same numbers, and no tensor of the CPU among them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from sdhub.compression import affine, formats, gptq, layers, lowrank, palettize, smoothquant, svdquant, w4a4
from tests.far import Far, far_device

torch.manual_seed(0)
WEIGHT, TOKENS = torch.randn(128, 256), torch.randn(300, 256)
GRAM = TOKENS.T @ TOKENS
INPUTS = svdquant.Inputs([GRAM], 300, TOKENS[:64], TOKENS.abs().amax(0), TOKENS.sum(0))


def int4(values: Any) -> Any:
    return affine.quantize(values, 4, symmetric=True).dequantize()


METHODS: dict[str, Callable[[Any, Any], Any]] = {
    "grid": lambda w, g: affine.quantize(w, 4, group_size=64, search=3, importance=torch.ones(256)).codes,
    "nvfp4": lambda w, g: formats.nvfp4(w, search=2).dequantize(),
    "gptq of a grid": lambda w, g: gptq.gptq(w, affine.quantize(w, 4, group_size=64), g, passes=2).codes,
    "gptq of NVFP4": lambda w, g: gptq.gptq(w, formats.nvfp4(w), g).codes,
    "gptq of a palette": lambda w, g: gptq.gptq(w, palettize.palettize(w.half(), 4), g, passes=1).indices,
    "gptq of vectors": lambda w, g: gptq.gptq(w, palettize.palettize(w, 2, cluster_dim=2), g).indices,
    "Gram matrix elsewhere": lambda w, g: gptq.gptq(w, affine.quantize(w, 4), g.cpu()).codes,
    "low rank": lambda w, g: lowrank.decompose(w, 8, int4, gram=[g], iterations=2).low_rank.dense(),
    "nearest branch": lambda w, g: lowrank.nearest_branch(w, 8, gram=g).dense(),
    "W4A4 weight": lambda w, g: w4a4.rounded_weight(w, "nvfp4").dequantize(),
    "W4A4 inputs": lambda w, g: w4a4.rounded_inputs(w, "int4"),
    "SVDQuant int4": lambda w, g: svdquant.split(w, 16, "int4", INPUTS).up,
    "SVDQuant int4 after GELU": lambda w, g: svdquant.split(w, 16, "int4", INPUTS, shifted=True).up,
    "SVDQuant nvfp4": lambda w, g: svdquant.split(w, 16, "nvfp4", INPUTS).residual.codes,
    "SVDQuant without calibration": lambda w, g: svdquant.split(w, 16, "int4").down,
    "SmoothQuant": lambda w, g: smoothquant.search_smoothing(w, TOKENS, int4, quantize_input=int4).factors,
}


@pytest.mark.parametrize("method", METHODS)
def test_a_method_works_where_the_weight_is(method):
    wanted = METHODS[method](WEIGHT, GRAM)
    with far_device():
        found = METHODS[method](WEIGHT.to("cuda"), GRAM.to("cuda"))
        assert isinstance(found, Far) != ("palette" in method or "vectors" in method)
        assert torch.equal(found.cpu(), wanted)


def test_one_layer_at_a_time_needs_no_other_thread():
    import threading

    here = threading.current_thread()
    for workers, alone in ((1, True), (2, False)):
        found = layers.each_layer("ab", lambda _: threading.current_thread(), cost=len, memory=1, workers=workers)
        assert {each is here for _, each in found} == {alone}


def test_weights_are_solved_on_a_device_and_come_back():
    from sdhub.recipes.recipe import Affine, ComponentRecipe, Palette
    from sdhub.recipes.weights import compress

    weights = {"grid": WEIGHT, "palette": WEIGHT + 1}
    component = ComponentRecipe(default=Affine(bits=4), layers={"palette": Palette(bits=4)})
    wanted = dict(compress(weights, component))
    with far_device():
        found = dict(compress(weights, component, device=torch.device("cuda:0")))
    for name, each in found.items():
        for key, value in vars(each).items():
            assert not isinstance(value, Far), (name, key)
        assert torch.equal(each.dequantize(), wanted[name].dequantize())

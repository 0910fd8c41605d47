"""What coremltools compresses runs, and computes just what coremltools' own decompression computes."""

from __future__ import annotations

import numpy as np
import pytest

from sdhub.backends.coreml.interpreter import open_package
from tests.backends.coreml.programs import run, save

pytest.importorskip("coremltools")
import coremltools.optimize.coreml as cto
from coremltools.converters.mil.mil import Builder as mb

RNG = np.random.default_rng(0)
PICTURE = RNG.normal(size=(2, 8, 5, 5)).astype(np.float32)


def layers(x):
    """A convolution and a linear layer."""
    weight = RNG.normal(size=(16, 8, 3, 3)).astype(np.float32)
    x = mb.conv(x=x, weight=weight, bias=RNG.normal(size=16).astype(np.float32), name="conv")
    x = mb.reshape(x=x, shape=[2, -1])
    matrix = RNG.normal(size=(12, 144)).astype(np.float32)
    return mb.linear(x=x, weight=matrix, bias=np.zeros(12, np.float32), name="linear")


def levels(count):
    """The same, of few distinct values."""

    def build(x):
        values = RNG.normal(size=count).astype(np.float16).astype(np.float32)
        x = mb.conv(x=x, weight=RNG.choice(values, (16, 8, 3, 3)), name="conv")
        return mb.linear(x=mb.reshape(x=x, shape=[2, -1]), weight=RNG.choice(values, (12, 144)), name="linear")

    return build


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {
        (opset, kind): save(folder, build, [PICTURE], opset, name=f"{opset}-{kind}", precision="float16")[0]
        for opset in ("iOS16", "iOS18")
        for kind, build in (("normal", layers), ("four levels", levels(4)))
    }


def compressed(model):
    return "constexpr_" in str(model.get_spec())


def palettes(**options):
    return lambda model: cto.palettize_weights(
        model,
        cto.OptimizationConfig(cto.OpPalettizerConfig(weight_threshold=0, **options)),
        joint_compression=compressed(model),
    )


def linear(**options):
    return lambda model: cto.linear_quantize_weights(
        model,
        cto.OptimizationConfig(cto.OpLinearQuantizerConfig(weight_threshold=0, **options)),
        joint_compression=compressed(model),
    )


def pruned(**options):
    return lambda model: cto.prune_weights(
        model, cto.OptimizationConfig(cto.OpMagnitudePrunerConfig(weight_threshold=0, **options))
    )


def both(*steps):
    """One kind of compression on top of another."""

    def apply(model):
        for step in steps:
            model = step(model)
        return model

    return apply


CASES = {
    **{
        f"{opset}: k-means of {bits} bits": (opset, "normal", palettes(mode="kmeans", nbits=bits))
        for opset in ("iOS16", "iOS18")
        for bits in (1, 2, 4, 6)
    },
    "iOS16: k-means of 8 bits": ("iOS16", "normal", palettes(mode="kmeans", nbits=8)),
    "iOS16: unique values": ("iOS16", "four levels", palettes(mode="unique")),
    "iOS18: uniform palettes of 3 bits": ("iOS18", "normal", palettes(mode="uniform", nbits=3)),
    "iOS18: grouped palettes": (
        "iOS18",
        "normal",
        palettes(mode="kmeans", nbits=4, granularity="per_grouped_channel", group_size=4),
    ),
    "iOS18: grouped palettes of input channels": (
        "iOS18",
        "normal",
        palettes(mode="kmeans", nbits=2, granularity="per_grouped_channel", group_size=4, channel_axis=1),
    ),
    "iOS18: palettes of vectors": ("iOS18", "normal", palettes(mode="kmeans", nbits=3, cluster_dim=2)),
    "iOS16: 8 bits symmetric": ("iOS16", "normal", linear(mode="linear_symmetric")),
    "iOS16: 8 bits affine": ("iOS16", "normal", linear(mode="linear")),
    "iOS16: unsigned 8 bits": ("iOS16", "normal", linear(mode="linear", dtype=np.uint8)),
    "iOS18: 8 bits affine": ("iOS18", "normal", linear(mode="linear")),
    "iOS18: 8 bits per tensor": ("iOS18", "normal", linear(mode="linear", granularity="per_tensor")),
    "iOS18: 4 bits in blocks": (
        "iOS18",
        "normal",
        linear(mode="linear_symmetric", dtype="int4", granularity="per_block", block_size=4),
    ),
    "iOS18: unsigned 4 bits in blocks": (
        "iOS18",
        "normal",
        linear(mode="linear", dtype="uint4", granularity="per_block", block_size=4),
    ),
    "iOS16: pruned": ("iOS16", "normal", pruned(target_sparsity=0.6)),
    "iOS18: pruned": ("iOS18", "normal", pruned(target_sparsity=0.6)),
    "iOS18: pruned and palettes": (
        "iOS18",
        "normal",
        both(pruned(target_sparsity=0.6), palettes(mode="kmeans", nbits=4)),
    ),
    "iOS18: pruned and 8 bits": (
        "iOS18",
        "normal",
        both(pruned(target_sparsity=0.6), linear(mode="linear_symmetric")),
    ),
    "iOS18: palettes of 8 bits": (
        "iOS18",
        "normal",
        both(palettes(mode="kmeans", nbits=4), linear(mode="linear_symmetric", granularity="per_tensor")),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_computes_what_coremltools_decompresses(tmp_path, models, name):
    opset, kind, compress = CASES[name]
    model = compress(models[opset, kind])
    assert compressed(model)
    model.save(str(tmp_path / "small.mlpackage"))
    cto.decompress_weights(model).save(str(tmp_path / "large.mlpackage"))
    small, large = open_package(tmp_path / "small.mlpackage"), open_package(tmp_path / "large.mlpackage")
    np.testing.assert_array_equal(run(small, [PICTURE])[0], run(large, [PICTURE])[0])


def test_constants_that_do_not_fit_the_cache_are_read_again(tmp_path, models):
    path = tmp_path / "small.mlpackage"
    palettes(mode="kmeans", nbits=4)(models["iOS16", "normal"]).save(str(path))
    kept, again = open_package(path), open_package(path, cache_bytes=0)
    for _ in range(2):
        np.testing.assert_array_equal(run(again, [PICTURE])[0], run(kept, [PICTURE])[0])

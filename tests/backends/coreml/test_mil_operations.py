"""Each operation, saved in a package and run, against what coremltools, numpy or torch compute."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tests.backends.coreml.programs import opened, own_values, run, together

pytest.importorskip("coremltools")
from coremltools.converters.mil.mil import Builder as mb


def real(*shape, seed=0, low=-2.0, high=2.0):
    return np.random.default_rng(seed).uniform(low, high, shape).astype(np.float32)


def whole(*shape, seed=0, low=-9, high=10):
    return np.random.default_rng(seed).integers(low, high, shape).astype(np.int32)


def number(x):
    return mb.cast(x=x, dtype="int32")


X = real(2, 3, 4)
Y = real(1, 3, 1, seed=1)
UNIT = real(2, 3, low=-0.9, high=0.9)
POSITIVE = real(2, 3, low=0.2, high=3.0)
PICTURE = real(2, 4, 5, 6)
HALVES = np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, -2.7, 2.7], dtype=np.float32)
COUNTS = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
NUMERATORS, DENOMINATORS = whole(4, 6), np.where(whole(4, 6, seed=1) == 0, 3, whole(4, 6, seed=1)).astype(np.int32)


def unary(kind):
    return lambda x: getattr(mb, kind)(x=x)


def binary(kind):
    return lambda x, y: getattr(mb, kind)(x=x, y=y)


def comparison(kind):
    return lambda x, y: number(getattr(mb, kind)(x=x, y=y))


def reduction(kind, **options):
    return lambda x: getattr(mb, kind)(x=x, **options)


OWN = {
    **{kind: (unary(kind), [UNIT]) for kind in ("cos", "exp2", "sin", "tanh", "square", "identity")},
    **{kind: (unary(kind), [POSITIVE]) for kind in ("sqrt", "rsqrt", "inverse")},
    "rsqrt of a large epsilon": (lambda x: mb.rsqrt(x=x, epsilon=0.5), [POSITIVE]),
    "clip": (lambda x: mb.clip(x=x, alpha=-0.5, beta=0.75), [X]),
    "cast to int32": (number, [HALVES]),
    "cast to fp32": (lambda x: mb.cast(x=x, dtype="fp32"), [NUMERATORS]),
    "cast to bool": (lambda x: number(mb.cast(x=x, dtype="bool")), [NUMERATORS]),
    **{kind: (binary(kind), [X, Y]) for kind in ("add", "sub", "mul", "real_div", "maximum")},
    "pow": (binary("pow"), [POSITIVE, UNIT]),
    **{
        f"{kind} of integers": (binary(kind), [NUMERATORS, DENOMINATORS])
        for kind in ("add", "sub", "mul", "maximum")
    },
    **{
        kind: (comparison(kind), [NUMERATORS, DENOMINATORS])
        for kind in ("equal", "not_equal", "greater", "greater_equal", "less", "less_equal")
    },
    **{
        f"gelu {mode}": (lambda x, mode=mode: mb.gelu(x=x, mode=mode), [X])
        for mode in ("EXACT", "TANH_APPROXIMATION", "SIGMOID_APPROXIMATION")
    },
    **{kind: (unary(kind), [X]) for kind in ("relu", "sigmoid", "softplus")},
    "softmax": (lambda x: mb.softmax(x=x, axis=1), [X]),
    **{
        kind: (reduction(kind, axes=[0, -1]), [POSITIVE.reshape(2, 1, 3)])
        for kind in ("reduce_l2_norm", "reduce_max", "reduce_mean", "reduce_sum")
    },
    "reduce_sum kept": (reduction("reduce_sum", axes=[1], keep_dims=True), [X]),
    "reduce_mean of all": (reduction("reduce_mean"), [X]),
    "reduce_sum of integers": (reduction("reduce_sum", axes=[1]), [NUMERATORS]),
    "reduce_argmax": (reduction("reduce_argmax", axis=1), [X]),
    "reduce_argmax kept": (reduction("reduce_argmax", axis=-1, keep_dims=True), [X]),
    "reduce_argmax of ties": (
        reduction("reduce_argmax", axis=-1),
        [np.array([[1, 5, 5, 2], [3, 3, 3, 3]], np.int32)],
    ),
    "reshape": (lambda x: mb.reshape(x=x, shape=[4, -1]), [X]),
    "fill_like": (lambda x: mb.fill_like(ref_tensor=x, value=1.5), [X]),
    "reshape of 0": (lambda x: mb.reshape(x=x, shape=[0, -1, 1]), [X]),
    "transpose": (lambda x: mb.transpose(x=x, perm=[2, 0, -2]), [X]),
    "expand_dims": (lambda x: mb.expand_dims(x=x, axes=[-1, 1]), [X]),
    "squeeze": (lambda x: mb.squeeze(x=x, axes=[-1]), [Y]),
    "squeeze of all": (unary("squeeze"), [Y]),
    "concat": (lambda x, y: mb.concat(values=(x, y), axis=-1), [X, real(2, 3, 2, seed=3)]),
    "concat of one": (lambda x: mb.concat(values=(x,), axis=0), [X]),
    "stack": (lambda x, y: mb.stack(values=(x, y), axis=1), [X, X + 1]),
    "split evenly": (lambda x: mb.split(x=x, num_splits=2, axis=-1), [X]),
    "split by sizes": (lambda x: mb.split(x=x, split_sizes=[1, 3], axis=2), [X]),
    "tile": (lambda x: mb.tile(x=x, reps=[1, 2, 3]), [X]),
    "pad": (lambda x: mb.pad(x=x, pad=[1, 2, 0, 3], constant_val=0.5), [X]),
    "pad reflect": (lambda x: mb.pad(x=x, pad=[2, 1, 3, 2], mode="reflect"), [X]),
    "pad replicate": (lambda x: mb.pad(x=x, pad=[1, 0, 2, 1, 0, 3], mode="replicate"), [X]),
    "slice_by_index": (lambda x: mb.slice_by_index(x=x, begin=[0, 1, -3], end=[1, 3, -1]), [COUNTS]),
    "slice_by_index with masks": (
        lambda x: mb.slice_by_index(
            x=x, begin=[1, 2, 3], end=[1, 2, 2], begin_mask=[True, False, True], end_mask=[True, True, False]
        ),
        [COUNTS],
    ),
    "slice_by_index with strides": (
        lambda x: mb.slice_by_index(x=x, begin=[0, 0, 1], end=[2, 3, 4], stride=[1, 2, 2]),
        [COUNTS],
    ),
    "slice_by_index backwards": (
        lambda x: mb.slice_by_index(
            x=x, begin=[0, 2, 3], end=[2, 0, 0], stride=[1, -1, -2], end_mask=[False, False, True]
        ),
        [COUNTS],
    ),
    "slice_by_index squeezed": (
        lambda x: mb.slice_by_index(x=x, begin=[1, -2, 0], end=[0, 0, 4], squeeze_mask=[True, True, False]),
        [COUNTS],
    ),
    "gather": (lambda x, i: mb.gather(x=x, indices=i, axis=1), [COUNTS, np.array([[2, 0], [1, -1]], np.int32)]),
    "gather in batches": (
        lambda x, i: mb.gather(x=x, indices=i, axis=2, batch_dims=1),
        [COUNTS, np.array([[3, 0], [1, 1]], np.int32)],
    ),
    "select": (lambda x, y: mb.select(cond=mb.greater(x=x, y=y), a=x, b=y), [X, Y]),
    "layer_norm": (
        lambda x: mb.layer_norm(x=x, axes=[-1], gamma=real(4, seed=4), beta=real(4, seed=5), epsilon=1e-3),
        [X],
    ),
    "layer_norm across": (
        lambda x: mb.layer_norm(x=x, axes=[1], gamma=real(3, seed=4), beta=real(3, seed=5)),
        [X],
    ),
    "linear": (lambda x: mb.linear(x=x, weight=real(5, 4, seed=6), bias=real(5, seed=7)), [X]),
    "matmul": (binary("matmul"), [X, real(1, 4, 5, seed=8)]),
    "matmul transposed": (
        lambda x, y: mb.matmul(x=x, y=y, transpose_x=True, transpose_y=True),
        [X, real(5, 3, seed=8)],
    ),
    "einsum": (lambda x, y: mb.einsum(values=(x, y), equation="nchw,nwhu->nchu"), [PICTURE, real(2, 6, 1, 3)]),
    "einsum of three axes": (lambda x, y: mb.einsum(values=(x, y), equation="chw,whr->chr"), [X, real(4, 3, 5)]),
}

LATER = {
    "reshape of several 0 (iOS17)": ("iOS17", lambda x: mb.reshape(x=x, shape=[1, 0, -1, 0]), [real(2, 50)]),
    "quantize": (
        "iOS17",
        lambda x: number(
            mb.quantize(
                input=x,
                zero_point=np.array([1, 2, 3], np.int8),
                scale=np.array([0.1, 0.2, 0.01], np.float32),
                axis=1,
                output_dtype="int8",
            )
        ),
        [X],
    ),
    "scaled_dot_product_attention": (
        "iOS18",
        lambda q, k, v: mb.scaled_dot_product_attention(query=q, key=k, value=v),
        [real(2, 3, 4, seed=1), real(2, 5, 4, seed=2), real(2, 5, 6, seed=3)],
    ),
    "scaled_dot_product_attention masked": (
        "iOS18",
        lambda q, k, v: mb.scaled_dot_product_attention(query=q, key=k, value=v, attn_mask=real(3, 5, seed=4)),
        [real(2, 3, 4, seed=1), real(2, 5, 4, seed=2), real(2, 5, 6, seed=3)],
    ),
}


def agree(have, want):
    assert len(have) == len(want)
    for one, other in zip(have, want, strict=True):
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-6)


@pytest.fixture(scope="module")
def inferred(tmp_path_factory):
    """By case: what the interpreter gives and what coremltools does; a program for each system, for speed."""
    found = {}
    for opset in ("iOS16", "iOS17", "iOS18"):
        cases = OWN if opset == "iOS16" else {name: case[1:] for name, case in LATER.items() if case[0] == opset}
        build, inputs, apart = together(list(cases.values()))
        have = run(opened(tmp_path_factory.mktemp(opset), build, inputs, opset), inputs)
        want = own_values(build, inputs, opset)
        found.update(zip(cases, zip(apart(have), apart(want), strict=True), strict=True))
    return found


@pytest.mark.parametrize("name", [*OWN, *LATER])
def test_computes_what_coremltools_infers(inferred, name):
    agree(*inferred[name])


def torched(function):
    return lambda *inputs: [function(*[torch.from_numpy(each) for each in inputs]).numpy()]


KERNEL, BIAS = real(6, 4, 3, 2, seed=9), real(6, seed=10)
WEIGHT = torch.from_numpy(KERNEL)


def convolved(x, padding, **options):
    """torch's convolution of explicitly padded pictures; `padding` has left, right, top, bottom."""
    return F.conv2d(F.pad(x, padding), WEIGHT, torch.from_numpy(BIAS), **options)


OTHER = {
    "silu": (unary("silu"), [X], lambda x: [x / (1 + np.exp(-x))]),
    "conv": (
        lambda x: mb.conv(x=x, weight=KERNEL, bias=BIAS, strides=[2, 1], pad_type="custom", pad=[1, 1, 2, 2]),
        [PICTURE],
        torched(lambda x: convolved(x, (2, 2, 1, 1), stride=(2, 1))),
    ),
    "conv padded unevenly": (
        lambda x: mb.conv(x=x, weight=KERNEL, bias=BIAS, pad_type="custom", pad=[0, 1, 2, 0], dilations=[1, 2]),
        [PICTURE],
        torched(lambda x: convolved(x, (2, 0, 0, 1), dilation=(1, 2))),
    ),
    "conv same": (  # 5 by 6 with strides 2 gives 3 by 3: 1 row before, 1 behind, no column
        lambda x: mb.conv(x=x, weight=KERNEL, bias=BIAS, strides=[2, 2], pad_type="same"),
        [PICTURE],
        torched(lambda x: convolved(x, (0, 0, 1, 1), stride=2)),
    ),
    "conv same, an odd column": (
        lambda x: mb.conv(x=x, weight=KERNEL, bias=BIAS, pad_type="same"),
        [PICTURE],
        torched(lambda x: convolved(x, (0, 1, 1, 1))),
    ),
    "conv same_lower, an odd column": (
        lambda x: mb.conv(x=x, weight=KERNEL, bias=BIAS, pad_type="same_lower"),
        [PICTURE],
        torched(lambda x: convolved(x, (1, 0, 1, 1))),
    ),
    "conv in groups": (
        lambda x: mb.conv(x=x, weight=KERNEL[:, :2], groups=2),
        [PICTURE],
        torched(lambda x: F.conv2d(x, WEIGHT[:, :2], groups=2)),
    ),
    "conv of one axis": (
        lambda x: mb.conv(x=x, weight=real(5, 3, 2), bias=real(5)),
        [X],
        torched(lambda x: F.conv1d(x, torch.from_numpy(real(5, 3, 2)), torch.from_numpy(real(5)))),
    ),
    "conv of a computed weight": (
        lambda x, w: mb.conv(x=x, weight=w),
        [PICTURE, KERNEL],
        torched(lambda x, w: F.conv2d(x, w)),
    ),
    "batch_norm": (
        lambda x: mb.batch_norm(
            x=x, mean=real(4), variance=real(4, low=1), gamma=real(4, seed=1), beta=real(4, seed=2), epsilon=0.1
        ),
        [PICTURE],
        torched(
            lambda x: F.batch_norm(
                x,
                *[torch.from_numpy(each) for each in (real(4), real(4, low=1), real(4, seed=1), real(4, seed=2))],
                eps=0.1,
            )
        ),
    ),
    "concat interleaved": (
        lambda x, y: mb.concat(values=(x, y), axis=0, interleave=True),
        [np.array([[1, 2], [3, 4], [5, 6]], np.int32), np.array([[7, 8], [9, 10], [11, 12]], np.int32)],
        lambda x, y: [np.array([[1, 2], [7, 8], [3, 4], [9, 10], [5, 6], [11, 12]], np.int32)],
    ),
    "gather_nd": (
        lambda x, i: mb.gather_nd(x=x, indices=i),
        [COUNTS, np.array([[1, 2], [0, 1]], np.int32)],
        lambda x, i: [x[[1, 0], [2, 1]]],
    ),
    "gather_nd in batches": (
        lambda x, i: mb.gather_nd(x=x, indices=i, batch_dims=1),
        [COUNTS, np.array([[[2, 3]], [[0, 1]]], np.int32)],
        lambda x, i: [np.array([[x[0, 2, 3]], [x[1, 0, 1]]])],
    ),
    "upsample_nearest_neighbor": (
        lambda x: mb.upsample_nearest_neighbor(x=x, scale_factor_height=2, scale_factor_width=3),
        [PICTURE],
        torched(lambda x: F.interpolate(x, scale_factor=(2, 3), mode="nearest")),
    ),
    "upsample_nearest_neighbor to lengths that do not divide": (
        lambda x: mb.upsample_nearest_neighbor(x=x, scale_factor_height=1.6, scale_factor_width=1.5),
        [PICTURE],
        torched(lambda x: F.interpolate(x, size=(8, 9), mode="nearest")),
    ),
}


@pytest.fixture(scope="module")
def computed(tmp_path_factory):
    build, inputs, apart = together([(build, inputs) for build, inputs, _ in OTHER.values()])
    outputs = run(opened(tmp_path_factory.mktemp("other"), build, inputs), inputs)
    return dict(zip(OTHER, apart(outputs), strict=True))


@pytest.mark.parametrize("name", OTHER)
def test_computes_what_torch_or_numpy_do(computed, name):
    _, inputs, truth = OTHER[name]
    agree(computed[name], truth(*inputs))


def test_dequantize_is_scale_times_difference(tmp_path):
    def build(x):
        return mb.dequantize(input=mb.cast(x=x, dtype="int8"), zero_point=np.int8(-3), scale=np.float32(0.25))

    agree(run(opened(tmp_path, build, [NUMERATORS], "iOS17"), [NUMERATORS]), [0.25 * (NUMERATORS + np.float32(3))])


def test_an_index_out_of_range_is_refused(tmp_path):
    from sdhub.core.errors import BuildError

    inputs = [COUNTS, np.array([7], np.int32)]
    package = opened(tmp_path, lambda x, i: mb.gather(x=x, indices=i, axis=0), inputs)
    with pytest.raises(BuildError, match="operation gather"):
        run(package, inputs)

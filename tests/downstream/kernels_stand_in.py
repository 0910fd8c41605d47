"""What diffusers asks of the package `kernels` for nunchaku_lite, on the CPU, after the format's description.

Knows nothing of sdhub. Buffers between the two functions are its own affair: codes in order, one a byte pair.
"""

from types import SimpleNamespace

import torch

E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def get_kernel(*_, **__):
    return SimpleNamespace(ops=SimpleNamespace(quantize_w4a4_act_fuse_lora=quantize, gemm_w4a4=gemm))


def undone(packed, shape, steps):
    """The matrix of `shape` that `steps`, pairs of a shape and a permutation, brought into this order."""
    order = torch.arange(packed.numel()).view(shape)
    for view, axes in steps:
        order = order.reshape(view).permute(axes)
    flat = torch.empty(packed.numel(), dtype=packed.dtype)
    flat[order.reshape(-1)] = packed.reshape(-1)
    return flat.view(shape)


def weight_codes(qweight):
    rows, columns = qweight.shape[0], qweight.shape[1] * 2
    words = qweight.contiguous().view(torch.int32).view(-1, 1)
    nibbles = (words >> torch.arange(0, 32, 4)) & 15
    steps = [((rows // 128, 8, 2, 8, 1, columns // 64, 1, 2, 4, 8), (0, 5, 6, 1, 3, 8, 2, 7, 4, 9))]
    return undone(nibbles.reshape(-1), (rows, columns), steps)


def scales(packed, rows):
    groups = packed.numel() // rows
    if packed.dtype == torch.float8_e4m3fn:
        view, axes = (rows // 128, 1, 4, 4, 8, groups // 4, 4), (0, 5, 1, 4, 3, 2, 6)
        return undone(packed.view(torch.uint8), (rows, groups), [(view, axes)]).view(torch.float8_e4m3fn).float()
    steps = [((rows // 128, 1, 8, 2, 4, 2, groups), (0, 6, 1, 2, 4, 3, 5))]
    return undone(packed, (rows, groups), steps).float()


def factor(packed, *, down):
    channels, rank = packed.shape
    last = ((channels // 16, rank // 16, 2, 8, 1, 2, 4, 2), (0, 1, 3, 6, 2, 5, 4, 7))
    if down:
        first = ((rank // 16, 16, channels // 16, 16), (2, 0, 1, 3))
        return undone(packed, (rank, channels), [first, last]).float()
    first = ((channels // 16, 16, rank // 16, 16), (0, 2, 1, 3))
    return undone(packed, (channels, rank), [first, last]).float()


def quantize(x, quantized_x, ascales, proj_down, lora_act, smooth_factor, fuse_glu, nvfp4):
    assert not fuse_glu
    rows, columns = x.shape
    size = 16 if nvfp4 else 64
    half = torch.float16
    given = x.to(half)
    lora_act[:rows] = given.float() @ factor(proj_down, down=True).T
    smoothed = (given.float() / scales(smooth_factor, columns).T).to(half)
    groups = smoothed.float().view(rows, columns // size, size)
    greatest = 6.0 if nvfp4 else 7.0
    scale = groups.abs().amax(2) * (1 / greatest)
    values = torch.where(scale[..., None] > 0, groups * (1 / scale[..., None]), 0.0)
    if nvfp4:
        size_of = values.abs()
        # Half way between two the even code is taken, as IEEE 754 has it.
        up = [
            size_of > 0.25,
            size_of >= 0.75,
            size_of > 1.25,
            size_of >= 1.75,
            size_of > 2.5,
            size_of >= 3.5,
            size_of > 5,
        ]
        codes = sum(each.to(torch.int64) for each in up) + 8 * torch.signbit(values)
    else:
        codes = values.round().clamp(-8, 7).to(torch.int64) & 15
    pairs = codes.view(rows, columns // 2, 2)
    quantized_x[:rows] = (pairs[..., 0] | pairs[..., 1] << 4).to(torch.uint8)
    ascales[:, :rows] = scale.T.to(half).to(ascales.dtype) if not nvfp4 else scale.T.to(torch.float8_e4m3fn)


def gemm(act, wgt, out, qout, ascales, wscales, oscales, poolout, lora_act_in, lora_up, *rest):
    bias, act_unsigned, nvfp4, alpha, wcscales = rest[5], rest[9], rest[12], rest[13], rest[14]
    assert qout is None and oscales is None and poolout is None and not act_unsigned
    rows, outputs = out.shape
    columns = act.shape[1] * 2
    size = 16 if nvfp4 else 64
    codes = torch.stack([act[:rows] & 15, act[:rows] >> 4], dim=-1).view(rows, columns).to(torch.int64)
    weights = weight_codes(wgt).to(torch.int64)
    if nvfp4:
        values, matrix = E2M1[codes], E2M1[weights]
    else:
        values, matrix = (codes ^ 8) - 8.0, (weights ^ 8) - 8.0
    values = values.view(rows, -1, size) * ascales[:, :rows].T.float()[..., None]
    matrix = matrix.view(outputs, -1, size) * scales(wscales, outputs)[..., None]
    given = values.flatten(1) @ matrix.flatten(1).T
    if nvfp4:
        given = given * alpha.float() * scales(wcscales, outputs).T
    given = given + lora_act_in[:rows].to(torch.float16).float() @ factor(lora_up, down=False).T
    if bias is not None:
        given = given + scales(bias, outputs).T
    out[:] = given.to(torch.float16).to(out.dtype)

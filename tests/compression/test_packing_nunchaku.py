"""Nunchaku's layouts, each told one element at a time: which thread of the warp holds it, and where."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sdhub.compression.packing import (
    pack_awq,
    pack_awq_scales,
    pack_lowrank,
    pack_qweight,
    pack_scale,
    unpack_awq,
    unpack_awq_scales,
    unpack_lowrank,
    unpack_qweight,
    unpack_scale,
)
from sdhub.core.errors import UsageError


def random(low, high, *shape, seed=0):
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.int32)


def numbered(*shape):
    count = int(torch.tensor(shape).prod())
    return torch.arange(count, dtype=torch.float64).view(shape)


@pytest.mark.parametrize("signed", [True, False])
def test_weights_stand_where_the_threads_read_them(signed):
    rows, columns = 256, 384
    codes = random(-8, 8, rows, columns) if signed else random(0, 16, rows, columns)
    packed = pack_qweight(codes)
    assert packed.shape == (rows, columns // 2) and packed.dtype == torch.int8
    words = packed.view(-1).view(torch.int32).tolist()
    expected, nibbles = [0] * len(words), codes.tolist()
    for n in range(rows):
        for k in range(columns):
            tile = n // 128 * (columns // 64) + k // 64
            lane = n % 8 * 4 + k % 32 // 8
            register = n % 16 // 8 * 2 + k % 64 // 32
            word = ((tile * 8 + n % 128 // 16) * 32 + lane) * 4 + register
            expected[word] |= (nibbles[n][k] & 15) << 4 * (k % 8)
    assert [word & 0xFFFFFFFF for word in words] == expected
    assert torch.equal(unpack_qweight(packed, signed=signed).int(), codes)


def test_lanes_hold_four_16_bit_scales_each():
    packed = pack_scale(numbered(256, 2))
    assert packed.shape == (2, 256)
    flat = packed.flatten().tolist()
    for tile in range(2):
        for group in range(2):
            held = [flat[(tile * 2 + group) * 128 + 4 * lane :][:4] for lane in range(32)]
            for lane in range(32):
                first = 128 * tile + 16 * (lane // 4) + 2 * (lane % 4)
                assert held[lane] == [2.0 * n + group for n in (first, first + 1, first + 8, first + 9)]


def test_vectors_are_ordered_as_scales_of_one_group():
    packed = pack_scale(numbered(256))
    assert packed.shape == (256,)
    assert packed[:8].tolist() == [0, 1, 8, 9, 2, 3, 10, 11]
    assert packed[124:132].tolist() == [118, 119, 126, 127, 128, 129, 136, 137]


def test_lanes_hold_four_rows_of_four_fp8_scales():
    rows, groups = 256, 8
    bits = random(0, 127, rows, groups).to(torch.uint8)
    packed = pack_scale(bits.view(torch.float8_e4m3fn))
    assert packed.shape == (groups, rows) and packed.dtype == torch.float8_e4m3fn
    flat = packed.view(torch.uint8).flatten()
    for n in range(rows):
        for g in range(groups):
            tile, lane = n // 128 * (groups // 4) + g // 4, n % 8 * 4 + n % 32 // 8
            assert flat[((tile * 32 + lane) * 4 + n % 128 // 32) * 4 + g % 4] == bits[n, g]
    assert torch.equal(unpack_scale(packed).view(torch.uint8), bits)


@pytest.mark.parametrize("down", [True, False])
def test_low_rank_factors_stand_in_tiles_of_16_by_16(down):
    channels, rank = 128, 32
    factor = numbered(rank, channels) if down else numbered(channels, rank)
    packed = pack_lowrank(factor, down=down)
    assert packed.shape == (channels, rank)
    flat = packed.flatten()
    for n in range(factor.shape[0]):
        for k in range(factor.shape[1]):
            tile = k // 16 * (rank // 16) + n // 16 if down else n // 16 * (rank // 16) + k // 16
            lane = n % 8 * 4 + k % 8 // 2
            assert flat[(tile * 32 + lane) * 8 + n % 16 // 8 * 4 + k % 16 // 8 * 2 + k % 2] == factor[n, k]


def test_awq_weights_stand_where_the_kernel_reads_them():
    rows, columns = 8, 192
    codes = random(0, 16, rows, columns)
    packed = pack_awq(codes)
    assert packed.shape == (rows // 4, columns // 2) and packed.dtype == torch.int32
    for n in range(rows):
        for k in range(columns):
            word = packed[n // 4, k // 64 * 32 + n % 4 * 8 + k % 64 // 32 * 4 + k % 8 // 2]
            assert int(word) >> 4 * (k % 32 // 8 + k % 2 * 4) & 15 == codes[n, k]
    assert torch.equal(unpack_awq(packed).int(), codes)


def test_awq_zeros_give_the_weight_in_one_fused_step():
    scale, zero = torch.rand(8, 3).half() + 0.5, random(0, 16, 8, 3)
    wscales, wzeros = pack_awq_scales(scale, zero)
    assert wscales.shape == wzeros.shape == (3, 8) and wzeros.dtype == torch.float16
    for code in (0, 7, 15):
        exact = (code - zero).double() * scale.double()
        assert torch.allclose((code * wscales.double() + wzeros.double()).T, exact, atol=0.02)
    again, zeros = unpack_awq_scales(wscales, wzeros)
    assert torch.equal(again, scale) and torch.equal(zeros.round().int(), zero)


@settings(max_examples=20, deadline=None)
@given(
    rows=st.integers(1, 3),
    columns=st.integers(1, 3),
    rank=st.integers(0, 3),
    kind=st.sampled_from([torch.float16, torch.bfloat16, torch.float32]),
    seed=st.integers(0, 9),
)
def test_unpacking_undoes_packing(rows, columns, rank, kind, seed):
    n, k, r = 128 * rows, 128 * columns, 16 * rank
    codes = random(-8, 8, n, k, seed=seed)
    assert torch.equal(unpack_qweight(pack_qweight(codes), signed=True).int(), codes)
    assert torch.equal(unpack_awq(pack_awq(codes + 8)).int(), codes + 8)
    for tensor in (torch.randn(n, k // 64), torch.randn(n), torch.randn(n, k // 16).to(torch.float8_e4m3fn)):
        tensor = tensor if tensor.dtype == torch.float8_e4m3fn else tensor.to(kind)
        assert torch.equal(unpack_scale(pack_scale(tensor)).float(), tensor.float())
    for down, shape in ((True, (r, k)), (False, (n, r))):
        factor = torch.randn(shape).to(kind)
        assert torch.equal(unpack_lowrank(pack_lowrank(factor, down=down), down=down), factor)


@pytest.mark.parametrize(
    ("wrong", "multiple"),
    [
        (lambda: pack_qweight(random(0, 8, 128, 64)), "128 by a multiple of 128"),
        (lambda: pack_qweight(random(0, 8, 320, 128)), "128 by a multiple of 128"),
        (lambda: unpack_qweight(torch.zeros(128, 32, dtype=torch.int8), signed=True), "of 64"),
        (lambda: pack_scale(torch.ones(128, 3)), "128 by a multiple of 2"),
        (lambda: pack_scale(torch.ones(128, 4).to(torch.float8_e4m3fn)), "128 by a multiple of 8"),
        (lambda: pack_scale(torch.ones(320)), "multiple of 128"),
        (lambda: unpack_scale(torch.ones(3, 128)), "of 2 by a multiple of 128"),
        (lambda: unpack_scale(torch.ones(64)), "multiple of 128"),
        (lambda: pack_lowrank(torch.ones(24, 128), down=True), "16 by a multiple of 128"),
        (lambda: pack_lowrank(torch.ones(128, 24), down=False), "128 by a multiple of 16"),
        (lambda: unpack_lowrank(torch.ones(64, 16), down=True), "128 by a multiple of 16"),
        (lambda: pack_awq(random(0, 8, 4, 32)), "4 by a multiple of 64"),
        (lambda: unpack_awq(torch.zeros(1, 16, dtype=torch.int32)), "32 columns"),
        (lambda: pack_qweight(random(0, 17, 128, 128) * 0 + 16), "0 to 15"),
        (lambda: pack_qweight(random(-1, 9, 128, 128)), "-8 to 7"),
        (lambda: pack_awq(random(0, 1, 4, 64) - 1), "0 to 15"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_multiple(wrong, multiple):
    with pytest.raises(UsageError) as caught:
        wrong()
    assert multiple in caught.value.hint


def test_scales_and_zeros_of_different_shapes_are_refused():
    with pytest.raises(UsageError):
        pack_awq_scales(torch.ones(4, 2), torch.ones(4, 1))
    with pytest.raises(UsageError):
        unpack_awq_scales(torch.ones(4), torch.ones(4))

"""Bit packing, against coremltools, openvino, SDNQ's own bytes and the layouts told one code at a time."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sdhub.compression.packing import pack_bits, pack_sdnq, packed_size, unpack_bits, unpack_sdnq
from sdhub.core.errors import UsageError

WIDTHS = range(1, 9)
# What sdnq 0.2.8 packs (i·i·7 + i·5 + i // 3) mod 2^bits, i from 0 to 15, into.
SDNQ_BYTES = {
    1: "388e",
    2: "e0055ee0",
    3: "382cce8ac7e1",
    4: "c0f695cc7a914076",
    5: "208c86afe58ac7f18910",
    6: "00cce6c5c91c2aa771f064e6",
    7: "808ca6cf85491ceae7f109b0e4a6",
}


def codes_of(count, bits, *, signed=False, seed=0):
    codes = torch.randint(0, 1 << bits, (count,), generator=torch.Generator().manual_seed(seed))
    return (codes - (1 << bits - 1)).to(torch.int8) if signed else codes.to(torch.uint8)


def test_low_bits_come_first():
    assert pack_bits(torch.tensor([1, 0, 1, 1, 0, 0, 0, 1, 1]), 1).tolist() == [0b10001101, 1]
    assert pack_bits(torch.tensor([1, 2, 3, 0, 2]), 2).tolist() == [0b00111001, 2]
    assert pack_bits(torch.tensor([5, 1, 7]), 3).tolist() == [0b11_001_101, 0b1]
    assert pack_bits(torch.tensor([0x3A, 0x15, 0x2C, 0x01]), 6).tolist() == [0x7A, 0xC5, 0x06]
    assert pack_bits(torch.tensor([1, 2, 3]), 4).tolist() == [0x21, 0x03]
    assert pack_bits(torch.tensor([-1, 7, -8]), 4, signed=True).tolist() == [0x7F, 0x08]
    assert pack_bits(torch.tensor([-128, 127]), 8, signed=True).tolist() == [0x80, 0x7F]


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("count", [1, 7, 64, 333])
def test_bytes_are_those_of_coremltools(bits, count, signed):
    from coremltools.optimize._utils import pack_elements_into_bits, restore_elements_from_packed_bits

    codes = codes_of(count, bits, signed=signed)
    packed = pack_bits(codes, bits, signed=signed)
    assert np.array_equal(packed.numpy(), pack_elements_into_bits(codes.numpy(), bits))
    theirs = restore_elements_from_packed_bits(packed.numpy(), bits, count, signed)
    assert np.array_equal(theirs, unpack_bits(packed, bits, (count,), signed=signed).numpy())


@pytest.mark.parametrize("bits", [1, 2, 4, 6, 8])
def test_palettes_decompress_in_coremltools(bits):
    from coremltools.converters.mil.mil.ops.defs.iOS16 import constexpr_lut_to_dense

    codes, palette = codes_of(5 * 7, bits).view(5, 7), torch.randn(1 << bits)
    dense = constexpr_lut_to_dense.decompress(palette.numpy(), pack_bits(codes, bits).numpy(), np.uint32([5, 7]))
    assert np.array_equal(dense, palette[codes.long()].numpy())


@pytest.mark.parametrize("signed", [False, True])
def test_openvino_reads_pairs(signed):
    import openvino

    kind = openvino.Type.i4 if signed else openvino.Type.u4
    codes = codes_of(6 * 8, 4, signed=signed).view(6, 8)
    tensor = openvino.Tensor(pack_bits(codes, 4, signed=signed).numpy(), [6, 8], kind)
    constant = openvino.opset13.constant(tensor)
    model = openvino.Model([openvino.opset13.convert(constant, "f32")], [])
    read = openvino.compile_model(model, "CPU")({})[0]
    assert np.array_equal(read, codes.float().numpy())


@settings(max_examples=60, deadline=None)
@given(
    bits=st.integers(1, 8),
    signed=st.booleans(),
    seed=st.integers(0, 99),
    shape=st.lists(st.integers(0, 9), max_size=3),
)
def test_unpacking_undoes_packing(bits, signed, seed, shape):
    count = int(np.prod(shape, dtype=int))
    codes = codes_of(count, bits, signed=signed, seed=seed).view(shape)
    packed = pack_bits(codes, bits, signed=signed)
    assert packed.dtype == torch.uint8 and packed.shape == (packed_size(count, bits),)
    again = unpack_bits(packed, bits, shape, signed=signed)
    assert again.dtype == codes.dtype and torch.equal(again, codes)
    blocks = codes_of(count * 8, bits, signed=signed, seed=seed).view(*shape, 8)
    again = unpack_sdnq(pack_sdnq(blocks, bits, signed=signed), bits, blocks.shape, signed=signed)
    assert again.dtype == blocks.dtype and torch.equal(again, blocks)


@pytest.mark.parametrize("bits", range(1, 8))
def test_bytes_are_those_of_sdnq(bits):
    codes = torch.tensor([(i * i * 7 + i * 5 + i // 3) % (1 << bits) for i in range(16)])
    packed = pack_sdnq(codes, bits)
    assert bytes(packed.flatten().tolist()).hex() == SDNQ_BYTES[bits]
    assert packed.ndim == (1 if bits in (1, 2, 4) else 2)
    assert torch.equal(pack_sdnq(codes - (1 << bits - 1), bits, signed=True), packed)


def test_eight_bits_of_sdnq_keep_their_shape():
    codes = codes_of(12, 8, signed=True).view(3, 4)
    assert torch.equal(pack_sdnq(codes, 8, signed=True), codes)
    assert pack_sdnq(codes_of(12, 8).view(3, 4), 8).dtype == torch.uint8


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: pack_bits(torch.tensor([4]), 2),
        lambda: pack_bits(torch.tensor([-1]), 2),
        lambda: pack_bits(torch.tensor([8]), 4, signed=True),
        lambda: pack_bits(torch.tensor([1]), 9),
        lambda: pack_bits(torch.tensor([1.0]), 4),
        lambda: unpack_bits(torch.zeros(3, dtype=torch.uint8), 4, (7,)),
        lambda: unpack_bits(torch.zeros(4), 4, (8,)),
        lambda: pack_sdnq(torch.zeros(12, dtype=torch.uint8), 3),
        lambda: pack_sdnq(torch.full((8,), 8), 3),
        lambda: pack_sdnq(torch.full((8,), 256), 8),
        lambda: pack_sdnq(torch.zeros(8, dtype=torch.uint8), 9),
        lambda: unpack_sdnq(torch.zeros(4, dtype=torch.uint8), 3, (8,)),
        lambda: unpack_sdnq(torch.zeros(4, dtype=torch.uint8), 0, (8,)),
    ],
)
def test_what_does_not_fit_is_refused(wrong):
    with pytest.raises(UsageError):
        wrong()

"""Weight files and packed integers, against coremltools' own writer and packing."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from sdhub.backends.coreml.mil.packing import unpack
from sdhub.backends.coreml.mil.types import SCALARS, TensorType
from sdhub.backends.coreml.mil.weights import WeightFile
from sdhub.core.errors import BuildError

pytest.importorskip("coremltools")

RNG = np.random.default_rng(0)
KINDS = {  # kind: (numpy type, least, greatest)
    **{f"uint{bits}": (np.uint8, 0, 2**bits - 1) for bits in (1, 2, 3, 4, 6, 8)},
    "int4": (np.int8, -8, 7),
    "int8": (np.int8, -128, 127),
    **{kind: (kind, np.iinfo(kind).min, np.iinfo(kind).max) for kind in ("int16", "uint16", "int32", "uint32")},
}


def integers(kind, count):
    dtype, low, high = KINDS[kind]
    values = RNG.integers(low, high, count, endpoint=True).astype(dtype)
    values[:2] = low, high
    return values


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6, 8])
@pytest.mark.parametrize("count", [1, 7, 8, 101])
def test_unpacks_as_coremltools_packs(bits, count):
    from coremltools.optimize import _utils

    values = RNG.integers(0, 2**bits, count).astype(np.uint8)
    packed = _utils.pack_elements_into_bits(values, bits)
    assert np.array_equal(unpack(packed, bits, count), values)


def test_unpacks_signed_integers_as_coremltools_packs():
    from coremltools.optimize import _utils

    values = np.arange(-8, 8, dtype=np.int8)
    assert np.array_equal(unpack(_utils.pack_elements_into_bits(values, 4), 4, 16, signed=True), values)


def test_refuses_bytes_that_do_not_fit():
    with pytest.raises(ValueError, match="do not fit"):
        unpack(np.zeros(3, np.uint8), 6, 5)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A file with one blob of each type by coremltools' writer: path, and values and offset by kind."""
    from coremltools import libmilstoragepython
    from coremltools.converters.mil.mil import types

    path = tmp_path_factory.mktemp("weights") / "weight.bin"
    writer = libmilstoragepython._BlobStorageWriter(str(path))
    blobs = {}
    for kind in KINDS:
        values = integers(kind, 37)
        typed = values.astype(types.nptype_from_builtin(types.string_to_builtin(kind)))
        blobs[kind] = (values, getattr(writer, f"write_{kind}_data")(typed))
    halves = RNG.normal(size=37).astype(np.float16)
    blobs["fp16"] = (halves, writer.write_fp16_data(halves.view(np.uint16)))
    singles = RNG.normal(size=37).astype(np.float32)
    blobs["fp32"] = (singles, writer.write_float_data(singles))
    del writer
    return path, blobs


@pytest.mark.parametrize("kind", [*KINDS, "fp16", "fp32"])
def test_reads_what_coremltools_writes(written, kind):
    path, blobs = written
    values, offset = blobs[kind]
    assert np.array_equal(WeightFile(path).read(offset, TensorType(SCALARS[kind], (37,))), values)


HALF = TensorType(SCALARS["fp16"], (3, 4))


def file_of(tmp_path, *, count=1, version=2, sentinel=0xDEADBEEF, code=1, size=24, start=128, data=bytes(24)):
    path = tmp_path / "weight.bin"
    header = struct.pack("<II56x", count, version)
    path.write_bytes(header + struct.pack("<IIQQQ32x", sentinel, code, size, start, 0) + data)
    return path


def test_reads_the_format_as_it_is_written_down(tmp_path):
    values = np.arange(12, dtype="<f2")
    file = WeightFile(file_of(tmp_path, data=values.tobytes()))
    assert np.array_equal(file.read(64, HALF), values.reshape(3, 4))
    file.check()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 1}, "version 1 of the blob format"),
        ({"sentinel": 0xDEADBEAF}, "begins with 0xdeadbeaf instead of 0xdeadbeef"),
        ({"code": 2}, r"is fp32, while the program says fp16 \[3, 4\]"),
        ({"code": 99}, "is data type 99"),
        ({"size": 22}, "has 22 bytes, while fp16 .* takes 24"),
        ({"data": bytes(20)}, "points to 24 bytes at 128, in a file of 148 bytes"),
        ({"start": 2**40}, "points to 24 bytes"),
        ({"start": 0}, "points to 24 bytes at 0"),
        ({"start": 64}, "blobs overlap at byte 64"),
        ({"count": 0}, "counts 0 blobs, the program uses 1"),
    ],
)
def test_refuses_a_broken_file(tmp_path, change, message):
    with pytest.raises(BuildError, match=message) as raised:
        file = WeightFile(file_of(tmp_path, **change))
        file.locate(64, HALF)
        file.check()
    assert "weight.bin" in raised.value.message


@pytest.mark.parametrize(
    ("offset", "message"), [(0, "cannot be"), (100, "cannot be"), (2**20, "ends before the metadata at 1048576")]
)
def test_refuses_an_offset_that_cannot_be(tmp_path, offset, message):
    with pytest.raises(BuildError, match=message):
        WeightFile(file_of(tmp_path)).locate(offset, HALF)


def test_refuses_a_file_without_a_header(tmp_path):
    path = tmp_path / "weight.bin"
    path.write_bytes(b"short")
    with pytest.raises(BuildError, match="has 5 bytes and ends before its header"):
        WeightFile(path)


def test_refuses_a_type_that_files_cannot_hold(tmp_path):
    with pytest.raises(BuildError, match="cannot hold"):
        WeightFile(file_of(tmp_path)).locate(64, TensorType(SCALARS["int64"], (3,)))


def test_a_file_that_shrinks_meanwhile_is_an_error(tmp_path):
    path = file_of(tmp_path)
    file = WeightFile(path)
    file.locate(64, HALF)
    path.write_bytes(path.read_bytes()[:140])
    with pytest.raises(BuildError, match="ends inside the blob at 64"):
        file.read(64, HALF)

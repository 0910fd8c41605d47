"""The Xet upload formats, against bytes made by hand and against noise."""

from __future__ import annotations

import contextlib
import hashlib
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as some

from sdhub.hub.xet.formats import Segment, XetError, Xorb, check_xorb, hash_text, parse_shard
from sdhub.hub.xet.lz4 import Lz4Error, decompress_frame
from tests.hub.web import Browser, lfs

FRAME = struct.pack("<IBBB", 0x184D2204, 0x60, 0x40, 0x82)
TAG = b"HFRepoMetaData" + bytes(
    [0, 85, 105, 103, 69, 106, 123, 129, 87, 131, 165, 189, 217, 92, 205, 209, 74, 169]
)


def frame(*blocks: tuple[bytes, bool]) -> bytes:
    parts = [struct.pack("<I", len(data) | (0 if packed else 1 << 31)) + data for data, packed in blocks]
    return FRAME + b"".join(parts) + b"\0\0\0\0"


def chunk(stored: bytes, size: int, scheme: int = 0) -> bytes:
    return b"\0" + len(stored).to_bytes(3, "little") + bytes([scheme]) + size.to_bytes(3, "little") + stored


def shard(xorb: bytes, content: bytes, chunks: int, sha256: bytes | None = None) -> bytes:
    digest = sha256 or hashlib.sha256(content).digest()
    swapped = b"".join(digest[part : part + 8][::-1] for part in range(0, 32, 8))
    entries = [
        TAG + struct.pack("<QQ", 2, 0),
        b"\x11" * 32 + struct.pack("<IIQ", 1 << 30, 1, 0),
        xorb + struct.pack("<IIII", 0, len(content), 0, chunks),
        swapped + bytes(16),
        b"\xff" * 32 + bytes(16),
        b"\xff" * 32 + bytes(16),
    ]
    return b"".join(entries)


def test_lz4_by_hand() -> None:
    # 4 literals "abcd", a match of 12 at offset 4 (overlapping), then the 12 literals that end a block
    block = bytes([0x48]) + b"abcd" + b"\x04\x00" + bytes([0xC0]) + b"!" * 12
    assert decompress_frame(frame((block, True)), 100) == b"abcd" * 4 + b"!" * 12
    # lengths over 15 continue in further bytes
    long = bytes([0xF0, 255, 30]) + b"x" * 300
    assert decompress_frame(frame((long, True), (b"raw", False)), 1000) == b"x" * 300 + b"raw"


def test_lz4_refuses() -> None:
    bomb = bytes([0x1F]) + b"a" + b"\x01\x00" + b"\xff" * 5000 + b"\x00" + bytes([0x10]) + b"!"
    for data in (
        frame((bomb, True)),
        frame((bytes([0x14]) + b"a" + b"\x05\x00" + b"\x10!", True)),
        frame((bytes([0x14]) + b"a" + b"\x00\x00" + b"\x10!", True)),
        frame((b"x" * 2000, False)),
        FRAME + b"\xff\x00\x00\x00abc",
        b"PK\x03\x04" + bytes(20),
    ):
        with pytest.raises(Lz4Error):
            decompress_frame(data, 1000)


@given(some.binary(max_size=300))
def test_noise_is_refused_cleanly(data: bytes) -> None:
    for read in (
        lambda: decompress_frame(FRAME + data, 1000),
        lambda: parse_shard(TAG + struct.pack("<QQ", 2, 0) + data),
    ):
        with contextlib.suppress(Lz4Error, XetError):
            read()


def test_grouped_chunks(tmp_path: Path) -> None:
    content = bytes(range(10))
    grouped = content[0::4] + content[1::4] + content[2::4] + content[3::4]
    path = tmp_path / "xorb"
    path.write_bytes(chunk(frame((grouped, False)), 10, 2) + chunk(b"plain", 5) + b"XETBLOB" + bytes(40))
    assert Xorb(path).read(Segment("", 0, 2, 15)) == content + b"plain"
    for segment in (Segment("", 0, 3, 15), Segment("", 1, 1, 0), Segment("", 0, 2, 14)):
        with pytest.raises(XetError):
            Xorb(path).read(segment)


@pytest.mark.parametrize(
    "data", [b"", b"\0\0\0", chunk(b"abc", 3)[:-1], chunk(b"abc", 2**18), b"\x01" + bytes(20)]
)
def test_broken_xorbs(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "xorb").write_bytes(data)
    with pytest.raises(XetError):
        check_xorb(tmp_path / "xorb")


def test_an_upload_by_hand(web: Browser, visitor: Browser, repo: str) -> None:
    address = f"/api/models/{repo}/xet-write-token/main"
    assert visitor.http.get(address).status_code == 401
    token = web.http.get(address)
    place, key = token.headers["X-Xet-Cas-Url"], token.headers["X-Xet-Access-Token"]
    assert token.json()["casUrl"] == place
    content, raw = b"some weights" * 50, bytes(range(32))
    name = hash_text(raw)
    xet = Browser(place, key).http

    assert Browser(place, "wrong").http.post("/v1/shards", content=b"x").status_code == 401
    assert xet.get(f"/v1/chunks/default-merkledb/{name}").status_code == 404
    assert xet.post("/v1/shards", content=shard(raw, content, 1)).status_code == 400, "the xorb is not there yet"
    assert xet.post(f"/v1/xorbs/default/{name}", content=b"not a xorb").status_code == 400
    assert xet.post("/v1/xorbs/default/..%2F..%2Fx", content=chunk(content, 600)).status_code == 400
    assert xet.post(f"/v1/xorbs/default/{name}", content=chunk(content, 600)).json() == {"was_inserted": True}
    other = shard(raw, content, 1, sha256=bytes(32))
    assert xet.post("/v1/shards", content=other).status_code == 400
    assert web.commit(repo, lfs("w.bin", content)).status_code == 400
    assert xet.post("/v1/shards", content=shard(raw, content, 1)).json() == {"result": 1}
    assert web.commit(repo, lfs("w.bin", content)).status_code == 200
    assert web.http.get(f"/{repo}/resolve/main/w.bin").content == content

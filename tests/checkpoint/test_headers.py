from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.numpy import deserialize, save

from sdhub.checkpoint.headers import MAX_HEADER, header_length, parse_header, read_header
from sdhub.core.errors import SourceError
from sdhub.demo import emoji_sd


def parse(content: bytes) -> Any:
    length = header_length(content[:8], len(content), "x")
    return parse_header(content[8 : 8 + length], len(content), "x")


def file_of(document: Any, data: int) -> bytes:
    raw = document if isinstance(document, bytes) else json.dumps(document).encode()
    return len(raw).to_bytes(8, "little") + raw + bytes(data)


def tensor(dtype: str = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def test_reads_what_the_library_writes() -> None:
    arrays = {
        "a": np.zeros((2, 3), np.float16),
        "b": np.zeros((), np.float32),
        "c": np.zeros((4, 0), np.int8),
        "d": np.zeros((5,), np.int64),
    }
    header = parse(save(arrays, metadata={"k": "v"}))
    assert {name: entry.shape for name, entry in header.tensors.items()} == {
        name: array.shape for name, array in arrays.items()
    }
    assert {name: entry.dtype for name, entry in header.tensors.items()} == {
        name: array.dtype.name for name, array in arrays.items()
    }
    assert sum(entry.bytes for entry in header.tensors.values()) == sum(each.nbytes for each in arrays.values())
    assert header.metadata == {"k": "v"}


def test_reads_no_byte_behind_the_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = emoji_sd() / "unet/diffusion_pytorch_model.safetensors"
    counts = []
    opened = Path.open

    def watching(self: Path, *args: Any, **kwargs: Any) -> Any:
        stream = opened(self, *args, **{**kwargs, "buffering": 0})
        read = stream.read

        class Watched:
            def __enter__(self) -> Watched:
                return self

            def __exit__(self, *_: object) -> None:
                stream.close()

            def read(self, size: int) -> bytes:
                counts.append(size)
                return bytes(read(size))

        return Watched()

    monkeypatch.setattr(Path, "open", watching)
    header = read_header(path)
    length = int.from_bytes(opened(path, "rb").read(8), "little")
    assert counts == [8, length]
    assert sum(entry.elements for entry in header.tensors.values()) == 16_717_060


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "too short"),
        (b"\x00" * 8, "too short"),
        (b"\x00" * 20, "cut off"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", "Git LFS pointer"),
        ((MAX_HEADER + 1).to_bytes(8, "little") + b"{}" * 10, "100 MB"),
        (b"\xff" * 8 + b"{}", "100 MB"),
        ((50).to_bytes(8, "little") + b"{}", "cut off"),
        (b"PK\x03\x04" + bytes(100), "cut off"),
        (b"\x80\x02}q\x00." + bytes(100), "100 MB"),
        (file_of(b"[]", 0), "no safetensors"),
        (file_of(b" {}", 0), "no safetensors"),
        (file_of(b'{"a": 1, "a": 2}', 0), "twice"),
        (file_of({"a": 3}, 0), "needs dtype"),
        (file_of({"a": {**tensor(), "extra": 1}}, 8), "needs dtype"),
        (file_of({"a": tensor(offsets=[0, 8, 9])}, 8), "offsets"),
        (file_of({"a": tensor(offsets=[0, True])}, 8), "offsets"),
        (file_of({"a": tensor(offsets=[-8, 0])}, 8), "offsets"),
        (file_of({"a": tensor(offsets=[8, 0])}, 8), "ends before"),
        (file_of({"a": tensor(offsets=[4, 12])}, 12), "gap"),
        (file_of({"a": tensor(), "b": tensor()}, 8), "overlap"),
        (file_of({"a": tensor(), "b": tensor(offsets=[16, 24])}, 24), "gap"),
        (file_of({"a": tensor("F99")}, 8), "unknown dtype"),
        (file_of({"a": tensor(["F32"])}, 8), "unknown dtype"),  # type: ignore[arg-type]
        (file_of({"a": tensor(shape=[3])}, 8), "does not fill"),
        (file_of({"a": tensor(shape=[-2])}, 8), "shape"),
        (file_of({"a": tensor(shape=[2.0])}, 8), "shape"),
        (file_of({"a": tensor(shape=[1] * 99)}, 8), "shape"),
        (file_of({"a": tensor(shape=[2**62, 2**62])}, 8), "does not fill"),
        (file_of({"a": tensor()}, 7), "has"),
        (file_of({"a": tensor()}, 9), "has"),
        (file_of({"__metadata__": {"a": 1}}, 0), "__metadata__"),
        (file_of({"__metadata__": []}, 0), "__metadata__"),
    ],
)
def test_broken_files_are_refused(content: bytes, said: str) -> None:
    with pytest.raises(SourceError, match=said) as caught:
        parse(content)
    assert caught.value.message.isprintable() and caught.value.hint


@settings(max_examples=300, deadline=None)
@given(
    st.dictionaries(
        st.text(max_size=3),
        st.fixed_dictionaries(
            {
                "dtype": st.sampled_from(["F32", "F16", "I8", "X"]),
                "shape": st.lists(st.integers(0, 3), max_size=2),
                "data_offsets": st.lists(st.integers(0, 12), min_size=2, max_size=2),
            }
        ),
        max_size=3,
    ),
    st.integers(0, 12),
)
def test_nothing_is_accepted_that_the_library_refuses(document: dict[str, Any], data: int) -> None:
    content = file_of(document, data)
    try:
        ours = parse(content)
    except SourceError:
        return
    try:
        theirs = dict(deserialize(content))
    except SafetensorError:
        pytest.fail("the library refuses what was accepted")
    assert {name: list(entry.shape) for name, entry in ours.tensors.items()} == {
        name: entry["shape"] for name, entry in theirs.items()
    }

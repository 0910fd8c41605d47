"""Parts joined into shards, read by safetensors' own library."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from sdhub.backends import parts as parts_module
from sdhub.backends.parts import Parts
from sdhub.core.errors import BuildError

TENSORS = {
    "a.weight": torch.arange(12, dtype=torch.uint8).view(3, 4),
    "a.scale": torch.randn(3, 1).half(),
    "b.weight": torch.randn(5, 7),
    "b.bias": torch.randn(5).bfloat16(),
    "c.odd": torch.tensor([1], dtype=torch.int8),
    "c.scales": torch.randn(4, 2).to(torch.float8_e4m3fn),
    "d.ids": torch.arange(3),
}


def fill(parts):
    for layer in ("a", "b", "c", "d"):
        parts.put(layer, {name: each for name, each in TENSORS.items() if name.startswith(layer)})


def same(loaded):
    assert set(loaded) == set(TENSORS)
    for name, tensor in loaded.items():
        assert tensor.dtype == TENSORS[name].dtype
        assert torch.equal(tensor.view(torch.uint8), TENSORS[name].view(torch.uint8)), name


def test_one_file_has_every_tensor_and_the_metadata(tmp_path):
    parts = Parts(tmp_path / "parts")
    fill(parts)
    (path,) = parts.join(tmp_path, "model", metadata={"format": "pt"})
    assert path.name == "model.safetensors"
    assert not (tmp_path / "parts").exists()
    same(load_file(path))
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_shards_have_an_index(tmp_path):
    parts = Parts(tmp_path / "parts")
    fill(parts)
    paths = parts.join(tmp_path, "model", metadata={}, shard=100)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert len(paths) > 1
    loaded = {}
    for path in paths:
        found = load_file(path)
        assert (
            sum(each.numel() * each.element_size() for each in found.values()) <= 140
        )  # one tensor alone may exceed
        assert all(index["weight_map"][name] == path.name for name in found)
        loaded |= found
    same(loaded)
    assert index["metadata"]["total_size"] == sum(each.numel() * each.element_size() for each in TENSORS.values())


def test_a_new_start_finds_what_is_written(tmp_path):
    Parts(tmp_path / "parts").put("a", {"a.weight": torch.zeros(2)}, {"error": "0.5"})
    again = Parts(tmp_path / "parts")
    assert again.has("a")
    assert not again.has("b")
    assert again.notes("a")["error"] == "0.5"


@pytest.mark.parametrize("shard", [1, 10**9])
def test_the_same_tensors_give_the_same_bytes(tmp_path, shard):
    written = []
    for name in ("one", "two"):
        parts = Parts(tmp_path / name / "parts")
        for layer in ("d", "c", "b", "a") if name == "two" else ("a", "b", "c", "d"):
            parts.put(layer, {key: each for key, each in TENSORS.items() if key.startswith(layer)})
        paths = parts.join(tmp_path / name, "model", metadata={"format": "pt"}, shard=shard)
        written.append([path.read_bytes() for path in paths])
    assert written[0] == written[1]


def test_what_does_not_arrive_is_told(tmp_path, monkeypatch):
    """A byte of the middle of the file turned while it is written."""
    copy = parts_module._copy

    def broken(source, target, size):
        copy(source, target, size)
        if size == TENSORS["b.weight"].numel() * 4:
            target.seek(-1, 1)
            target.write(b"\x7f")

    parts = Parts(tmp_path / "parts")
    fill(parts)
    monkeypatch.setattr(parts_module, "_copy", broken)
    with pytest.raises(BuildError, match=r"b\.weight was not written"):
        parts.join(tmp_path, "model", metadata={})
    assert (tmp_path / "parts").exists()

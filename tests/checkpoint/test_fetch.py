from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from sdhub.checkpoint import fetch as module
from sdhub.checkpoint.checkpoint import Source
from sdhub.checkpoint.fetch import fetch, fingerprint, require_unchanged
from sdhub.checkpoint.inspect import inspect
from sdhub.checkpoint.source import parse_source
from sdhub.core.errors import SdhubError, SourceError
from sdhub.demo import emoji_sd
from tests.checkpoint.test_single_file import SD1
from tests.checkpoint.tiny import safetensors_bytes, skeleton, write


def mark(root: Path) -> str:
    return fingerprint(inspect(Source("folder", str(root))))


def test_a_fingerprint_is_that_of_the_bytes(tmp_path: Path) -> None:
    root = skeleton(tmp_path / "a")
    first = mark(root)
    assert len(first) == 64 and int(first, 16)
    assert mark(Path(shutil.copytree(root, tmp_path / "b"))) == first
    write(root / "README.md", "# not read")
    write(root / "unet" / "unused.bin", b"x")
    assert mark(root) == first
    write(root / "vae" / "diffusion_pytorch_model.safetensors", safetensors_bytes({"w": ("F16", (3,))}))
    assert mark(root) != first


def test_a_moved_byte_changes_the_fingerprint(tmp_path: Path) -> None:
    root = skeleton(tmp_path / "a")
    first = mark(root)
    path = root / "unet" / "diffusion_pytorch_model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert mark(root) != first


def test_the_fingerprint_is_the_documented_hash(tmp_path: Path) -> None:
    root = skeleton(tmp_path / "a")
    checkpoint = inspect(Source("folder", str(root)))
    files = {path: hashlib.sha256((root / path).read_bytes()).hexdigest() for path in checkpoint.files}
    document = {"commit": None, "config": None, "files": files, "loras": []}
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
    assert fingerprint(checkpoint) == hashlib.sha256(canonical).hexdigest()


def test_single_files_and_their_configs(tmp_path: Path) -> None:
    path = write(tmp_path / "m.safetensors", safetensors_bytes(SD1))
    marks = set()
    for config in (emoji_sd(), skeleton(tmp_path / "c")):
        checkpoint = inspect(parse_source(str(path), config=str(config)))
        assert fetch(checkpoint) == path
        marks.add(fingerprint(checkpoint))
    assert len(marks) == 2


def test_local_folders_are_used_where_they_lie() -> None:
    assert fetch(inspect(parse_source("demo"))) == emoji_sd()


def test_what_changed_since_inspection_is_told(tmp_path: Path) -> None:
    checkpoint = inspect(Source("folder", str(skeleton(tmp_path))))
    write(tmp_path / "vae" / "config.json", {"more": 1})
    with pytest.raises(SourceError, match="when it was inspected"):
        fetch(checkpoint)
    (tmp_path / "vae" / "config.json").unlink()
    with pytest.raises(SourceError, match="is gone"):
        fetch(checkpoint)
    with pytest.raises(SourceError, match="is gone"):
        fingerprint(checkpoint)


def test_files_that_were_written_or_replaced_since_are_told_whatever_their_size(tmp_path: Path) -> None:
    checkpoint = inspect(Source("folder", str(skeleton(tmp_path))))
    require_unchanged(checkpoint)
    path = tmp_path / "vae" / "config.json"
    content, times = path.read_bytes(), path.stat()
    path.rename(tmp_path / "former")
    path.write_bytes(content)  # the same bytes, of the same age, in another file
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(SourceError, match=r"vae/config\.json changed since it was inspected"):
        require_unchanged(checkpoint)
    checkpoint = inspect(Source("folder", str(tmp_path)))
    path.write_bytes(bytes(reversed(content)))
    with pytest.raises(SourceError, match="changed since"):
        require_unchanged(checkpoint)
    path.unlink()
    with pytest.raises(SourceError, match="is gone"):
        require_unchanged(checkpoint)


def test_disk_space(monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 1_000

    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: Usage)
    module._check_space(1_000)
    with pytest.raises(SdhubError, match="GB free") as caught:
        module._check_space(10**9)
    assert "HF_HOME" in caught.value.hint


@pytest.mark.parametrize("path", ["unet/a[1].safetensors", "a*b", "a?b", "[a]", "plain.json"])
def test_patterns_match_one_file_alone(path: str) -> None:
    from fnmatch import fnmatch

    pattern = module._literal(path)
    assert fnmatch(path, pattern)
    others: list[Any] = [f"{path}x", path.replace("[1]", "1"), path.replace("*", "zz"), path.replace("?", "z")]
    assert not any(fnmatch(other, pattern) for other in others if other != path)

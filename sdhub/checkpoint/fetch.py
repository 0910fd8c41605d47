"""The bytes of a checkpoint: what identifies them, and where they lie on this machine."""

from __future__ import annotations

import hashlib
import shutil
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sdhub.checkpoint import companions, lora
from sdhub.checkpoint.checkpoint import Checkpoint
from sdhub.checkpoint.inspect import config_tree, parts_of
from sdhub.checkpoint.remote import Repository
from sdhub.checkpoint.tree import require_same
from sdhub.core.documents import shown
from sdhub.core.endpoint import endpoint
from sdhub.core.errors import SdhubError, SourceError
from sdhub.core.hub import Hub
from sdhub.core.progress import SILENT, Progress, Task
from sdhub.core.work import digest

BLOCK = 2**20


def fingerprint(checkpoint: Checkpoint, hub: Hub | None = None, *, progress: Progress = SILENT) -> str:
    """64 hex digits that identify all bytes that will be used: checkpoint, LoRAs with scales, configs.

    A commit of the Hub stands for its files; local files are hashed (SHA-256), so this reads them once. Raises
    SourceError where they are gone, HubError where the configs of a single file cannot be found.
    """
    local = _local_files(checkpoint)
    loras = [path for each in checkpoint.loras for path in lora.local_files(each)]
    beside = [Path(each.ref, name) for each in checkpoint.companions if each.sha is None for name in each.sizes]
    total = sum(_size(path) for path in [*local.values(), *loras, *beside])
    with progress.task("hashing the checkpoint", total=total, unit="B") as task:
        files = {name: _sha256(path, task) for name, path in sorted(local.items())}
        hashes = {path: _sha256(path, task) for path in [*loras, *beside]}
    require_unchanged(checkpoint)
    return digest(
        {
            "commit": checkpoint.sha,
            "files": files if checkpoint.sha is None else sorted(checkpoint.files),
            "config": _config_identity(checkpoint, hub or endpoint(None)),
            "loras": [
                {
                    "scale": float(each.scale),
                    "bytes": {"commit": each.sha, "file": each.file}
                    if each.sha
                    else [hashes[path] for path in lora.local_files(each)],
                }
                for each in checkpoint.loras
            ],
            **({"companions": _companions(checkpoint, hashes)} if checkpoint.companions else {}),
        }
    )


def _companions(checkpoint: Checkpoint, hashes: Mapping[Path, str]) -> list[Mapping[str, Any]]:
    return [
        {
            "kind": each.kind,
            "commit": each.sha,
            "files": {
                f"{each.ref}/{name}" if each.sha else name: each.sha or hashes[Path(each.ref, name)]
                for name in each.sizes
            },
        }
        for each in checkpoint.companions
    ]


def fetch(checkpoint: Checkpoint, hub: Hub | None = None, *, progress: Progress = SILENT) -> Path:
    """The checkpoint on this machine: its folder, or the single file; LoRAs are brought into the cache too.

    A local one is checked, not copied. Raises SourceError where files changed since they were inspected, HubError
    where they cannot be had, SdhubError where the disk is too small.
    """
    hub = hub or endpoint(None)
    for each in checkpoint.loras:
        lora.local(each, hub)
    for beside in checkpoint.companions:
        companions.local(beside, hub)
    if checkpoint.source.kind == "file":
        path = Path(checkpoint.source.ref)
        _check_sizes(path.parent, checkpoint.sizes)
        require_unchanged(checkpoint)
        return path
    if checkpoint.sha is None:
        folder = Path(checkpoint.source.ref)
    else:
        folder = _download(checkpoint, checkpoint.sha, hub, progress)
    _check_sizes(folder, checkpoint.sizes)
    require_unchanged(checkpoint)
    return folder / checkpoint.source.file if checkpoint.source.file else folder


def config_files(checkpoint: Checkpoint, hub: Hub) -> Path:
    """The folder with vetted configs and tokenizers of a single file. Raises as `inspect`."""
    tree = config_tree(checkpoint.config or "", hub)
    parts = parts_of(tree)
    if parts.detected.family != checkpoint.family:
        raise SourceError(
            f"{tree.where} holds configs of {parts.detected.family.title}, "
            f"{shown(checkpoint.id)} is {checkpoint.family.title}",
            hint="give another config",
        )
    if isinstance(tree, Repository):
        tree.prefetch(parts.files)
        return tree.fetch("model_index.json").parent
    return tree.root


def _download(checkpoint: Checkpoint, sha: str, hub: Hub, progress: Progress) -> Path:
    repo_id = checkpoint.source.ref
    missing = _missing(repo_id, sha, checkpoint.sizes)
    _check_space(missing)
    patterns = [_literal(path) for path in checkpoint.files]
    with progress.task(f"downloading {checkpoint.name}", total=missing, unit="B") as task:
        folder = hub.read(
            repo_id,
            lambda: hub.api.snapshot_download(
                repo_id, revision=sha, allow_patterns=patterns, tqdm_class=_bytes_to(task)
            ),
            progress,
        )
    return Path(folder)


def _literal(path: str) -> str:
    """A pattern of fnmatch that matches `path` alone."""
    return "".join(f"[{each}]" if each in "*?[" else each for each in path)


def _missing(repo_id: str, sha: str, sizes: Mapping[str, int]) -> int:
    from huggingface_hub import try_to_load_from_cache

    return sum(
        size
        for path, size in sizes.items()
        if not isinstance(try_to_load_from_cache(repo_id, path, revision=sha), str)
    )


def _check_space(needed: int) -> None:
    from huggingface_hub.constants import HF_HUB_CACHE

    cache = Path(HF_HUB_CACHE)
    there = next(path for path in (cache, *cache.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise SdhubError(
            f"the download needs {needed / 1e9:.1f} GB, and {shown(there, 200)} has {free / 1e9:.1f} GB free",
            hint="make room, or set HF_HOME to a folder on a larger disk",
        )


def require_unchanged(checkpoint: Checkpoint) -> None:
    """Raises SourceError where a local file is not the one that was inspected: it was written to, or replaced.

    Files of LoRAs and companions too.
    """
    root = Path(checkpoint.source.ref)
    require_same(root.parent if checkpoint.source.kind == "file" else root, checkpoint.stamps)
    for each in checkpoint.loras:
        require_same(Path(each.file).parent, each.stamps)
    for beside in checkpoint.companions:
        require_same(Path(beside.ref), beside.stamps)


def _check_sizes(folder: Path, sizes: Mapping[str, int]) -> None:
    for path, size in sizes.items():
        found = _size(folder / path)
        if found != size:
            raise SourceError(
                f"{shown(path)} has {found} bytes, not the {size} it had when it was inspected",
                hint="start again; if it stays so, delete the file and get it again",
            )


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        raise SourceError(f"{shown(path.name)} is gone", hint="look at the checkpoint's path") from None


def _local_files(checkpoint: Checkpoint) -> dict[str, Path]:
    if checkpoint.sha is not None:
        return {}
    root = Path(checkpoint.source.ref)
    root = root.parent if checkpoint.source.kind == "file" else root
    return {path: root / path for path in checkpoint.files}


def _config_identity(checkpoint: Checkpoint, hub: Hub) -> Any:
    if checkpoint.config is None:
        return None
    tree = config_tree(checkpoint.config, hub)
    if isinstance(tree, Repository):
        return {"commit": tree.sha}
    return _hashes(tree.root, parts_of(tree).files)


def _hashes(root: Path, paths: Iterable[str]) -> dict[str, str]:
    return {path: _sha256(root / path, Task()) for path in sorted(paths)}


def _sha256(path: Path, task: Task) -> str:
    total = hashlib.sha256()
    try:
        with path.open("rb") as stream:
            while block := stream.read(BLOCK):
                total.update(block)
                task.advance(len(block))
    except OSError as error:
        raise SourceError(
            f"{shown(path.name)} cannot be read ({error.strerror})", hint="is it still there?"
        ) from None
    return total.hexdigest()


def _bytes_to(task: Task) -> Any:
    """A bar for `snapshot_download` that draws nothing and hands bytes on."""
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

    lock = threading.Lock()

    class Bytes(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            # huggingface_hub 2 draws a second bar, of the bytes that really travel.
            transfer = str(kwargs.get("name")).endswith(".transfer")
            self.counts = kwargs.get("unit") == "B" and not transfer
            super().__init__(*args, **{**kwargs, "disable": True})  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> None:
            if self.counts and n:
                with lock:
                    task.advance(n)

    return Bytes

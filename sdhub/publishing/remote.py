"""What a repository on a Hub holds, and how a folder differs from it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdhub.core.scratch import temporary
from sdhub.publishing.package import CHUNK, regular_files, sha256_of
from sdhub.publishing.repository import MANIFEST

if TYPE_CHECKING:
    from huggingface_hub import HfApi

MAX_MANIFEST = 16 * 2**20


@dataclass(frozen=True)
class RemoteFile:
    """A file on a Hub: bytes, and the SHA-256 of an LFS file or the git blob id of a regular one."""

    size: int
    sha256: str | None
    blob_id: str | None

    def equals(self, path: Path, sha256: str | None = None) -> bool:
        """Whether a local file has the same content; its SHA-256 is computed where it is not known."""
        if path.stat().st_size != self.size:
            return False
        if self.sha256:
            return (sha256 or sha256_of(path)) == self.sha256
        return git_blob_id(path) == self.blob_id


@dataclass(frozen=True)
class Difference:
    """What a commit has to do so that the repository holds the folder."""

    changed: Mapping[str, Path]
    gone: tuple[str, ...]
    new: frozenset[str] = frozenset()

    @property
    def bytes(self) -> int:
        """Bytes of the changed files."""
        return sum(path.stat().st_size for path in self.changed.values())

    @property
    def changes(self) -> dict[str, str]:
        """What happens to each file: "added", "changed" or "removed"."""
        touched = {name: "added" if name in self.new else "changed" for name in self.changed}
        return touched | dict.fromkeys(self.gone, "removed")

    def __bool__(self) -> bool:
        return bool(self.changed or self.gone)


def compare(
    api: HfApi, repo_id: str, revision: str | None, folder: Path, known: Mapping[str, str] | None = None
) -> Difference:
    """How the repository at `revision` differs from `folder`.

    `gone` names the files that sdhub published before (they are in the remote `sdhub.json`) and the folder no
    longer has. Files that others put there are left alone. `known` are SHA-256 of files by path, which then
    need not be read again.
    """
    remote = tree(api, repo_id, revision) if revision else {}
    local = regular_files(folder)
    known = known or {}
    changed = {
        name: path
        for name, path in local.items()
        if name not in remote or not remote[name].equals(path, known.get(name))
    }
    earlier = _published(api, repo_id, revision, remote) if revision else set()
    new = frozenset(changed) - set(remote)
    return Difference(changed, tuple(sorted(earlier & set(remote) - set(local))), new)


def tree(api: HfApi, repo_id: str, revision: str) -> dict[str, RemoteFile]:
    """All files of a repository at a revision, by path."""
    from huggingface_hub.hf_api import RepoFile

    return {
        entry.path: RemoteFile(entry.size, entry.lfs.sha256 if entry.lfs else None, entry.blob_id)
        for entry in api.list_repo_tree(repo_id, recursive=True, revision=revision)
        if isinstance(entry, RepoFile)
    }


def git_blob_id(path: Path) -> str:
    """The id that git gives a file's content: SHA-1 over `blob <size>`, NUL and the bytes."""
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as stream:
        while block := stream.read(CHUNK):
            digest.update(block)
    return digest.hexdigest()


def _published(api: HfApi, repo_id: str, revision: str, remote: Mapping[str, RemoteFile]) -> set[str]:
    entry = remote.get(MANIFEST)
    if entry is None or entry.size > MAX_MANIFEST:
        return set()
    with temporary() as cache:
        path = Path(api.hf_hub_download(repo_id, MANIFEST, revision=revision, cache_dir=cache))
        if not entry.equals(path):  # files would be left behind
            raise ConnectionError(f"{MANIFEST} was cut on its way")
        return _names(path.read_bytes())


def _names(manifest: bytes) -> set[str]:
    """The files that a remote `sdhub.json` lists; none where it is not one of ours, so that none is deleted."""
    try:
        document: Any = json.loads(manifest)
    except (ValueError, RecursionError):
        return set()
    files = document.get("files") if isinstance(document, dict) else None
    return {str(name) for name in files} - {".gitattributes"} if isinstance(files, dict) else set()

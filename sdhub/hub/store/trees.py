"""What a commit contains: a flat listing of files, with the object ids that git and git-lfs would give them."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from sqlite3 import Connection

from sdhub.hub.errors import no_entry


@dataclass(frozen=True)
class File:
    """One file. `oid` is the git blob id (of the pointer when `lfs`), `sha256` names the content's blob."""

    path: str
    oid: str
    size: int
    sha256: str
    lfs: bool

    @property
    def pointer_size(self) -> int:
        """Bytes of the git-lfs pointer file."""
        return len(lfs_pointer(self.sha256, self.size))


def regular_file(path: str, oid: str, size: int, sha256: str) -> File:
    """A file that git itself would hold."""
    return File(path, oid, size, sha256, lfs=False)


def lfs_file(path: str, sha256: str, size: int) -> File:
    """A file that git would hold as a git-lfs pointer."""
    return File(path, git_blob_oid(lfs_pointer(sha256, size)), size, sha256, lfs=True)


def git_blob_oid(content: bytes) -> str:
    """The id git gives to a blob: the SHA-1 of `blob <size>`, NUL, content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def lfs_pointer(sha256: str, size: int) -> bytes:
    """The pointer file of the git-lfs specification, version 1."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


@dataclass(frozen=True)
class Tree:
    """All files of a commit, by path in sorted order; `folders` maps each folder ("" is the root) to its id."""

    key: str
    files: dict[str, File]
    folders: dict[str, str] = field(repr=False)

    def children(self, folder: str) -> tuple[list[str], list[File]]:
        """The folders and the files directly in `folder` ("" is the root)."""
        prefix = f"{folder}/" if folder else ""
        folders = [path for path in self.folders if path and _parent(path) == folder]
        files = [
            file for path, file in self.files.items() if path.startswith(prefix) and "/" not in path[len(prefix) :]
        ]
        return folders, files

    def below(self, folder: str) -> tuple[list[str], list[File]]:
        """The folders and files at any depth in `folder`."""
        prefix = f"{folder}/" if folder else ""
        folders = [path for path in self.folders if path and path.startswith(prefix)]
        return folders, [file for path, file in self.files.items() if path.startswith(prefix)]


def make_tree(files: Iterable[File]) -> Tree:
    """A tree of these files (unique paths, no file where another needs a folder)."""
    ordered = {file.path: file for file in sorted(files, key=lambda file: file.path)}
    return Tree(_key(ordered), ordered, _folder_oids(ordered))


def save_tree(connection: Connection, repo_id: int, tree: Tree) -> None:
    """Keep a tree for a repository."""
    listing = zlib.compress(_listing(tree.files), 6)
    connection.execute("INSERT OR IGNORE INTO tree VALUES (?, ?, ?)", (repo_id, tree.key, listing))


def load_tree(connection: Connection, repo_id: int, key: str) -> Tree:
    """A tree that was kept. 404 when the repository is gone."""
    row = connection.execute("SELECT listing FROM tree WHERE repo_id = ? AND key = ?", (repo_id, key)).fetchone()
    if row is None:
        raise no_entry("The repository was deleted")
    return _parse(key, row["listing"])


def changed_paths(before: Tree, after: Tree) -> list[str]:
    """Paths that were added, removed or changed, sorted."""
    paths = before.files.keys() | after.files.keys()
    return sorted(path for path in paths if before.files.get(path) != after.files.get(path))


@lru_cache(maxsize=256)
def _parse(key: str, listing: bytes) -> Tree:
    files = {path: File(path, oid, size, sha256, bool(lfs)) for path, oid, size, sha256, lfs in _load(listing)}
    return Tree(key, files, _folder_oids(files))


def _load(listing: bytes) -> Iterator[tuple[str, str, int, str, int]]:
    yield from json.loads(zlib.decompress(listing))


def _listing(files: dict[str, File]) -> bytes:
    rows = [[file.path, file.oid, file.size, file.sha256, int(file.lfs)] for file in files.values()]
    return json.dumps(rows, separators=(",", ":")).encode()


def _key(files: dict[str, File]) -> str:
    return hashlib.sha256(_listing(files)).hexdigest()


def _parent(path: str) -> str:
    return path.rpartition("/")[0]


def _folder_oids(files: dict[str, File]) -> dict[str, str]:
    """The git tree id of every folder: the SHA-1 over its entries in git's order."""
    entries: dict[str, list[tuple[bytes, bytes]]] = {"": []}
    for path, file in files.items():
        folder, _, name = path.rpartition("/")
        missing = folder
        while missing not in entries:
            entries[missing] = []
            missing = _parent(missing)
        entries[folder].append((name.encode(), b"100644 %s\0" % name.encode() + bytes.fromhex(file.oid)))
    oids: dict[str, str] = {}
    for folder in sorted(entries, key=lambda path: (-path.count("/"), path == "", path)):
        body = b"".join(entry for _, entry in sorted(entries[folder]))
        oid = hashlib.sha1(b"tree %d\0" % len(body) + body, usedforsecurity=False)
        oids[folder] = oid.hexdigest()
        if folder:
            label = folder.rpartition("/")[2].encode()
            # git sorts a folder as if its name ended in a slash
            entries[_parent(folder)].append((label + b"/", b"40000 %s\0" % label + oid.digest()))
    return dict(sorted(oids.items()))

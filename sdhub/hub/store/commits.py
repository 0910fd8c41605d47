"""Applying a commit: operations on the head's tree, checked, then one transaction for all of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from sqlite3 import Connection

from sdhub.hub.errors import Refusal, bad_request, no_entry
from sdhub.hub.store.blobs import Blobs, Staged
from sdhub.hub.store.repositories import Repo
from sdhub.hub.store.revisions import Ref, Revision, get, move_ref, record, resolve
from sdhub.hub.store.trees import File, lfs_file, load_tree, make_tree, regular_file


@dataclass(frozen=True)
class AddFile:
    """A regular file whose content is staged; `oid` is its git blob id."""

    path: str
    oid: str
    staged: Staged


@dataclass(frozen=True)
class AddLfs:
    """A file whose content the repository must already hold. `size` None: whatever it is."""

    path: str
    sha256: str
    size: int | None


@dataclass(frozen=True)
class CopyFile:
    """A copy of a file of this repository; `revision` "" is the head."""

    path: str
    source: str
    revision: str


@dataclass(frozen=True)
class DeleteFile:
    """Remove one file."""

    path: str


@dataclass(frozen=True)
class DeleteFolder:
    """Remove a folder and all below it; "" is everything."""

    path: str


Operation = AddFile | AddLfs | CopyFile | DeleteFile | DeleteFolder


@dataclass(frozen=True)
class Message:
    """Who commits, and what they say."""

    author: str
    title: str
    description: str = ""


def commit(
    connection: Connection,
    blobs: Blobs,
    repo: Repo,
    ref: Ref,
    operations: Iterable[Operation],
    message: Message,
    *,
    parent: str = "",
) -> Revision:
    """Apply `operations` on the head of `ref` and move it; call inside a write transaction.

    Deletions come first, whatever their place. With `parent` (a commit id), the head must be that commit.
    When nothing would change, the head is returned and no commit made.

    Raises Refusal: 412 (the head is another), 404 (a file to delete or copy is not there), 400 (the same path
    twice, a file where a folder is needed, content that was not uploaded).
    """
    head = get(connection, repo.id, ref.oid)
    if parent and parent != head.oid:
        raise Refusal(412, "A commit has happened since. Please refresh and try again.")
    operations = list(operations)
    files = dict(load_tree(connection, repo.id, head.tree).files)
    for operation in operations:
        _delete(files, operation)
    additions = [_addition(connection, blobs, repo, head, operation) for operation in operations]
    _add(files, [file for file in additions if file is not None])
    tree = make_tree(files.values())
    if tree.key == head.tree:
        return head
    staged = [operation.staged for operation in operations if isinstance(operation, AddFile)]
    blobs.install(connection, repo.id, *staged)
    revision = record(connection, repo.id, head, tree, message.author, message.title, message.description)
    move_ref(connection, repo.id, ref, revision.oid)
    return revision


def _delete(files: dict[str, File], operation: Operation) -> None:
    if isinstance(operation, DeleteFile):
        if files.pop(operation.path, None) is None:
            raise no_entry(f"A file with this name doesn't exist: {operation.path}")
    elif isinstance(operation, DeleteFolder):
        prefix = f"{operation.path}/" if operation.path else ""
        inside = [path for path in files if path.startswith(prefix)]
        if not inside and prefix:
            raise no_entry(f"A folder with this name doesn't exist: {operation.path}")
        for path in inside:
            del files[path]


def _addition(
    connection: Connection, blobs: Blobs, repo: Repo, head: Revision, operation: Operation
) -> File | None:
    if isinstance(operation, AddFile):
        return regular_file(operation.path, operation.oid, operation.staged.size, operation.staged.sha256)
    if isinstance(operation, AddLfs):
        size = blobs.held_size(connection, repo.id, operation.sha256)
        if size is None or not blobs.path(operation.sha256).exists():
            raise bad_request(f"The LFS object of {operation.path} was not uploaded: {operation.sha256}")
        if operation.size is not None and operation.size != size:
            raise bad_request(f"The LFS object of {operation.path} has {size} bytes, not {operation.size}")
        return lfs_file(operation.path, operation.sha256, size)
    if isinstance(operation, CopyFile):
        return _copied(connection, repo, head, operation)
    return None


def _copied(connection: Connection, repo: Repo, head: Revision, operation: CopyFile) -> File:
    revision = resolve(connection, repo.id, operation.revision) if operation.revision else head
    source = load_tree(connection, repo.id, revision.tree).files.get(operation.source)
    if source is None:
        raise no_entry(f"A file with this name doesn't exist: {operation.source}")
    return File(operation.path, source.oid, source.size, source.sha256, source.lfs)


def _add(files: dict[str, File], additions: list[File]) -> None:
    paths = [file.path for file in additions]
    if len(set(paths)) != len(paths):
        repeated = next(path for path in paths if paths.count(path) > 1)
        raise bad_request(f"The commit writes the same path twice: {repeated}")
    files.update({file.path: file for file in additions})
    check_folders(files, paths)


def check_folders(files: dict[str, File], paths: Iterable[str]) -> None:
    """400 when one of `paths` needs a folder where `files` has a file, or is a file where there is a folder."""
    folders = {path[:end] for path in files for end in _slashes(path)}
    for path in paths:
        clash = next((path[:end] for end in _slashes(path) if path[:end] in files), None)
        if clash or path in folders:
            raise bad_request(f"{clash or path} would be a file and a folder at once")


def _slashes(path: str) -> list[int]:
    return [index for index, character in enumerate(path) if character == "/"]

"""Which names and paths are allowed: everything that strangers may call a repository, a file, a branch."""

from __future__ import annotations

import re
import unicodedata
from typing import Final

from sdhub.hub.errors import Refusal, bad_request

TYPES: Final = ("model", "dataset", "space")
MAX_PATH_BYTES: Final = 1024
MAX_SEGMENT_BYTES: Final = 255
MAX_REF_LENGTH: Final = 200

# First path segments of the server itself, and words that read as one.
RESERVED: Final = frozenset(
    {
        "api",
        "models",
        "datasets",
        "spaces",
        "collections",
        "discussions",
        "static",
        "xet",
        "favicon.ico",
        "robots.txt",
    }
)

_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_DRIVE = re.compile(r"[A-Za-z]:")
_REF_FORBIDDEN = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//|/\.|\.lock(?:/|$)")


def check_name(name: object, what: str = "repository name") -> str:
    """A namespace or repository name as the Hub allows it (96 characters of `A-Za-z0-9._-`). 400 otherwise."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise bad_request(f"Invalid {what}: use up to 96 of the characters A-Z a-z 0-9 . _ -")
    if ".." in name or "--" in name or name.lower().endswith((".git", ".ipynb")):
        raise bad_request(f"Invalid {what}: '..', '--' and a '.git' ending are not allowed")
    if name.lower() in RESERVED:
        raise bad_request(f"Invalid {what}: {name} is reserved")
    return name


def is_name(name: str) -> bool:
    """Whether `check_name` lets a name pass."""
    try:
        check_name(name)
    except Refusal:
        return False
    return True


def check_type(kind: object) -> str:
    """`model`, `dataset` or `space`; None is `model`. 400 otherwise."""
    if kind is None:
        return "model"
    if kind not in TYPES:
        raise bad_request("Invalid repository type: model, dataset or space")
    return str(kind)


def check_path(path: object) -> str:
    """A file path in a repository: relative, `/`-separated, nothing that could leave the folder. 400 otherwise."""
    if not isinstance(path, str) or not path:
        raise bad_request("Invalid path: it is empty")
    if any(unicodedata.category(character) in {"Cc", "Cs"} for character in path) or "\\" in path:
        raise bad_request("Invalid path: control characters and backslashes are not allowed")
    if len(path.encode()) > MAX_PATH_BYTES:
        raise bad_request(f"Invalid path: longer than {MAX_PATH_BYTES} bytes")
    if _DRIVE.match(path):
        raise bad_request("Invalid path: it is absolute")
    for segment in path.split("/"):
        _check_segment(segment)
    return path


def _check_segment(segment: str) -> None:
    if segment in {"", ".", ".."}:
        raise bad_request("Invalid path: it is absolute, or has an empty, '.' or '..' segment")
    if segment.lower() == ".git" or len(segment.encode()) > MAX_SEGMENT_BYTES:
        raise bad_request("Invalid path: a segment is '.git' or too long")


def check_ref(name: object) -> str:
    """A branch or tag name, by the rules of git. 400 otherwise."""
    if not isinstance(name, str) or not 0 < len(name) <= MAX_REF_LENGTH or _REF_FORBIDDEN.search(name):
        raise bad_request("Invalid reference name")
    if name.startswith(("-", "/", ".", "refs/")) or name.endswith(("/", ".")) or is_commit(name) or name == "@":
        raise bad_request("Invalid reference name")
    if any(unicodedata.category(character) in {"Cc", "Cs"} for character in name):
        raise bad_request("Invalid reference name")
    return name


def is_commit(text: object) -> bool:
    """Whether `text` is a full commit id: 40 lower-case hex digits."""
    return isinstance(text, str) and _COMMIT.fullmatch(text) is not None


def is_sha256(text: object) -> bool:
    """Whether `text` is a SHA-256 as 64 lower-case hex digits."""
    return isinstance(text, str) and _SHA256.fullmatch(text) is not None

"""A full disk, told as what it is, whatever a library made of it."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from sdhub.core import nextsteps
from sdhub.core.errors import SdhubError

FULL = {errno.ENOSPC, errno.EDQUOT}
WORDS = ("no space left on device", "disk quota exceeded", "os error 28", "there is not enough space on the disk")
LEAST = 4 * 2**20  # bytes; a stream that fails on a disk with less free has failed for want of it
STREAM = ("stream", "write", "iostream", "disk")


@contextmanager
def watched(*folders: Path) -> Iterator[None]:
    """Turn what a full disk makes of the block into one line; `folders` are written to there."""
    try:
        yield
    except Exception as error:
        full = full_disk(error, folders)
        if full is None or full is error:
            raise
        raise full from error


def full_disk(error: BaseException, folders: Sequence[Path] = ()) -> SdhubError | None:
    """The error to tell of in place of `error` where a full disk is its cause; None where it is not.

    An OSError says so by its number; libraries in other languages by words, or by a stream that failed while the
    disk of `folders` has nothing left.
    """
    if isinstance(error, SdhubError):
        return None
    chain = list(causes(error))
    number = next((each for each in chain if isinstance(each, OSError) and each.errno in FULL), None)
    if number is not None:
        named = number.filename2 or number.filename
        return _full(Path(os.fsdecode(named)).parent if isinstance(named, (str, bytes)) else _fullest(folders))
    said = " ".join(map(words_of, chain)).lower()
    if any(words in said for words in WORDS):
        return _full(_fullest(folders))
    if any(word in said for word in STREAM):
        low = [each for each in folders if _free(each) < LEAST]
        return _full(low[0]) if low else None
    return None


def words_of(error: BaseException) -> str:
    """What an exception says, in one line; nothing where even that raises."""
    try:
        return " ".join(str(error).split())
    except Exception:  # noqa: BLE001 — of any library
        return ""


def _full(folder: Path) -> SdhubError:
    return SdhubError(
        f"the disk of {folder} is full",
        hint=f"make room ({nextsteps.cache()} shows what may go), "
        "or set SDHUB_HOME, HF_HOME or TMPDIR to a larger disk",
    )


def causes(error: BaseException) -> Iterator[BaseException]:
    """An exception, and what it came of, once each."""
    seen: set[int] = set()
    step: BaseException | None = error
    while step is not None and id(step) not in seen:
        seen.add(id(step))
        yield step
        step = step.__cause__ or step.__context__


def _fullest(folders: Sequence[Path]) -> Path:
    """Of these and the passing folder, the one with least room."""
    return min([*folders, Path(tempfile.gettempdir())], key=_free)


def _free(folder: Path) -> int:
    there = next((each for each in (folder, *folder.absolute().parents) if each.exists()), Path("/"))
    try:
        return shutil.disk_usage(there).free
    except OSError:
        return 2**63
